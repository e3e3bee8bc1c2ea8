"""Reference files that others publish: statistics of real images, and sometimes images.

.npz   ADM's (mu, sigma, mu_s, sigma_s, and 10,000 images) and EDM's (mu, sigma)
.pkl   EDM2's: {"fid": {"mu", "sigma"}, "fd_dinov2": {...}}, read without executing anything
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from selfdistill.data.array_pickle import read_array_pickle
from selfdistill.data.npz_images import NpzImages
from selfdistill.files import sha256_once
from selfdistill.metrics.definitions import REFERENCES, REFERENCES_BY_NAME
from selfdistill.metrics.metric import Need

_POOL_3 = Need("inception_2015", "pool_3", "moments")
_SPATIAL = Need("inception_2015", "spatial", "moments")
_OF_NPZ = {_POOL_3: ("mu", "sigma"), _SPATIAL: ("mu_s", "sigma_s")}
_OF_PICKLE = {"fid": (_POOL_3, 2048), "fd_dinov2": (Need("dinov2", "cls", "moments"), 1024)}


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """What a published file knows of the real images.

    Attributes:
        path: The file.
        sha256: Of its content, hex.
        moments: Mean (D,) and covariance (D, D) of features, float64; it does not say of how many
            images.
        images: The images that it brings for precision and recall; None if it brings none.
    """

    path: Path
    sha256: str
    moments: Mapping[Need, tuple[np.ndarray, np.ndarray]] = field(repr=False)
    images: NpzImages | None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or of another layout.
        """
        if path.suffix != ".pkl":
            return cls.of(NpzImages.open(path))
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no reference file here; check the path")
        return cls(path, sha256_once(path), _pickled(path), None)

    @classmethod
    def of(cls, file: NpzImages) -> Self:
        """Take a file that is open."""
        arrays = file.statistics() or {}
        moments = {
            need: (arrays[mu], arrays[sigma])
            for need, (mu, sigma) in _OF_NPZ.items()
            if mu in arrays
        }
        return cls(file.path, file.fingerprint, moments, file if len(file) else None)

    @property
    def name(self) -> str | None:
        """The name under which it was published; None: it is none that we know."""
        if self.sha256 in REFERENCES:
            return REFERENCES[self.sha256]
        return self.path.name if self.path.name in REFERENCES_BY_NAME else None

    @property
    def is_known_by_name(self) -> bool:
        """Whether its name is all that says which file it is."""
        return self.name is not None and self.sha256 not in REFERENCES


def _pickled(path: Path) -> dict[Need, tuple[np.ndarray, np.ndarray]]:
    """Return the moments in a pickle as EDM2's calculate_metrics.py writes it."""
    try:
        with path.open("rb") as file:
            content = read_array_pickle(file)
    except ValueError as error:
        raise ValueError(f"{path} is {error}; fetch it again") from error
    found = {
        need: _checked(path, key, content[key], width)
        for key, (need, width) in _OF_PICKLE.items()
        if isinstance(content, dict) and key in content
    }
    if not found:
        raise ValueError(
            f"{path}: holds none of {', '.join(_OF_PICKLE)}; take what EDM2's calculate_metrics.py "
            "writes"
        )
    return found


def _checked(path: Path, key: str, pair: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance in float64, if they are such."""
    mu, sigma = (pair.get(one) if isinstance(pair, dict) else None for one in ("mu", "sigma"))
    if not (
        isinstance(mu, np.ndarray)
        and isinstance(sigma, np.ndarray)
        and (mu.dtype.kind, sigma.dtype.kind) == ("f", "f")
        and (mu.shape, sigma.shape) == ((width,), (width, width))
    ):
        raise ValueError(
            f"{path}: {key} must have mu ({width},) and sigma ({width}, {width}), floats; take the "
            "statistics of these features"
        )
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: {key} has values that are NaN or infinite; fetch it again")
    if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-9 * sigma.max()):
        raise ValueError(f"{path}: {key}.sigma is no covariance, it is not symmetric")
    return mu, sigma
