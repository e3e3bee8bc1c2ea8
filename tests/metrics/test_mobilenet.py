"""The metrics from end to end on real photographs in a real network's features and classes.

The network is MobileNet v1 0.25 (Howard et al., 2017, arXiv:1704.04861v1), the smallest real
classifier at hand; each number is held to brute force in float64.
"""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfdistill.data.crops import CROPS
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.inception_score import RunningInceptionScore
from selfdistill.metrics.moments import RunningMoments
from selfdistill.metrics.precision_recall import precision_recall

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WEIGHTS, PHOTOGRAPHS = DATA / "mobilenet_v1_0.25_224.npz", DATA / "imagenet_sample"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.is_file() and PHOTOGRAPHS.is_dir()), reason=f"{DATA} is not there"
)


def mobilenet(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return features (N, 256) and logits (N, 1001) of uint8 images (N, 224, 224, 3)."""
    arrays = np.load(WEIGHTS)

    def array(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"MobilenetV1|{name}"])

    def conv(x: Tensor, scope: str, kind: str, stride: int, groups: int = 1) -> Tensor:
        weight = (
            array(f"{scope}|{kind}").permute(2, 3, 0, 1)
            if groups > 1
            else array(f"{scope}|{kind}").permute(3, 2, 0, 1)
        )
        if weight.shape[-1] == 3:  # TensorFlow's SAME: what is odd goes to the right and below
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        norm = [array(f"{scope}|BatchNorm|{part}") for part in
                ("moving_mean", "moving_variance", "gamma", "beta")]  # fmt: skip
        return F.batch_norm(x, *norm, eps=1e-3).clamp(0, 6)

    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = conv(x, "Conv2d_0", "weights", 2)
    for number, stride in enumerate(STRIDES, 1):
        x = conv(x, f"Conv2d_{number}_depthwise", "depthwise_weights", stride, x.shape[1])
        x = conv(x, f"Conv2d_{number}_pointwise", "weights", 1)
    features = x.mean((2, 3))
    weight = array("Logits|Conv2d_1c_1x1|weights")[0, 0]
    return features, features @ weight + array("Logits|Conv2d_1c_1x1|biases")


@pytest.fixture(scope="module")
def halves() -> list[tuple[np.ndarray, np.ndarray]]:
    """Features and logits of every other photograph, and of the rest."""
    files = sorted(PHOTOGRAPHS.rglob("*.JPEG"))
    crops = []
    for file in files:
        with Image.open(file) as image:
            crops.append(CROPS["adm"](image.convert("RGB"), 224))
    images = np.stack(crops)
    parts = [mobilenet(images[start : start + 50]) for start in range(0, len(images), 50)]
    features, logits = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return [(features[half::2], logits[half::2]) for half in (0, 1)]


def test_the_network_sees_what_is_on_the_photographs(halves):
    """Were it wired wrongly, its 1001 classes would be nearly equal for all photographs."""
    logits = np.concatenate([logits for _, logits in halves])
    assert len(np.unique(logits.argmax(1))) > 100
    assert np.median(torch.from_numpy(logits).softmax(1).amax(1)) > 0.3


def test_frechet_distance(halves):
    (a, _), (b, _) = halves
    running = [RunningMoments(), RunningMoments()]
    for moments, features in zip(running, (a, b), strict=True):
        for start in range(0, len(features), 17):
            moments.update(torch.from_numpy(features[start : start + 17]))
    x, y = (features.astype(np.float64) for features in (a, b))
    S_x, S_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # The matrices are singular, 150 photographs in 256 dimensions: the root by its eigenvalues.
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = scipy.linalg.svdvals(x @ y.T).sum()
    expected = ((a.mean(0, np.float64) - b.mean(0, np.float64)) ** 2).sum()
    expected += np.trace(S_x) + np.trace(S_y) - 2 * root
    assert frechet_distance(*(each.finish() for each in running)) == pytest.approx(
        expected, rel=1e-8
    )


def test_inception_score(halves):
    for _, logits in halves:
        running = RunningInceptionScore(split_size=40)
        for start in range(0, len(logits), 23):
            running.update(torch.from_numpy(logits[start : start + 23]), start)
        p = np.exp(logits.astype(np.float64))
        p /= p.sum(1, keepdims=True)
        splits = [p[start : start + 40] for start in range(0, len(p), 40)]
        scores = [np.exp((s * np.log(s / s.mean(0))).sum(1).mean()) for s in splits]
        assert running.finish() == pytest.approx(np.mean(scores), rel=1e-10)


def test_precision_and_recall(halves):
    (reference, _), (samples, _) = halves

    def within(points: np.ndarray, centres: np.ndarray) -> float:
        def distances(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            u, v = u.astype(np.float64), v.astype(np.float64)
            return ((u[:, None] - v[None]) ** 2).sum(-1)

        radii = np.sort(distances(centres, centres), axis=1)[:, 3]
        return float((distances(points, centres) <= radii).any(1).mean())

    measured = precision_recall(
        torch.from_numpy(reference), torch.from_numpy(samples), arithmetic="float32"
    )
    assert measured == (within(samples, reference), within(reference, samples))
    assert 0.3 < measured[0] < 1
