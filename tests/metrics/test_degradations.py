"""sFID and FID-768 grow with the damage, in the genuine network up to where its weights are known.

The weights, of Inception-v3 2015-12-05 up to Mixed_7a, are lent for tests and lie outside of the
project.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file

from selfdistill.data.crops import CROPS
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.networks.inception import InceptionV3, fold

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WEIGHTS, PHOTOGRAPHS = DATA / "inception_2015_to_mixed_7a.safetensors", DATA / "imagenet_sample"
TAPS = ("spatial", "pool_768")

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.is_file() and PHOTOGRAPHS.is_dir()), reason=f"{DATA} is not there"
)


def blurred(image: Image.Image, strength: int) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur((0.7, 1.5, 3)[strength]))


def noised(image: Image.Image, strength: int) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, (8, 20, 50)[strength], (256, 256, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image, strength: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=(75, 30, 8)[strength])
    return Image.open(file).convert("RGB")


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    network = InceptionV3()
    known = network.load_state_dict(load_file(WEIGHTS), strict=False)
    assert not known.unexpected_keys
    assert {key.split(".")[0] for key in known.missing_keys} <= {"Mixed_7b", "Mixed_7c", "fc"}
    return fold(network.eval())


@pytest.fixture(scope="module")
def photographs(request) -> list[Image.Image]:
    files = sorted(PHOTOGRAPHS.rglob("*.JPEG"))[:: 300 // request.param]
    crops = []
    for file in files:
        with Image.open(file) as image:
            crops.append(Image.fromarray(CROPS["adm"](image.convert("RGB"), 256)))
    return crops


def moments(network: InceptionV3, images: list[Image.Image]) -> dict[str, Moments]:
    running = {tap: RunningMoments() for tap in TAPS}
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    for batch in pixels.split(16):
        for tap, features in network(batch, TAPS).items():
            running[tap].update(features)
    return {tap: one.finish() for tap, one in running.items()}


@pytest.mark.parametrize(
    "photographs", [20, pytest.param(150, marks=pytest.mark.slow)], indirect=True
)
def test_the_distance_grows_with_blur_noise_and_compression(network, photographs):
    real = moments(network, photographs)
    for tap in TAPS:  # fewer images than dimensions: the covariances are singular
        assert abs(frechet_distance(real[tap], real[tap])) < 1e-6
    for damaged in (blurred, noised, compressed):
        steps = [
            moments(network, [damaged(image, strength) for image in photographs])
            for strength in range(3)
        ]
        for tap in TAPS:
            distances = [0.0, *(frechet_distance(step[tap], real[tap]) for step in steps)]
            assert distances == sorted(set(distances)), (damaged.__name__, tap, distances)
