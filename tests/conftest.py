"""Shared fixtures: a minute dataset and a minute row, real in every part but size."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfdistill.data.shard_writer import ShardWriter, finalize
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_network
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.train.config import TrainConfig

PROJECT = Path(__file__).parents[1]
NUM_IMAGES, NUM_CLASSES = 40, 5

# Several test processes and what they start would otherwise fight for the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the project."""
    return PROJECT


@pytest.fixture(scope="session")
def running() -> Callable[[str], list[int]]:
    """Find the processes with a mark in their environment, MARK_OF_TEST, at any depth."""

    def find(mark: str) -> list[int]:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK_OF_TEST={mark}".encode() in (place / "environ").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue  # it has ended, or is somebody else's
        return found

    return find


def write_set(directory: Path, rows: np.ndarray, shard_size: int = 16, **about: Any) -> Shards:
    """Write rows (N, ...) with labels i mod 5 as a shard set."""
    num_shards = -(-len(rows) // shard_size)
    for shard in range(num_shards):
        with ShardWriter(directory, shard, rows.shape[1:], str(rows.dtype)) as writer:
            for index in range(shard * shard_size, min((shard + 1) * shard_size, len(rows))):
                writer.append(f"{index:03d}", index % NUM_CLASSES, rows[index])
    return finalize(
        directory,
        num_shards=num_shards,
        shape=rows.shape[1:],
        dtype=str(rows.dtype),
        class_names=[f"class_{label}" for label in range(NUM_CLASSES)],
        about=about,
    )


@pytest.fixture(scope="session")
def shard_set() -> Callable[..., Shards]:
    """Write images (N, H, W, 3) into a directory as a shard set."""
    return write_set


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """40 random images of 16 x 16 in 5 classes."""
    rows = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), dtype=np.uint8)
    return write_set(tmp_path_factory.mktemp("images"), rows)


