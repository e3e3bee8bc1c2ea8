"""Inception features and Fréchet distance: ours beside the libraries, in turn, in one run.

    python benchmarks/evaluate.py --images data/03_primary/imagenet_256/images --num 200

Every network gets the same random weights, so no download is needed; speed does not depend on their
values. Each batch goes through every library in turn, and a ratio is the median over the batches of
time against time, so that a machine that is busy for a while is busy for all of them. On CUDA the
libraries run as PyTorch is set by default, convolutions in TF32; ours in float32, and once in TF32.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from machine import about
from pytorch_fid import inception as pytorch_fid
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from selfdistill.data.image_set import open_image_set
from selfdistill.metrics.extractors import InceptionExtractor
from selfdistill.metrics.frechet import frechet_distance, frechet_distance_sqrtm
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.networks.inception import InceptionV3, load_inception

RESULTS = Path(__file__).parent / "results"
# All that a row's FID, sFID, IS, precision and recall need, where the others give one output.
TAPS = ("pool_3", "spatial", "logits")
WEIGHTS = "weights.pth"
Library = Callable[[np.ndarray], Tensor]


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return weights under which activations stay tame through all the layers."""
    torch.manual_seed(seed)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.state_dict()


class TorchScriptDouble(nn.Module):
    """What clean-fid loads: `layers`, and the resize by `grid_sample` in front of them."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, return_features: bool = True) -> Tensor:
        """Return (N, 2048) of images (N, 3, H, W) in [0, 255]."""
        theta = torch.eye(2, 3, device=x.device)[None].repeat(x.shape[0], 1, 1)
        theta[:, 0, 2] += theta[:, 0, 0] / x.shape[3] - theta[:, 0, 0] / 299
        theta[:, 1, 2] += theta[:, 1, 1] / x.shape[2] - theta[:, 1, 1] / 299
        grid = nn.functional.affine_grid(theta, [x.shape[0], 3, 299, 299], align_corners=False)
        x = nn.functional.grid_sample(x.float(), grid, "bilinear", "border", align_corners=False)
        return self.layers((x - 128) / 128)


def libraries(folder: Path, device: torch.device) -> dict[str, Library]:
    """Return each library as a function of uint8 images (N, H, W, 3) to (N, 2048)."""
    weights = random_weights()
    file = folder / WEIGHTS
    torch.save(weights, file)
    metrics = NoTrainInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
    )
    with mock.patch.object(pytorch_fid, "load_state_dict_from_url", return_value=weights):
        fid = pytorch_fid.InceptionV3([3]).eval()
    layers = nn.Sequential(*fid.blocks, nn.Flatten()).eval()
    example = torch.zeros(2, 3, 299, 299)
    double = TorchScriptDouble(torch.jit.trace(layers, example))
    torch.jit.script(double).save(str(folder / "inception-2015-12-05.pt"))
    legacy = InceptionV3W(str(folder), download=False, resize_inside=True)
    clean = InceptionV3W(str(folder), download=False, resize_inside=False)
    resize = build_resizer("clean")
    for network in (metrics, fid, legacy, clean):
        network.to(device).eval()

    def resized(images: np.ndarray) -> Tensor:
        pixels = np.stack([resize(image) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)

    functions = {
        "torch-fidelity": torch_fidelity(file, device),
        "pytorch-fid": lambda images: fid(nchw(images, device).float() / 255)[0].flatten(1),
        "clean-fid legacy_tensorflow": lambda images: legacy(nchw(images, device)),
        "clean-fid clean": lambda images: clean(resized(images)),
        "torchmetrics": lambda images: metrics(nchw(images, device)),
    }
    exact, fast = (InceptionExtractor(file, profile, device) for profile in ("exact", "fast"))
    functions["selfdistill exact"] = lambda images: exact(images, TAPS)["pool_3"]
    functions["selfdistill fast"] = lambda images: fast(images, TAPS)["pool_3"]
    if device.type == "cuda":
        functions["selfdistill exact TF32"] = exact_tf32(file, device)
    return functions


def torch_fidelity(file: Path, device: torch.device) -> Library:
    """Return the network that the others are compared with."""
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
    )
    network.to(device).eval()
    return lambda images: network(nchw(images, device))[0]


def exact_tf32(file: Path, device: torch.device) -> Library:
    """Return our exact network as it would be without the extractor's guard."""
    network = load_inception(file).to(device)

    def function(images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).pin_memory().to(device, non_blocking=True)
        with tf32():
            return network(pixels, TAPS)["pool_3"]

    return function


@contextmanager
def tf32() -> Iterator[None]:
    """Allow TF32 in convolutions and products inside the block."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def nchw(images: np.ndarray, device: torch.device) -> Tensor:
    """Return images (N, H, W, 3) as (N, 3, H, W) on the device."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)


