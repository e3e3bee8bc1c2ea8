"""What the loader and the encoding stages do beside a GPU."""

import numpy as np
import pytest
import torch

from selfdistill.data.encoding import Encoding, encode_share
from selfdistill.data.loader import Loader
from selfdistill.data.shard_writer import finalize
from selfdistill.data.shards import Shards
from selfdistill.distributed import World
from selfdistill.files import write_json

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def places(num_batches, size=8):
    return iter([np.arange(i * size, (i + 1) * size) for i in range(num_batches)])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_batches_on_the_gpu_are_those_of_the_cpu(images, features, num_threads):
    sets = {"images": images, "features": features, "seed": 4, "flip": True}
    cpu = Loader(**sets, device=torch.device("cpu"))
    gpu = Loader(**sets, device=torch.device("cuda", 0), num_threads=num_threads)
    for ours, theirs in zip(gpu.stream(places(25)), cpu.stream(places(25)), strict=True):
        assert ours.images.device.type == "cuda"
        torch.testing.assert_close(ours.images.cpu(), theirs.images, atol=1e-6, rtol=0)
        assert torch.equal(ours.features.cpu(), theirs.features)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert torch.equal(ours.draws.index.cpu(), theirs.draws.index)


def test_what_is_computed_meanwhile_never_meets_a_batch_half_arrived(images, features):
    """Memory that is reused too early would show as a changed batch."""
    device = torch.device("cuda", 0)
    loader = Loader(images, features, seed=0, flip=True, device=device)
    busy = torch.randn(2048, 2048, device=device)
    sums = []
    for batch in loader.stream(places(60)):
        busy = (busy @ busy).tanh()  # the GPU is behind the host all the time
        sums.append((batch.images.double().sum(), batch.features.double().sum()))
    cpu = Loader(images, features, seed=0, flip=True, device=torch.device("cpu"))
    for found, batch in zip(sums, cpu.stream(places(60)), strict=True):
        assert found[0].item() == pytest.approx(batch.images.double().sum().item(), abs=1e-3)
        assert found[1].item() == pytest.approx(batch.features.double().sum().item(), abs=1e-3)


def test_shards_encoded_on_the_gpu_are_those_of_the_cpu(images, tmp_path):
    encoding = Encoding((3, 16), "float16", mirrored=True, batch_size=7)
    made = {}
    for name in ("cpu", "cuda"):
        directory = tmp_path / name
        spec = tmp_path / f"{name}.json"
        values = {
            "images": str(images.path), "strict": True, "directory": str(directory),
            "encoding": encoding._asdict(), "shards": list(range(len(images.shard_sizes))),
        }  # fmt: skip
        write_json(spec, values)
        world = World(0, 1, torch.device(name))
        encode_share(spec, world, lambda values, side: lambda x: (x.mean(-1) / 255).half())
        finalize(
            directory, num_shards=len(images.shard_sizes), shape=encoding.record_shape,
            dtype="float16",
        )  # fmt: skip
        made[name] = Shards.open(directory).read(np.arange(len(images)))
    np.testing.assert_allclose(made["cuda"], made["cpu"], atol=1e-3)
    assert made["cpu"].shape == (len(images), 2, 3, 16)
