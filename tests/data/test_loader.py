import numpy as np
import pytest
import torch

from selfdistill.data.loader import Loader
from selfdistill.data.shards import ShardWriter, finalize

N = 37


def write_set(directory, rows, **about):
    for shard, part in enumerate((slice(0, 20), slice(20, N))):
        with ShardWriter(directory, shard, rows.shape[1:], str(rows.dtype)) as writer:
            for index in range(*part.indices(N)):
                writer.append(f"{index}", index % 3, rows[index])
    shape = rows.shape[1:]
    return finalize(directory, num_shards=2, shape=shape, dtype=str(rows.dtype), about=about)


@pytest.fixture
def loader(tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    tokens = generator.normal(size=(N, 2, 4, 5)).astype(np.float16)
    images = write_set(tmp_path / "images", pixels)
    sets = {
        "images": images,
        "features": write_set(tmp_path / "features", tokens, images=images.fingerprint),
    }
    loader = Loader(**sets, seed=7, flip=True, device=torch.device("cpu"))
    return loader, pixels, tokens


def test_each_epoch_shows_each_image_once_in_another_order(loader):
    loader, _, _ = loader
    epochs = [loader.indices(np.arange(N) + N * epoch) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_across_epochs_is_the_end_of_one_and_the_start_of_the_next(loader):
    loader, _, _ = loader
    across = loader.indices(np.arange(N - 3, N + 3))
    assert np.array_equal(across[:3], loader.indices(np.arange(N - 3, N)))
    assert np.array_equal(across[3:], loader.indices(np.arange(N, N + 3)))


def test_any_split_of_the_stream_gives_the_same_samples(loader):
    loader, _, _ = loader
    whole = loader.load(np.arange(50, 62))
    parts = list(loader.stream(iter([np.arange(50, 55), np.arange(55, 62)])))
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
    assert torch.equal(whole.features, torch.cat([part.features for part in parts]))
    eps = torch.cat([part.draws.normal("eps", 3) for part in parts])
    assert torch.equal(whole.draws.normal("eps", 3), eps)


def test_images_labels_and_features_belong_together_flipped_or_not(loader):
    loader, pixels, tokens = loader
    places = np.arange(N)
    batch = loader.load(places)
    flipped = 0
    for row, index in enumerate(loader.indices(places)):
        x = torch.from_numpy(pixels[index]).permute(2, 0, 1).float() / 127.5 - 1
        mirrored = bool(torch.equal(batch.images[row], x.flip(-1)))
        flipped += mirrored
        assert mirrored or torch.equal(batch.images[row], x)
        expected = torch.from_numpy(tokens[index][int(mirrored)]).float()
        assert torch.equal(batch.features[row], expected)
        assert int(batch.labels[row]) == index % 3
    assert 8 < flipped < 29


def test_another_seed_is_another_order(loader):
    loader, _, _ = loader
    other = Loader(loader.images, loader.features, 8, True, torch.device("cpu"))
    assert not np.array_equal(loader.indices(np.arange(N)), other.indices(np.arange(N)))


def test_features_of_other_images_are_refused_even_when_the_count_fits(loader, tmp_path):
    loader, pixels, _ = loader
    other = write_set(tmp_path / "other", 255 - pixels)
    with pytest.raises(ValueError, match="made from other images"):
        Loader(other, loader.features, 0, False, torch.device("cpu"))
