"""NVIDIA's pickles: read bit for bit, and nothing in them is executed."""

import io
import json
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from selfdistill.files import sha256_of
from selfdistill.networks.edm import EDM
from selfdistill.networks.edm2 import EDM2
from selfdistill.networks.edm_config import DDPMppConfig, EDM2Config
from selfdistill.networks.persistent_pickle import _Reader, read_pickle, read_published

SOURCE = "raise SystemExit('this source must not be executed')"
SMALL = {
    "latent_size": 8, "latent_channels": 3, "width": 16, "multipliers": [1, 2], "num_blocks": 1,
    "attention_sides": [4], "num_classes": 5, "conditional": True, "dropout": 0.0,
}  # fmt: skip


def forge(module, name):
    """Return a stand-in for something of a public package, under its own name."""
    place = sys.modules.setdefault(module, ModuleType(module))

    def function(*_):
        raise AssertionError("the reader must not call this")

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    setattr(place, name, function)
    return function


@pytest.fixture
def packages(monkeypatch):
    for module in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    reconstruct = forge("torch_utils.persistence", "_reconstruct_persistent_obj")

    class EasyDict(dict):
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    sys.modules["dnnlib.util"].EasyDict = EasyDict
    return reconstruct, EasyDict


class Persistent:
    """What `persistence.persistent_class` makes of a module when it is pickled."""

    def __init__(self, reconstruct, module, **kwargs):
        self.reconstruct, self.module, self.kwargs = reconstruct, module, kwargs

    def __reduce__(self):
        state = dict(self.module.__dict__)
        state["_modules"] = {
            name: persistent(self.reconstruct, child) if child is not None else None
            for name, child in self.module._modules.items()
        }
        state |= {"_init_args": (), "_init_kwargs": self.kwargs}
        state = {key: value for key, value in state.items() if not callable(value)}
        state.pop("config", None)
        state.pop("_style", None)
        about = {
            "type": "class", "version": 6, "module_src": SOURCE, "state": state,
            "class_name": type(self.module).__name__,
        }  # fmt: skip
        return self.reconstruct, (about,)


def persistent(reconstruct, module):
    """Torch's own containers are pickled as they are, all else as persistent objects."""
    if not isinstance(module, nn.ModuleDict):
        return Persistent(reconstruct, module)
    container = nn.ModuleDict.__new__(nn.ModuleDict)
    container.__dict__.update(module.__dict__)
    container.__dict__["_modules"] = {
        name: Persistent(reconstruct, child) for name, child in module._modules.items()
    }
    return container


def networks():
    torch.manual_seed(0)
    yield EDM(DDPMppConfig(name="ddpmpp", augment_dim=9, **SMALL))
    yield EDM2(EDM2Config(name="edm2", logvar_channels=8, **{**SMALL, "width": 64})).half()


@pytest.mark.parametrize("number", [0, 1])
def test_a_network_is_read_bit_for_bit(packages, tmp_path, number):
    reconstruct, easy_dict = packages
    network = list(networks())[number]
    whole = {
        "ema": Persistent(reconstruct, network, img_resolution=8, betas=np.zeros(3), label_dim=5),
        "loss_fn": easy_dict(class_name="training.loss.EDMLoss", scale=np.float64(0.5)),
        "mean": np.arange(4.0),
        "augment_pipe": None,
    }
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps(whole))
    found = read_pickle(file)
    assert found.weights.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert found.weights[name].dtype == value.dtype
        assert torch.equal(found.weights[name], value), name
    assert found.class_name == type(network).__name__
    assert found.arguments == {"img_resolution": 8, "label_dim": 5}

    loaded = type(network)(network.config)
    loaded.load_published(file)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.float()), name
    assert (tmp_path / "network.pkl.json").is_file()


def test_it_is_converted_once_and_anew_when_it_is_another_one(packages, tmp_path):
    reconstruct, _ = packages
    network, file = nn.Linear(2, 3), tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"ema": Persistent(reconstruct, network, bias=True)}))
    source = {"url": "https://published.example/network.pkl", "sha256": sha256_of(file)}
    (tmp_path / "network.pkl.origin.json").write_text(json.dumps(source))
    first = read_published(file).weights
    assert torch.equal(first["weight"], network.weight)
    about = json.loads((tmp_path / "network.pkl.json").read_text())
    assert about["class_name"] == "Linear"
    assert about["arguments"] == {"bias": True}
    assert about["url"] == source["url"]
    made = (tmp_path / "network.pkl.safetensors").stat().st_mtime_ns
    read_published(file)
    assert (tmp_path / "network.pkl.safetensors").stat().st_mtime_ns == made

    other = nn.Linear(2, 3)
    file.unlink()
    file.write_bytes(pickle.dumps({"ema": Persistent(reconstruct, other), "more": 1}))
    assert torch.equal(read_published(file).weights["weight"], other.weight)
    about = json.loads((tmp_path / "network.pkl.json").read_text())
    assert (about["sha256"], about["url"]) == (sha256_of(file), None)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_what_a_network_does_not_need_is_refused_and_not_run(packages, tmp_path):
    import os

    reconstruct, _ = packages
    witness, file = tmp_path / "witness", tmp_path / "network.pkl"
    inner = pickle.dumps(Malicious(os.mkdir, str(witness)), protocol=2)
    for attack, name in (
        (Malicious(os.mkdir, str(witness)), "mkdir"),
        (Malicious(eval, f"__import__('os').mkdir({str(witness)!r})"), r"builtins\.eval"),
        (Malicious(torch.load, "x"), r"torch.*load"),
        (Malicious(torch.storage._load_from_bytes, inner), "the bytes of a tensor"),
    ):
        content = {"ema": Persistent(reconstruct, nn.Linear(1, 1)), "x": attack}
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=rf"network\.pkl is not a pickle of a network.*{name}"):
            read_pickle(file)
        assert not witness.exists()


