"""The stage on real photographs against a straightforward computation with another network."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from selfdistill.data.image_set import open_image_set
from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.pipelines.evaluate.nodes import describe_reference, evaluate_samples

CIFAR10 = Path(__file__).parents[3].parent / "shared" / "data" / "cifar10"
METRICS = (
    "fid", "sfid", "inception_score", "precision", "recall", "precision_float32", "recall_float32",
    "fid_768",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"{CIFAR10} is not there")


def photographs(num: int) -> np.ndarray:
    """Return the first test images of CIFAR-10, (num, 32, 32, 3)."""
    (file,) = CIFAR10.glob("test*.parquet")
    column = pq.read_table(file, columns=["image"]).column("image")
    images = [row["bytes"] for row in column.slice(0, num).to_pylist()]
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images])


def features(images: np.ndarray, weights: Path) -> dict[str, np.ndarray]:
    """Return torch-fidelity's features, and what a hook sees in its Mixed_6d, in float64."""
    network = FeatureExtractorInceptionV3(
        "i", ["768", "2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    seen: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *args: seen.append(args[2]))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 40):
            pixels = torch.from_numpy(images[start : start + 40]).permute(0, 3, 1, 2)
            parts.append(network(pixels.contiguous()))
    fid_768, pool, logits = (torch.cat(each).double().numpy() for each in zip(*parts, strict=True))
    spatial = torch.cat(seen)[:, :7].permute(0, 2, 3, 1).flatten(1).double().numpy()
    return {"fid_768": fid_768, "fid": pool, "logits": logits, "sfid": spatial}


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Return the distance by singular values: right for fewer images than dimensions too."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(mean + (a**2).sum() + (b**2).sum() - 2 * root)


def score(logits: np.ndarray) -> float:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


def distances(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return ((u**2).sum(1)[:, None] - 2 * u @ v.T + (v**2).sum(1)).clip(0)


def half_distances(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return distances whose every step is rounded to half precision."""
    u, v = u.astype(np.float16), v.astype(np.float16)
    norms = [(z * z).astype(np.float64).sum(1).astype(np.float16) for z in (u, v)]
    product = (u.astype(np.float64) @ v.astype(np.float64).T).astype(np.float16)
    rounded = (norms[0][:, None] - np.float16(2) * product + norms[1]).clip(0)
    assert np.isfinite(rounded).all()
    return rounded


def within(points: np.ndarray, centres: np.ndarray, distances=distances) -> float:
    """Return the share of points in a ball around a centre that reaches its third neighbour."""
    radii = np.sort(distances(centres, centres), axis=1)[:, 3]
    return float((distances(points, centres) <= radii).any(1).mean())


@pytest.mark.parametrize("num", [16, pytest.param(1_000, marks=pytest.mark.slow)])
def test_the_stage_equals_a_straightforward_computation(num, inception_file, tmp_path):
    images = photographs(2 * num)
    sets = []
    for name, half in (("reference", images[::2]), ("samples", images[1::2])):
        np.savez(tmp_path / f"{name}.npz", half)
        sets.append(open_image_set(tmp_path / f"{name}.npz"))
    reference, samples = sets
    config = EvaluationConfig(metrics=METRICS, batch_size=40, num_manifold_images=None)
    machine = DistributedConfig(device="cpu", num_ranks=1)
    files = {"inception_2015": inception_file}
    described = describe_reference(reference, config, machine, tmp_path / "r", **files)
    result = evaluate_samples(
        samples, reference, described, config, machine, tmp_path / "s", **files
    )

    real, fake = (features(half, inception_file) for half in (images[::2], images[1::2]))
    measured = result["metrics"]
    for metric in ("fid", "sfid", "fid_768"):
        assert measured[metric] == pytest.approx(frechet(real[metric], fake[metric]), rel=1e-6)
    assert measured["inception_score"] == pytest.approx(score(fake["logits"]), rel=1e-6)
    assert measured["precision_float32"] == within(fake["fid"], real["fid"])
    assert measured["recall_float32"] == within(real["fid"], fake["fid"])
    # Sums in another order round a few of the million distances to the next half.
    for metric, (points, centres) in {"precision": (fake, real), "recall": (real, fake)}.items():
        expected = within(points["fid"], centres["fid"], half_distances)
        assert measured[metric] == pytest.approx(expected, abs=2e-3)

    protocol = result["protocol"]
    assert protocol["num_samples"] == num
    assert protocol["reference"]["images"] == reference.fingerprint
    assert protocol["reference"]["published"] is None
    assert protocol["metrics"]["inception_score"]["split_order"] == "consecutive"
    assert protocol["metrics"]["precision"]["arithmetic"] == "float16"
