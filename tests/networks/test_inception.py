import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as resize_oracle,
)

from selfdistill.networks.inception import TAPS, InceptionV3, fold, load_inception, resize_tf1
from selfdistill.networks.inception_graph import NODES

GENUINE = (
    Path(__file__).parents[2].parent / "shared" / "data" / "inception_2015_to_mixed_7a.safetensors"
)
ORACLE_TAPS = {"pool_768": "768", "pool_3": "2048", "logits": "logits_unbiased"}


def random_network() -> InceptionV3:
    """Weights that keep activations near 1 through all layers."""
    generator = torch.Generator().manual_seed(0)
    network = InceptionV3().eval().requires_grad_(False)
    for key, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("conv.weight"):
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        elif key.endswith("bn.weight"):
            value.copy_(1 + 0.1 * noise)
        elif key.endswith("running_var"):
            value.copy_(0.5 + noise.abs())
        elif value.is_floating_point():
            value.copy_(0.1 * noise)
    return network


def photos(num: int, height: int = 256, width: int = 256) -> Tensor:
    """Smooth colours under noise, uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(num)
    coarse = torch.rand(num, 3, 8, 8, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = smooth + 8 * torch.randn(smooth.shape, generator=generator)
    return noisy.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def relative_rms(value: Tensor, reference: Tensor) -> float:
    error = (value.double() - reference.double()).square().mean() / reference.double().var()
    return float(error.sqrt())


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    return random_network()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photos(3)


@pytest.fixture(scope="module")
def exact(network, images) -> dict[str, Tensor]:
    return network(images)


@pytest.fixture(scope="module")
def weights_file(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def oracle(weights_file) -> FeatureExtractorInceptionV3:
    return FeatureExtractorInceptionV3(
        "oracle", list(ORACLE_TAPS.values()), feature_extractor_weights_path=str(weights_file)
    )


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (256, 256), (299, 299), (300, 200), (299, 64), (512, 512)]
)
def test_resize_is_tensorflows_to_the_last_bit(height, width):
    x = photos(2, height, width).float()
    expected = resize_oracle(x.permute(0, 3, 1, 2), size=(299, 299), align_corners=False)
    assert torch.equal(resize_tf1(x, 299), expected.permute(0, 2, 3, 1))


def test_resize_leaves_the_right_size_alone():
    x = torch.rand(1, 299, 299, 3)
    assert resize_tf1(x, 299) is x


def test_features_are_torch_fidelitys(exact, oracle, images):
    expected = dict(zip(ORACLE_TAPS, oracle(images.permute(0, 3, 1, 2)), strict=True))
    for tap, value in expected.items():
        assert exact[tap].dtype == torch.float32
        assert value.std() > 0.1  # activations neither die nor explode
        assert relative_rms(exact[tap], value) < 1e-6  # on the CPUs at hand they are equal


def test_layout_is_torch_fidelitys(network, oracle):
    ours, theirs = network.state_dict(), oracle.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in oracle.parameters()
    )


def test_shapes_of_the_features(exact):
    assert tuple(exact) == TAPS
    assert {tap: tuple(value.shape) for tap, value in exact.items()} == {
        "pool_768": (3, 768),
        "spatial": (3, 2023),
        "pool_3": (3, 2048),
        "logits": (3, 1008),
    }


def test_fast_profile_gives_the_same_features(network, exact, images):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast = fold(network)
    folded = fast(images)
    for tap in TAPS:
        assert relative_rms(folded[tap], exact[tap]) < 1e-5
    alone = fast(images, ["spatial"])["spatial"]
    assert relative_rms(alone, exact["spatial"]) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())


def test_fast_profile_keeps_the_order_of_a_batch_of_several_pieces(network):
    x = photos(10, 32, 32)
    fast = fold(network)
    together = fast(x, ["pool_768"])["pool_768"]
    assert relative_rms(together[9:], fast(x[9:], ["pool_768"])["pool_768"]) < 1e-5


def test_spatial_is_the_first_channels_of_a_branch_in_the_order_of_the_pixels(network, images):
    seen = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *args: seen.append(args[2]))
    whole = network(images)["spatial"]
    alone = network(images, ["spatial"])["spatial"]
    hook.remove()
    assert [tuple(output.shape) for output in seen] == [(3, 192, 17, 17)] * 2
    expected = [
        torch.stack([o[:, channel, row, column] for row, column, channel in positions()], dim=1)
        for o in seen
    ]
    assert torch.equal(whole, expected[0])
    assert torch.equal(alone, expected[1])
    assert torch.equal(alone, whole)


def positions() -> list[tuple[int, int, int]]:
    return [(row, column, c) for row in range(17) for column in range(17) for c in range(7)]


@pytest.mark.parametrize(
    ("taps", "last"),
    [
        (["spatial"], "Mixed_6d.branch1x1"),
        (["spatial", "pool_768"], "Mixed_6e.branch_pool"),
        (["pool_3"], "Mixed_7c.branch_pool"),
    ],
)
def test_nothing_runs_after_the_last_tap(network, exact, images, taps, last):
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in network.named_modules()
        if name.split(".")[-1].startswith("branch")
    ]
    features = network(images[:1], taps)
    for hook in hooks:
        hook.remove()
    assert ran[-1] == last
    assert set(features) == set(taps)
    assert all(relative_rms(features[tap], exact[tap][:1]) < 1e-6 for tap in taps)


def test_float_images_are_as_good_as_bytes(network):
    x = photos(1, 40, 30)
    one, two = network(x, ["pool_768"]), network(x.float(), ["pool_768"])
    assert torch.equal(one["pool_768"], two["pool_768"])


@pytest.mark.parametrize(
    ("images", "taps", "message"),
    [
        (torch.zeros(1, 32, 32, 3), ["pool3"], "unknown taps.*pool3.*pool_3"),
        (torch.zeros(1, 3, 32, 32), TAPS, r"\(N, H, W, 3\).*\[1, 3, 32, 32\]"),
        (torch.zeros(32, 32, 3), TAPS, r"\(N, H, W, 3\)"),
        (torch.zeros(1, 32, 32, 3, dtype=torch.int64), TAPS, "uint8 or float32"),
    ],
)
def test_wrong_inputs_are_refused(network, images, taps, message):
    with pytest.raises(ValueError, match=message):
        network(images, taps)


def assert_same(loaded: InceptionV3, network: InceptionV3) -> None:
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_files_of_torch_load_and_leave_the_global_generator_alone(network, weights_file):
    before = torch.random.get_rng_state()
    assert_same(load_inception(weights_file), network)
    assert torch.equal(before, torch.random.get_rng_state())


def test_auxiliary_logits_and_counters_of_a_file_are_ignored(network, tmp_path):
    weights = {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    extra = {"AuxLogits.fc.bias": torch.zeros(3), "x.num_batches_tracked": torch.tensor(5)}
    safetensors.torch.save_file(weights | extra, tmp_path / "weights.safetensors")
    assert_same(load_inception(tmp_path / "weights.safetensors"), network)


def test_other_layouts_are_refused_by_name(network, tmp_path):
    weights = network.state_dict()
    weights["surplus"] = weights.pop("fc.bias")
    weights["fc.weight"] = torch.zeros(1000, 2048)
    path = tmp_path / "other.pth"
    torch.save(weights, path)
    with pytest.raises(
        ValueError, match=r"missing: fc\.bias; unexpected: surplus; of.*fc\.weight"
    ) as e:
        load_inception(path)
    assert str(path) in str(e.value)
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"missing: Conv2d_1a_3x3.bn.bias, .* and \d+ more$"):
        load_inception(path)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))]
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, save):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    save({"fc.bias": Payload(trace)}, path)
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_inception(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"fc.bias": 1}, [torch.zeros(1)], {1: torch.zeros(1)}])
def test_what_is_no_tensor_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth holds something else"):
        load_inception(tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".pb"])
@pytest.mark.parametrize("content", [b"", b"\x0a", b"garbage" * 100, b"PK\x03\x04", b"\x80\x02."])
def test_damaged_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_inception(path)


def test_a_truncated_file_is_refused(weights_file, tmp_path):
    path = tmp_path / "short.pth"
    path.write_bytes(weights_file.read_bytes()[:1_000_000])
    with pytest.raises(ValueError, match=r"short\.pth"):
        load_inception(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pb"])
def test_an_absent_file_is_said_to_be_absent(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        load_inception(tmp_path / f"absent{suffix}")


# A GraphDef, written from graph.proto and its kin.


def varint(number: int) -> bytes:
    head, rest = number & 0x7F, number >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def constant(name: str, shape: tuple[int, ...], values: bytes, dtype: int = 1) -> bytes:
    dimensions = b"".join(message(2, integer(1, size)) for size in shape)
    tensor = message(8, integer(1, dtype) + message(2, dimensions) + values)
    attributes = [(b"dtype", integer(6, dtype)), (b"value", tensor)]
    return message(
        1,
        message(1, name.encode())
        + message(2, b"Const")
        + b"".join(message(5, message(1, key) + message(2, value)) for key, value in attributes),
    )


def raw(value: Tensor) -> bytes:
    return message(4, value.contiguous().numpy().tobytes())


def graph(network: InceptionV3) -> bytes:
    """Constants as the release has them, among nodes of other kinds."""
    nodes = [
        message(1, message(1, b"DecodeJpeg/contents") + message(2, b"Placeholder")),
        constant("ResizeBilinear/size", (2,), message(4, struct.pack("<2i", 299, 299)), dtype=3),
        constant("Sub/y", (), varint(5 << 3 | 5) + struct.pack("<f", 128)),
    ]
    for key, node in NODES.items():
        value = network.state_dict()[key]
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
        nodes.append(constant(node, tuple(value.permute(order).shape), raw(value.permute(order))))
        nodes.append(message(1, message(1, f"{node}/read".encode()) + message(2, b"Identity")))
    return b"".join(nodes) + message(4, integer(1, 8))  # GraphDef.versions


def test_the_released_graph_is_read_bit_for_bit(network, tmp_path):
    path = tmp_path / "classify_image_graph_def.pb"
    path.write_bytes(graph(network))
    assert_same(load_inception(path), network)


def test_every_weight_has_a_node_of_its_own(network):
    trained = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    assert NODES.keys() == trained
    assert len(set(NODES.values())) == len(NODES)


def test_lists_of_values_are_read_and_one_value_fills_the_shape(network, tmp_path):
    bias = torch.arange(1008.0)
    path = tmp_path / "lists.pb"
    whole = graph(network)  # the last of two nodes of a name counts
    ones = constant("conv/batchnorm/gamma", (32,), varint(5 << 3 | 5) + struct.pack("<f", 1))
    packed = constant("softmax/biases", (1008,), message(5, bias.numpy().tobytes()))
    path.write_bytes(whole + ones + packed)
    loaded = load_inception(path)
    assert torch.equal(loaded.fc.bias, bias)
    assert torch.equal(loaded.state_dict()["Conv2d_1a_3x3.bn.weight"], torch.ones(32))


@pytest.mark.parametrize(
    ("shape", "values", "text"),
    [
        ((3,), raw(torch.zeros(4)), "shape"),
        ((3,), b"", "has 0 values"),
        ((1,), message(4, b"abc"), "not float32"),
        ((1,), integer(4, 7), "a number where a message belongs"),
    ],
)
def test_constants_that_contradict_themselves_are_refused(tmp_path, shape, values, text):
    path = tmp_path / "odd.pb"
    path.write_bytes(constant("softmax/biases", shape, values))
    with pytest.raises(ValueError, match=rf"odd\.pb.*{text}"):
        load_inception(path)


def test_a_graph_of_another_network_is_refused(tmp_path):
    path = tmp_path / "other.pb"
    path.write_bytes(constant("conv/conv2d_params", (1,), raw(torch.zeros(1))))
    with pytest.raises(ValueError, match=r"missing: .* of another shape: Conv2d_1a_3x3\.conv"):
        load_inception(path)


@pytest.mark.data
@pytest.mark.skipif(not GENUINE.is_file(), reason="the genuine weights to Mixed_7a are not here")
def test_genuine_weights_tell_images_apart():
    network = InceptionV3().eval()
    keys = network.load_state_dict(safetensors.torch.load_file(GENUINE), strict=False)
    assert not keys.unexpected_keys
    absent = {key.split(".")[0] for key in keys.missing_keys if "num_batches" not in key}
    assert absent == {"Mixed_7b", "Mixed_7c", "fc"}
    fast = fold(network)
    x = photos(3)
    exact, folded = network(x, ["spatial", "pool_768"]), fast(x, ["spatial", "pool_768"])
    for tap, value in exact.items():
        assert torch.isfinite(value).all()
        assert torch.pdist(value).min() > 1e-2 * value.norm(dim=1).max()
        assert relative_rms(folded[tap], value) < 1e-4
