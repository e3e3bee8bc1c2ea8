"""Class accuracy: does a generated image look like the class that it was asked for?

A classifier that has seen real images only judges the generated ones: the score of "Classification
Accuracy Score for Conditional Generative Models" (Ravuri and Vinyals, 2019, arXiv:1905.10887v2)
with real and generated images exchanged. Made for small data; its ceiling is the classifier's own
accuracy on real images held out. NumPy, scikit-learn and torch are imported in use only.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from sklearn.svm import SVC


_SIDE = 16
_HELD_OUT = 0.25
_SEED = 0


def thumbnails(images: "np.ndarray") -> "np.ndarray":
    """Return what the classifier sees: the grey image averaged down to 16 x 16.

    Args:
        images: uint8, (N, H, W, 3), of any size.

    Returns:
        (N, 256), float64, in [0, 1].
    """
    import torch

    grey = torch.from_numpy(images).to(torch.float64).mean(-1, keepdim=True) / 255
    small = torch.nn.functional.adaptive_avg_pool2d(grey.permute(0, 3, 1, 2), _SIDE)
    return small.flatten(1).numpy()


@dataclass(frozen=True)
class RealClassifier:
    """A classifier of thumbnails, fitted on real images.

    Attributes:
        held_out_accuracy: Share of the held-out real images that it classifies rightly, [0, 1].
        num_fitted: Number of real images that it was fitted on.
        num_held_out: Number of real images that it was tested on.
    """

    held_out_accuracy: float
    num_fitted: int
    num_held_out: int
    _classifier: "SVC"

    @classmethod
    def fit(cls, real: "np.ndarray", labels: "np.ndarray") -> Self:
        """Fit on three quarters of the real images and test on the rest.

        The split is stratified and fixed, and the fit has no randomness.

        Args:
            real: Thumbnails of real images, (N, 256).
            labels: Their classes, (N,), each present four times or more.

        Raises:
            ValueError: If a class has fewer than four images.
        """
        import numpy as np
        from sklearn.model_selection import StratifiedShuffleSplit
        from sklearn.svm import SVC

        if (scarce := np.bincount(labels)[labels].min()) < 4:
            raise ValueError(
                f"class_accuracy needs four real images of each class or more, one has {scarce}"
            )
        split = StratifiedShuffleSplit(n_splits=1, test_size=_HELD_OUT, random_state=_SEED)
        fitted, held_out = next(split.split(real, labels))
        classifier = SVC(kernel="rbf", C=10.0, gamma="scale").fit(real[fitted], labels[fitted])
        accuracy = float((classifier.predict(real[held_out]) == labels[held_out]).mean())
        return cls(accuracy, len(fitted), len(held_out), classifier)

    def accuracy(self, generated: "np.ndarray", labels: "np.ndarray") -> float:
        """Return the share of images whose predicted class is the intended one.

        Args:
            generated: Thumbnails of generated images, (N, 256).
            labels: The classes that they were asked for, (N,).
        """
        return float((self._classifier.predict(generated) == labels).mean())

    def protocol(self) -> dict[str, Any]:
        """Return what a reader must know to repeat the number, as JSON values."""
        return {
            "classifier": "SVC(rbf, C=10, gamma=scale) on 16x16 grey averages",
            "num_fitted": self.num_fitted,
            "num_held_out": self.num_held_out,
            "split": f"stratified, seed {_SEED}",
        }
