"""A run that could only fail hours later does not start."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline

from selfdistill.hooks import PreflightHooks
from selfdistill.io.asset import AssetDataset
from selfdistill.io.raw_images import RawImagesDataset
from selfdistill.io.report import ArraysDataset
from selfdistill.pipelines import evaluate, features, latents, preprocess, train
from selfdistill.settings import CONFIG_LOADER_ARGS

VAES = ("absent", "random_vae_tiny", "sd_v1_5", "sd_vae_ft_ema", "sd_vae_ft_mse")


@pytest.fixture
def preflight(project):
    parameters = OmegaConfigLoader(str(project / "conf"), env="tiny", **CONFIG_LOADER_ARGS)[
        "parameters"
    ]

    def preflight(pipeline, namespace, catalog=None, run_params=None, shared=None, **changes):
        hooks = PreflightHooks()
        loader = {"parameters": parameters | changes}
        hooks.after_context_created(SimpleNamespace(config_loader=loader))
        whole = Pipeline(pipeline, namespace=namespace, parameters=shared)
        hooks.before_pipeline_run(run_params or {}, whole, catalog or DataCatalog())

    return preflight


def test_a_run_that_can_succeed_starts(preflight):
    preflight(train.create_pipeline((), teacher="cached"), "dsd_s")
    preflight(features.create_pipeline(), "digits_32")


def test_ranks_that_do_not_divide_the_batch_stop_the_run(preflight):
    with pytest.raises(ValueError, match="does not divide into 7 ranks"):
        preflight(
            train.create_pipeline((), teacher="cached"),
            "dsd_s",
            distributed={"device": "cpu", "num_ranks": 7},
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_stops_the_run(preflight):
    with pytest.raises(ValueError, match="torch sees no GPU"):
        preflight(
            train.create_pipeline((), teacher="cached"), "dsd_s", distributed={"device": "cuda"}
        )


def test_absent_teacher_weights_stop_the_run(preflight):
    teacher = {
        "architecture": "vit_small_patch16_dinov3", "weights": "nowhere.safetensors",
        "patch_size": 16, "dim": 768, "batch_size": 8,
        "cache": {"mirrored": True, "dtype": "float16"},
    }  # fmt: skip
    shared = {"params:teacher": "params:teachers.dinov3_vitb16"}
    teachers = {"random_dinov3_tiny": {**teacher, "dim": 64, "patch_size": 8}}
    for pipeline in (features.create_pipeline(), train.create_pipeline((), teacher="online")):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
            preflight(
                pipeline, "dsd_s", shared=shared, teachers={**teachers, "dinov3_vitb16": teacher}
            )


def test_an_absent_vae_stops_the_run(preflight):
    shared = {"params:vae": "params:vaes.absent"}
    vaes = {name: {"weights": "./nowhere", "batch_size": 8} for name in VAES}
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        preflight(latents.create_pipeline(), "a.sd", shared=shared, vaes=vaes)


def test_an_absent_text_encoder_stops_the_run(preflight, project):
    rows = yaml.safe_load((project / "conf/tiny/parameters/ssd.yml").read_text())
    row = rows["sd15"]
    network = {"name": "text_unet", **row["network"], "text": {"weights": "./nowhere"}}
    method = {"name": "diffusion", "class_dropout": 0.1, "ema_decay": None}
    changed = {"study": "s", "data": "digits_8", "network": network, "method": method}
    changed["train"] = {**row["train"]}
    with pytest.raises(FileNotFoundError, match="text encoder weights nowhere: no such directory"):
        preflight(train.create_pipeline((), teacher=None), "prompted", prompted=changed)


def test_weights_that_are_not_what_they_should_be_stop_the_run(preflight, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"half a download")
    entry = AssetDataset(url=None, filepath=str(file), sha256="0" * 64)
    stage = evaluate.create_pipeline(["inception_2015"])
    shared = {"weights.inception_2015": "weights.inception_2015"}
    catalog = DataCatalog({"weights.inception_2015": entry})
    with pytest.raises(DatasetError, match=r"weights\.pth"):
        preflight(Pipeline(stage, namespace="dsd_s.plain", inputs=shared), None, catalog)


def test_absent_raw_images_stop_the_run(preflight, tmp_path):
    """Those of reconstruction, say, which are needed when a training of days has ended."""
    entry = RawImagesDataset(path=str(tmp_path / "nowhere"), layout="class_folders")
    with pytest.raises(DatasetError, match="nowhere: no raw images here"):
        preflight(
            Pipeline(
                preprocess.create_pipeline(None),
                namespace="imagenet_val_256",
                inputs={"raw": "raw.imagenet_val"},
            ),
            None,
            DataCatalog({"raw.imagenet_val": entry}),
        )


def test_a_sweep_does_not_start_without_the_reference_that_it_ends_with(preflight, tmp_path):
    reference = ArraysDataset(filepath=tmp_path / "reference.npz")
    with pytest.raises(DatasetError, match=r"reference\.npz"):
        preflight(
            evaluate.create_pipeline([]), "dsd_s", DataCatalog({"dsd_s.reference": reference})
        )
