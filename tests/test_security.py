"""Nothing that is loaded can run anything, write elsewhere, or be reached from another machine."""

import io
import pickle
import re
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from selfdistill import config_loader, sources
from selfdistill.data.readers import open_reader
from selfdistill.data.shards import Shards
from selfdistill.files import read_arrays, sha256_of
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.registry import build_method
from selfdistill.networks.dinov2 import load_dinov2
from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.inception import load_inception
from selfdistill.networks.teacher_config import FeatureCacheConfig, TeacherConfig
from selfdistill.networks.vae import VAE
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.networks.weights import read_weights


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """What a pickle that runs leaves behind."""
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(trace)))  # it does run where nobody takes care
    assert trace.exists()
    trace.unlink()
    return trace


def teacher(file):
    config = TeacherConfig(
        architecture="vit_small_patch16_dinov3",
        weights=str(file),
        patch_size=16,
        dim=384,
        batch_size=1,
        cache=FeatureCacheConfig(mirrored=False, dtype="float16"),
    )
    return Teacher(config, 32)


WEIGHTS = {
    "of a teacher": teacher,
    "of Inception": load_inception,
    "of DINOv2": load_dinov2,
    "of a perceptual network": read_weights,
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_weights_run_nothing(tmp_path, trace, save, kind, suffix):
    file = tmp_path / f"weights{suffix}"
    save({"weight": Payload(trace)}, file)
    with pytest.raises(ValueError, match="weights"):
        WEIGHTS[kind](file)
    assert not trace.exists()


def test_a_vae_is_read_from_safetensors_alone(tmp_path, trace):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    torch.save({"weight": Payload(trace)}, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="is a pickle, and never read"):
        VAE(VAEConfig(weights=str(tmp_path / "vae"), batch_size=1))
    assert not trace.exists()


@pytest.fixture
def checkpoint(tmp_path, network, method):
    return Checkpoint.write(
        tmp_path / "checkpoint",
        build_method(network, method),
        network_config=network,
        method_config=method,
        about={"nimg": 1},
    )


def test_a_checkpoint_whose_weights_are_a_pickle_runs_nothing(checkpoint, trace):
    torch.save({"weight": Payload(trace)}, checkpoint.path / "weights.safetensors")
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(torch.device("cpu"))
    checkpoint.about["sha256"] = sha256_of(checkpoint.path / "weights.safetensors")
    with pytest.raises(Exception, match="deserializing header"):
        checkpoint.load(torch.device("cpu"))
    assert not trace.exists()


def test_the_state_of_an_unfinished_training_runs_nothing(
    tmp_path, trace, images, features, network, method, train_config, one_rank, monkeypatch
):
    from selfdistill.pipelines.train import job

    def stop(*_):
        raise SystemExit

    arguments = (images, features, network, method, train_config, one_rank, tmp_path / "scratch")
    with monkeypatch.context() as patch:
        patch.setattr(job, "run_job", stop)
        with pytest.raises(SystemExit):
            job.train_row(*arguments, {})
    (directory,) = (path for path in (tmp_path / "scratch").iterdir() if path.is_dir())
    torch.save({"nimg": 8, "method": Payload(trace)}, directory / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        job.train_row(*arguments, {})
    assert not trace.exists()


def test_arrays_run_nothing(tmp_path, trace):
    file = tmp_path / "reference.npz"
    np.savez(file, mu=np.array([Payload(trace)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(file)
    assert not trace.exists()


def test_shards_run_nothing(tmp_path, trace, shard_set):
    """Neither their data, nor what stands beside them."""
    shards = shard_set(tmp_path / "set", np.zeros((4, 2, 2, 3), np.uint8))
    payload = pickle.dumps(Payload(trace))
    for file in sorted(shards.path.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(payload + whole[len(payload) :])
        with suppress(ValueError, OSError):  # what is not looked at need not be noticed
            Shards.open(shards.path, strict=True).read(range(4))
        file.write_bytes(whole)
    assert not trace.exists()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["../outside.JPEG", "/outside.JPEG", "n01440764/../../up.JPEG"])
def test_a_tar_writes_nothing_whatever_its_members_are_called(tmp_path, name):
    folder = tmp_path / "raw"
    folder.mkdir()
    with tarfile.open(folder / "n01440764.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(jpeg())
        archive.addfile(member, io.BytesIO(jpeg()))
    before = sorted(tmp_path.rglob("*"))
    (image,) = open_reader(folder, "imagenet_tar").iterate()
    assert image.data == jpeg()
    assert sorted(tmp_path.rglob("*")) == before


def test_an_npz_is_never_unpacked(tmp_path):
    from selfdistill.data.npz_images import NpzImages

    file = tmp_path / "in" / "samples.npz"
    file.parent.mkdir()
    np.savez(file, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../outside.npy", b"\x93NUMPY")
    before = sorted(tmp_path.rglob("*"))
    assert NpzImages.open(file).read([3]).shape == (1, 8, 8, 3)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_module_of_ours_unpickles_or_loads_with_pickles_allowed():
    """But for readers of NVIDIA's pickles and of arrays, which know a few harmless names."""
    for file in sorted(sources._ROOT.rglob("selfdistill/**/*.py")):
        text = sources.without_remarks(file.read_text())
        if file.name in ("persistent_pickle.py", "array_pickle.py"):
            used = set(re.findall(r"pickle\.[a-zA-Z]+(?=[(),])", text))
            assert used == {"pickle.Unpickler", "pickle.UnpicklingError"}
        else:
            imported = r"^\s*(import|from) (pickle|joblib|dill|shelve)\b"
            assert not re.search(imported, text, re.M), file
        assert "allow_pickle=True" not in text, file
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, (file, call)
        assert not re.search(r"yaml\.(unsafe|full)_load|(Unsafe|Full)Loader", text), file
        for call in re.findall(r"yaml\.load\([^)]*\)", text):
            assert call.endswith(", _Loader)"), (file, call)
    assert issubclass(config_loader._Loader, yaml.CSafeLoader)


def test_the_file_of_changed_parameters_runs_nothing(tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "params.yaml"
    file.write_text(f'base: {{seed: !!python/object/apply:os.system ["touch {trace}"]}}')
    with pytest.raises(ValueError, match="is no YAML"):
        config_loader.read_changes(file)
    assert not trace.exists()


def test_servers_are_opened_on_the_loopback_alone(project):
    makefile = (project / "Makefile").read_text()
    servers = re.findall(r"\$\(BIN\)/(?:mlflow ui|kedro viz run)[^\n]*", makefile)
    assert len(servers) >= 2
    assert all("--host 127.0.0.1" in server for server in servers), servers
