from dataclasses import replace

import numpy as np
import pytest
import torch

from selfdistill.data.latents import CONVENTIONS, unscale_latents
from selfdistill.data.loader import Loader
from selfdistill.data.shard_writer import ShardWriter, finalize
from selfdistill.data.tokens import pack_int8, unpack_int8

N = 37


def write_set(directory, rows, about=None):
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
        "features": write_set(tmp_path / "features", tokens, {"images": images.fingerprint}),
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


def test_number_of_threads_changes_nothing(loader):
    loader, _, _ = loader
    one, several = (
        replace(loader, num_threads=number).load(np.arange(30, 60)) for number in (1, 4)
    )
    assert torch.equal(one.images, several.images)
    assert torch.equal(one.features, several.features)
    assert torch.equal(one.labels, several.labels)


def test_tokens_in_eight_bits_are_unpacked(loader, tmp_path):
    loader, _, tokens = loader
    packed = pack_int8(torch.from_numpy(tokens)).numpy()
    about = {"images": loader.images.fingerprint}
    other = replace(loader, features=write_set(tmp_path / "packed", packed, about))
    expected = unpack_int8(pack_int8(loader.load(np.arange(9)).features))
    torch.testing.assert_close(other.load(np.arange(9)).features, expected)


def test_a_teacher_at_work_sees_the_flipped_pixels(loader):
    loader, _, _ = loader

    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.mean((1, 2))[..., None]  # (N, W, 1)

    online = replace(loader, features=None, teacher=Mean())
    batch = online.load(np.arange(N))
    grey = (batch.images + 1).mul(127.5).mean((1, 2))[..., None]
    torch.testing.assert_close(batch.features, grey, atol=1e-3, rtol=1e-5)
    assert batch.features.shape == (N, 8, 1)


@pytest.fixture
def latents(tmp_path):
    generator = np.random.default_rng(2)
    mean = generator.normal(size=(N, 2, 4, 3, 3))
    moments = np.concatenate([mean, np.full_like(mean, 0.5)], axis=2).astype(np.float32)
    about = {"convention": "edm2", "images": "0"}
    loader = Loader(
        images=write_set(tmp_path / "latents", moments, about),
        features=None, seed=3, flip=True, device=torch.device("cpu"),
    )  # fmt: skip
    return loader, moments


def test_latents_are_drawn_anew_in_each_epoch_and_the_same_at_each_place(latents):
    loader, _ = latents
    first, again, next_epoch = (
        loader.load(places) for places in (np.arange(N), np.arange(N), np.arange(N, 2 * N))
    )
    assert torch.equal(first.images, again.images)
    order, other = (loader.indices(np.arange(N) + start) for start in (0, N))
    before = first.images[np.argsort(order)]
    after = next_epoch.images[np.argsort(other)]
    assert not torch.isclose(before, after).flatten(1).any(1).any()


def test_latents_are_of_the_image_or_its_mirror_image_with_the_stored_mean_and_deviation(latents):
    loader, moments = latents
    batches = [loader.load(np.arange(N) + N * epoch) for epoch in range(60)]
    orders = [loader.indices(np.arange(N) + N * epoch) for epoch in range(60)]
    raw = [unscale_latents(batch.images, CONVENTIONS["edm2"]) for batch in batches]
    eps = []
    for values, order in zip(raw, orders, strict=True):
        ways = torch.from_numpy(moments[order][:, :, :4])  # (N, 2, 4, 3, 3)
        off = (values[:, None] - ways) / 0.5
        nearest = off.flatten(2).square().sum(-1).argmin(1)
        eps.append(off[torch.arange(N), nearest])
    eps = torch.stack(eps)
    assert abs(eps.mean()) < 0.02
    assert abs(eps.std() - 1) < 0.03


def test_what_was_not_made_of_mirrored_images_is_refused_where_they_are_shown(latents, tmp_path):
    loader, moments = latents
    upright = write_set(tmp_path / "upright", moments[:, :1], {"convention": "edm2"})
    with pytest.raises(ValueError, match="holds nothing of mirrored images: set `mirrored`"):
        replace(loader, images=upright)
    batch = replace(loader, images=upright, flip=False).load(np.arange(4))
    assert batch.images.shape == (4, 4, 3, 3)


def test_a_share_of_the_data_is_the_same_images_of_all_classes_in_each_epoch(loader):
    loader, _, _ = loader
    some = replace(loader, share=0.3)
    num = round(0.3 * N)
    epochs = [some.indices(np.arange(num) + num * epoch) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == num
    assert not np.array_equal(epochs[0], epochs[1])
    assert max(np.diff(sorted(epochs[0]))) <= 4
    assert np.array_equal(
        replace(loader, share=1.0).indices(np.arange(90)), loader.indices(np.arange(90))
    )