@torch.inference_mode()
def features(
    images: np.ndarray, batch: int, device: torch.device, repeat: int = 1
) -> dict[str, Any]:
    """Time every library on every batch in turn, over the images as often as is said."""
    parts = [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]
    warm_up = 2 if device.type == "cuda" else 1
    with tempfile.TemporaryDirectory() as folder:
        functions = libraries(Path(folder), device)
        times: dict[str, list[float]] = {name: [] for name in functions}
        outputs: dict[str, list[Tensor]] = {name: [] for name in functions}
        for i, part in enumerate(parts[:1] * warm_up + parts * repeat, start=-warm_up):
            for name, function in functions.items():
                _synchronise(device)
                began = time.perf_counter()
                made = function(part)
                _synchronise(device)
                if i >= 0:
                    times[name].append(time.perf_counter() - began)
                if 0 <= i < len(parts):
                    outputs[name].append(made.cpu())
        on_cpu = outputs["torch-fidelity"]
        if device.type != "cpu":  # there it is in TF32
            reference = torch_fidelity(Path(folder) / WEIGHTS, torch.device("cpu"))
            on_cpu = [reference(part) for part in parts]
    truth = torch.cat(on_cpu)
    seconds = {name: statistics.median(each) / batch for name, each in times.items()}
    return {
        name: {
            "images_per_s": 1 / seconds[name],
            "seconds_for_50000": 50_000 * seconds[name],
            "ratio_to_pytorch_fid": _ratio(times["pytorch-fid"], times[name]),
            "ratio_to_torch_fidelity": _ratio(times["torch-fidelity"], times[name]),
            "ratio_to_clean_fid": _ratio(times["clean-fid legacy_tensorflow"], times[name]),
            "rms_relative_to_torch_fidelity": float(
                (torch.cat(outputs[name]) - truth).norm() / truth.norm()
            ),
        }
        for name in functions
    }


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def frechet(num: int, dim: int = 2048, repeats: int = 3) -> dict[str, Any]:
    """Time our distance and SciPy's matrix square root in turn; errors against an SVD."""
    x, y = (_relu_features(num, dim, seed) for seed in (1, 2))
    exact = _frechet_by_svd(x, y)
    a, b = (_moments(each) for each in (x, y))
    routes = {"ours": frechet_distance, "scipy.linalg.sqrtm": frechet_distance_sqrtm}
    times: dict[str, list[float]] = {name: [] for name in routes}
    values = {}
    for _ in range(repeats):
        for name, route in routes.items():
            began = time.perf_counter()
            values[name] = route(a, b)
            times[name].append(time.perf_counter() - began)
    return {
        "num": num,
        "dim": dim,
        "seconds": {name: statistics.median(each) for name, each in times.items()},
        "ratio": _ratio(times["scipy.linalg.sqrtm"], times["ours"]),
        "relative_error": {name: abs(value - exact) / exact for name, value in values.items()},
        "of_itself": frechet_distance(a, a),
    }


def _relu_features(num: int, dim: int, seed: int) -> np.ndarray:
    """Return correlated, rectified features whose spectrum decays as that of real ones does."""
    mix = np.random.default_rng(9).normal(size=(dim, dim)) * np.exp(-np.arange(dim) / 200)[:, None]
    rng = np.random.default_rng(seed)
    shift = np.random.default_rng(5).normal(size=dim) * 0.05 * (seed - 1)
    return np.maximum(rng.normal(size=(num, dim)) @ mix * 0.05 + 0.3 + shift, 0)


def _moments(features: np.ndarray) -> Moments:
    running = RunningMoments()
    running.update(torch.from_numpy(features))
    return running.finish()


def _frechet_by_svd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the distance from the features themselves: tr (S_x S_y)^(1/2) is a nuclear norm."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    if len(x) > x.shape[1]:
        a, b = (np.linalg.qr(z, mode="r") for z in (a, b))
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * nuclear)


def to_markdown(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    machine, on_gpu = result["about"], result["device"] == "cuda"
    lines = [
        "# Evaluation: ours beside the libraries",
        "",
        f"{machine['date']}, commit {machine['commit']}, {machine['gpu' if on_gpu else 'cpu']}, "
        f"{machine['threads']} threads; {result['num_images']} images of {result['size']} x "
        f"{result['size']} in batches of {result['batch']}, `{result['command']}`.",
        "Ratios are medians of paired times in one run; more is faster. Ours gives pool_3, spatial "
        "and logits in one pass, the others pool_3 alone; rms: relative difference of pool_3 to "
        "torch-fidelity's" + (" on the CPU, in float32." if on_gpu else "."),
        "",
        "| features | images/s | x pytorch-fid | x torch-fidelity | x clean-fid | rms |"
        + " s for 50,000 |" * on_gpu,
        "| --- | --: | --: | --: | --: | --: |" + " --: |" * on_gpu,
    ]
    for name, row in result["features"].items():
        ratios = [
            row[f"ratio_to_{other}"] for other in ("pytorch_fid", "torch_fidelity", "clean_fid")
        ]
        cells = [f"{row['images_per_s']:.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        cells.append(f"{row['rms_relative_to_torch_fidelity']:.1e}")
        cells += [f"{row['seconds_for_50000']:.0f}"] * on_gpu
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| Fréchet distance | ours, s | sqrtm, s | ratio | error ours | error sqrtm | of itself |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in result["frechet"]:
        seconds, errors = row["seconds"].values(), row["relative_error"].values()
        cells = [*(f"{s:.2f}" for s in seconds), f"{row['ratio']:.1f}"]
        cells += [*(f"{e:.0e}" for e in errors), f"{row['of_itself']:.0e}"]
        lines.append(f"| {row['dim']}-d, {row['num']} vectors | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help=".npz, folder or shards")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=1, help="times over the images")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--name", default="evaluate", help="of the results files")
    options = parser.parse_args()
    source = open_image_set(options.images)
    images = source.read(np.arange(options.num) % len(source))
    packages = ("torch-fidelity", "pytorch-fid", "clean-fid", "torchmetrics", "scipy", "numpy")
    result = {
        "about": about(*packages),
        "command": f"benchmarks/evaluate.py --num {options.num} --batch {options.batch} "
        f"--repeat {options.repeat} --device {options.device}",
        "device": options.device,
        "num_images": options.num,
        "batch": options.batch,
        "size": images.shape[1],
        "features": features(images, options.batch, torch.device(options.device), options.repeat),
        "frechet": [frechet(5_000), frechet(1_000)],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    page = to_markdown(result)
    (RESULTS / f"{options.name}.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