@pytest.fixture(scope="session")
def features(images: Shards, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Random teacher tokens of those images, as they are and mirrored."""
    rows = np.random.default_rng(1).normal(size=(NUM_IMAGES, 2, 4, 6)).astype(np.float16)
    return write_set(tmp_path_factory.mktemp("features"), rows, images=images.fingerprint)


@pytest.fixture(scope="session")
def network() -> NetworkConfig:
    """A DSD ViT of a few thousand parameters."""
    return NetworkConfig.model_validate(
        {
            "name": "dsd_vit", "resolution": 16, "patch_size": 8, "width": 16, "depth": 3,
            "num_heads": 2, "latent_dim": 4, "normalize_latent": True, "num_registers": 1,
            "num_classes": NUM_CLASSES, "teacher_dim": 6, "teacher_block": 0,
            "representation_head": True,
        }
    )  # fmt: skip


def dsd_values() -> dict[str, Any]:
    """Parameters of the DSD objective with every term and every augmentation switched on."""
    photometric = {
        "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
        "jitter_probability": 0.8, "gray_probability": 0.2, "blur_probability": 0.5,
        "blur_kernel": 9, "blur_sigma": (0.1, 2.0), "solarize_probability": 0.2,
        "solarize_threshold": 0.5,
    }  # fmt: skip
    return {
        "name": "dsd", "target": "average", "prediction": "z0", "velocity_target": "whole",
        "weights": {
            "distillation": 1.0, "velocity": 1.0, "reconstruction": 1.0, "perceptual": 1.0,
            "alignment": 0.5, "representation": 0.5, "classification": 0.1,
        },
        "perceptual_network": "lpips_random",
        "augmentation": {
            "probability": 0.5, "mask_ratio": (0.1, 0.75), "photometric": photometric
        },
        "time_distribution": "logit_normal", "class_dropout": 0.1, "ema_decay": 0.99,
    }  # fmt: skip


@pytest.fixture(scope="session")
def method() -> MethodConfig:
    """The DSD objective, whole."""
    return MethodConfig.model_validate(dsd_values())


def train_values() -> dict[str, Any]:
    """Parameters of a training of 12 steps of 8 images."""
    return {
        "seed": 0, "total_nimg": 96, "batch_size": 8, "micro_batch_size": 8, "flip": True,
        "warmup_nimg": 16, "schedule": "cosine", "clip_norm": 1.0, "precision": "fp32",
        "compile": False, "recompute_activations": False,
        "log_nimg": 16, "num_probe_images": 8, "checkpoint_nimg": 32,
        "optimizer": {
            "name": "muon", "lr": 1.0e-3, "weight_decay": 0.1, "momentum": 0.95,
            "num_newton_schulz": 5, "betas": (0.9, 0.95), "eps": 1.0e-8,
        },
    }  # fmt: skip


@pytest.fixture
def train_config() -> TrainConfig:
    """A training of 12 steps of 8 images."""
    return TrainConfig.model_validate(train_values())


@pytest.fixture(scope="session")
def one_rank() -> DistributedConfig:
    """This process, on the CPU."""
    return DistributedConfig(device="cpu", num_ranks=1)


class Conf:
    """A copy of the project's configuration that a test may change.

    Attributes:
        path: The folder, for `--conf-source`.
        data: Where the tiny environment keeps its data.
    """

    def __init__(self, path: Path, data: Path) -> None:
        self.path, self.data = path, data
        shutil.copytree(PROJECT / "conf", path, ignore=shutil.ignore_patterns("local"))
        (path / "local").mkdir()
        self.change("tiny/globals.yml", {"data_root": str(data)})

    def change(self, file: str, values: dict[str, Any]) -> None:
        """Overlay values on a YAML file of the copy, which is made when absent."""
        place = self.path / file
        present = yaml.safe_load(place.read_text(encoding="utf-8")) if place.is_file() else {}
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(yaml.safe_dump(_overlaid(present, values)), encoding="utf-8")


def _overlaid(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _overlaid(below.get(key), value) for key, value in above.items()}}


@pytest.fixture
def conf(tmp_path: Path) -> Conf:
    """A copy of the configuration whose tiny data lie under `tmp_path`."""
    return Conf(tmp_path / "conf", tmp_path / "data")


_SAMPLING = {"num_images": 20, "batch_size": 10, "shard_size": 10}
_TRAIN = {
    "total_nimg": 64, "batch_size": 32, "micro_batch_size": 32, "log_nimg": 32,
    "checkpoint_nimg": 32, "warmup_nimg": 0, "num_probe_images": 8,
}  # fmt: skip


class Rows:
    """The rows of the tiny environment, made a matter of seconds, through real Kedro sessions.

    Args:
        conf: The copy of the configuration that they are of.
    """

    def __init__(self, conf: Conf) -> None:
        self.conf = conf

    def shrink(self, *files: str) -> dict[str, list[str]]:
        """Shrink the rows of parameter files, and return their names by file."""
        names = {}
        for file in files:
            written = self._written("tiny", file)
            rows = {name: row for name, row in written.items() if not name.startswith("_")}
            changed = {}
            for name, row in rows.items():
                changed[name] = {"samplings": dict.fromkeys(row["samplings"], _SAMPLING)}
                changed[name] |= {"train": _TRAIN} if row.get("train") else {}
                if row.get("method", {}).get("adversary"):
                    stages = {"rests_nimg": 0, "joins_nimg": 0}  # the second step is SiDA's
                    changed[name] |= {"method": {"adversary": stages}}
            self.conf.change(f"tiny/parameters/{file}.yml", changed)
            names[file] = list(rows)
        return names

    def run(self, *pipelines: str) -> None:
        """Run pipelines in one session."""
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project

        bootstrap_project(PROJECT)
        with KedroSession.create(PROJECT, env="tiny", conf_source=str(self.conf.path)) as session:
            session.run(pipeline_names=list(pipelines))

    def check(self, file: str, rows: list[str]) -> None:
        """Every sampling has samples, as many as asked for, and finite numbers; a line a release.

        Args:
            file: The parameter file of the rows.
            rows: Their names.
        """
        from selfdistill.methods.release import Release

        written, base = self._written("tiny", file), self._written("base", file)
        for row in rows:
            for sampling in written[row]["samplings"]:
                report = self.conf.data / "08_reporting" / row / sampling / "metrics.json"
                found = json.loads(report.read_text())
                assert found["protocol"]["num_samples"] == 20, (row, sampling)
                assert np.isfinite(list(found["metrics"].values())).all(), (row, sampling)
            if "study" in base.get(row, {}):  # in no table
                continue
            release = Release.open(self.conf.data / "08_reporting" / row / "release")
            reads = "text" in release.config["network"]
            images = release.sample(["digit_3", "digit_1"] if reads else [3, 1])
            side = 32 if written[row]["data"] == "digits_32" else 8
            assert images.dtype == np.uint8
            assert images.shape == (2, side, side, 3)

    def figures(self, rows: list[str]) -> list[str]:
        """Return the figures of tiny that show nothing but these rows."""
        found = []
        for name in self._written("tiny", "figures")["figures"]:
            figure = self._written("base", "figures")["figures"][name]
            shown = list(itertools.chain(*figure["lines"].values()))
            shown += figure.get("levels", {}).values()
            if {sampling.split(".")[0] for sampling in shown} <= {*rows}:
                found.append(name)
        return found

    def check_figures(self, figures: list[str]) -> None:
        """No point of these figures is empty."""
        for figure in figures:
            report = self.conf.data / "08_reporting" / figure / "summary.json"
            found = json.loads(report.read_text())
            points = [*itertools.chain(*found["lines"].values()), *found["levels"].values()]
            assert all(point["value"] is not None for point in points), figure

    def _written(self, env: str, file: str) -> dict[str, Any]:
        place = self.conf.path / env / "parameters" / f"{file}.yml"
        return yaml.safe_load(place.read_text(encoding="utf-8"))


@pytest.fixture
def rows(conf: Conf) -> Rows:
    """The rows of the copy of the configuration."""
    return Rows(conf)


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for Inception-v3 under which activations stay tame through all the layers."""
    from selfdistill.networks.inception import InceptionV3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = InceptionV3()
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.1)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def inception_file(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those weights, accepted as if they defined FID."""
    from selfdistill.files import sha256_of
    from selfdistill.metrics.definitions import DEFINITIONS, Definition, Weights

    known = Weights("inception_2015", {random_inception.name: sha256_of(random_inception)})
    resize = DEFINITIONS["inception_2015"].resize
    monkeypatch.setitem(DEFINITIONS, "inception_2015", Definition(known, resize))
    return random_inception


@pytest.fixture
def edm_golden(tmp_path: Path) -> Callable[[str], tuple[Any, dict[str, torch.Tensor]]]:
    """Read a recorded network of EDM, with its weights, and what was recorded of it."""
    goldens = PROJECT.parent / "shared" / "goldens"
    if not goldens.is_dir():
        pytest.skip("no recorded outputs here")

    def read(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
        path = goldens / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            written = json.loads(file.metadata()["config"])
        values = {
            "latent_size": written["img_resolution"],
            "latent_channels": written["img_channels"],
            "width": written["model_channels"],
            "multipliers": written["channel_mult"],
            "num_blocks": written["num_blocks"],
            "attention_sides": written["attn_resolutions"],
            "num_classes": written["label_dim"],
            "conditional": True,
            "dropout": written.get("dropout", 0.0),
        }
        if name == "edm_songunet":
            values |= {"name": "ddpmpp", "augment_dim": written["augment_dim"]}
        elif name == "edm_dhariwal":
            values |= {"name": "adm"}
        else:  # its 32 channels are less than a head: nothing attends, wherever it may
            values |= {"name": "edm2", "logvar_channels": 16, "attention_sides": []}
        network: Any = build_network(NetworkConfig.model_validate(values))
        tensors = load_file(path)
        state = {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
        save_file(state, tmp_path / "network.safetensors")
        network.load_published(tmp_path / "network.safetensors")  # no key too many or too few
        return network.eval(), tensors

    return read