def test_a_method_that_was_looked_up_is_nothing(packages, tmp_path):
    """As in SiDA's files of EDM2, whose networks carry a bound hook."""
    reconstruct, _ = packages
    network, file = nn.Linear(2, 3), tmp_path / "network.pkl"
    network.hook = Malicious(getattr, "text", "upper")
    file.write_bytes(pickle.dumps({"ema": Persistent(reconstruct, network)}))
    assert set(read_pickle(file).weights) == {"weight", "bias"}


def test_other_files_are_named(packages, tmp_path):
    file = tmp_path / "network.pkl"
    with pytest.raises(FileNotFoundError):
        read_pickle(file)
    file.write_bytes(b"\x80\x04half")
    with pytest.raises(ValueError, match=r"network\.pkl is not a pickle of a network"):
        read_pickle(file)
    file.write_bytes(pickle.dumps({"G": 1}))
    with pytest.raises(ValueError, match="it holds no network under 'ema'"):
        read_pickle(file)
    network = next(networks())
    file.unlink()
    file.write_bytes(pickle.dumps({"ema": Persistent(packages[0], nn.Linear(2, 3))}))
    with pytest.raises(ValueError, match=r"is not a ddpmpp of .* parameters; missing: model\."):
        network.load_published(file)


def saved(tensor):
    file = io.BytesIO()
    torch.save(tensor.storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_not_what_they_say_are_refused(tmp_path):
    file = tmp_path / "network.pkl"
    storage = saved(torch.zeros(4))
    for offset, size, stride, message in (
        (0, (10**6, 10**6), (0, 0), r"a tensor of \(1000000, 1000000\) in it is larger"),
        (2, (4,), (1,), "a tensor of .* is larger"),
        (-1, (2,), (1,), "a tensor in it has no storage, or no shape"),
        (0, (2, 2), (1, 2), "a tensor of .* in it has strides"),
    ):
        file.write_bytes(_tensor_pickle(storage, offset, size, stride))
        with pytest.raises(ValueError, match=message):
            read_pickle(file)


def _tensor_pickle(storage, offset, size, stride):
    """Return a pickle of {"ema": <tensor>}, written by hand."""
    return (
        b"\x80\x04}" + b"X\x03\x00\x00\x00ema"
        + b"ctorch._utils\n_rebuild_tensor_v2\n"
        + b"(ctorch.storage\n_load_from_bytes\n"
        + pickle.dumps((storage,), 3)[2:-1] + b"R"
        + pickle.dumps(offset, 2)[2:-1] + pickle.dumps(size, 2)[2:-1]
        + pickle.dumps(stride, 2)[2:-1] + b"\x89}tRs."
    )  # fmt: skip


class Level:
    """A persistent module that holds one child under two names."""

    def __init__(self, reconstruct, child):
        self.reconstruct, self.child = reconstruct, child

    def __reduce__(self):
        state = {"_parameters": {}, "_modules": {"a": self.child, "b": self.child}}
        about = {"type": "class", "class_name": "Level", "module_src": "", "state": state}
        return self.reconstruct, (about,)


def test_modules_that_stand_in_it_twice_or_too_deep_are_refused(packages, tmp_path):
    reconstruct, file = packages[0], tmp_path / "network.pkl"
    shared = Persistent(reconstruct, nn.Linear(1, 1))
    for _ in range(40):
        shared = Level(reconstruct, shared)
    file.write_bytes(pickle.dumps({"ema": shared}))
    with pytest.raises(ValueError, match="stands in it twice, or too deep"):
        read_pickle(file)


def test_arrays_of_numpy_are_not_built(packages, tmp_path):
    """Their types take flags from a file, by which raw bytes would pass for objects."""
    reconstruct, file = packages[0], tmp_path / "network.pkl"
    content = {"ema": Persistent(reconstruct, nn.Linear(1, 1)), "x": np.array([1, "a"], object)}
    file.write_bytes(pickle.dumps(content))
    assert set(read_pickle(file).weights) == {"weight", "bias"}
    with file.open("rb") as stream:
        assert not isinstance(_Reader(stream).load()["x"], np.ndarray)
