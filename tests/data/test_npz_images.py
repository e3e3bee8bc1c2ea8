import io
import pickle
import zipfile

import numpy as np
import pytest

from selfdistill.data import npz_images
from selfdistill.data.npz_images import NpzImages
from selfdistill.io.npz import AdmNpzDataset

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 5


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def write(request, tmp_path):
    def call(*arrays, **named):
        request.param(tmp_path / "set.npz", *arrays, **named)
        return tmp_path / "set.npz"

    return call


@pytest.fixture(scope="module")
def moments():
    return {
        "mu": RNG.normal(size=2048).astype(np.float32),
        "sigma": np.eye(2048),
        "mu_s": RNG.normal(size=2023).astype(np.float32),
        "sigma_s": np.eye(2023),
    }


def refusal(path):
    """The text of the error that opening a file raises; it names the file."""
    with pytest.raises(ValueError, match=r"set\.npz") as caught:
        NpzImages.open(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_images_and_labels_are_those_that_were_written(write):
    images = NpzImages.open(write(PIXELS, LABELS))
    assert (len(images), images.shape, images.about) == (12, (8, 6, 3), {})
    assert images.labels.dtype == np.int64
    assert np.array_equal(images.labels, LABELS)
    assert np.array_equal(images.read(range(12)), PIXELS)
    assert images.statistics() is None


@pytest.mark.parametrize("indices", [[5], [7, 2, 2, 11], [0, 11, 0], np.arange(12)[::-1], []])
def test_images_are_read_in_any_order(write, indices):
    images = NpzImages.open(write(PIXELS))
    indices = np.asarray(indices, np.int64)
    for _ in range(2):
        read = images.read(indices)
        assert type(read) is np.ndarray
        assert read.flags.writeable
        assert np.array_equal(read, PIXELS[indices])


def test_an_index_out_of_range_is_refused(write):
    images = NpzImages.open(write(PIXELS))
    for index in (-1, 12):
        with pytest.raises(IndexError, match="images are 0 to 11"):
            images.read([index])


def test_without_labels_they_are_unknown(write):
    assert np.array_equal(NpzImages.open(write(PIXELS)).labels, [-1] * 12)


def test_ascending_batches_decompress_each_image_once(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", PIXELS)
    images, opened, pixels = NpzImages.open(tmp_path / "set.npz"), [], []
    header, stream = npz_images._read_header, npz_images._Stream._pixels
    monkeypatch.setattr(npz_images, "_read_header", lambda f: opened.append(1) or header(f))
    monkeypatch.setattr(
        npz_images._Stream, "_pixels", lambda self, f: pixels.append(1) or stream(self, f)
    )
    for start in range(0, 12, 5):
        images.read(range(start, min(start + 5, 12)))
    assert (len(opened), len(pixels)) == (1, 12)
    assert np.array_equal(images.read([3]), PIXELS[[3]])  # back: once more from the start
    assert (len(opened), len(pixels)) == (2, 16)


def test_stored_images_are_mapped_not_held(tmp_path):
    np.savez(tmp_path / "set.npz", PIXELS)
    images = NpzImages.open(tmp_path / "set.npz")
    assert isinstance(images._mapped.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images._mapped[0] = 0


def test_the_projects_own_export_is_read(images, tmp_path):
    AdmNpzDataset(path=str(tmp_path / "samples.npz")).save(images)
    back = NpzImages.open(tmp_path / "samples.npz")
    assert back.start is not None
    assert np.array_equal(back.read(range(40)), images.read(range(40)))
    assert np.array_equal(back.labels, images.labels)


def test_a_pickled_handle_is_small_and_opens_again(write):
    images = NpzImages.open(write(PIXELS, LABELS))
    images.read([0])
    sent = pickle.dumps(images)
    assert len(sent) < 1500
    assert np.array_equal(pickle.loads(sent).read([3, 1]), PIXELS[[3, 1]])


def test_the_fingerprint_is_that_of_the_files_bytes(write):
    from selfdistill.files import sha256_of

    path = write(PIXELS, LABELS)
    assert NpzImages.open(path).fingerprint == sha256_of(path)


def test_statistics_come_with_images_or_alone_and_either_pair_will_do(write, moments):
    whole = NpzImages.open(write(arr_0=PIXELS, **moments))
    assert len(whole) == 12
    found = whole.statistics()
    assert list(found) == ["mu", "sigma", "mu_s", "sigma_s"]
    for key, values in moments.items():
        assert found[key].dtype == np.float64
        assert np.array_equal(found[key], values)
    alone = NpzImages.open(write(mu_s=moments["mu_s"], sigma_s=moments["sigma_s"]))
    assert list(alone.statistics()) == ["mu_s", "sigma_s"]
    assert (len(alone), alone.shape, alone.labels.shape) == (0, (), (0,))
    assert len(alone.fingerprint) == 64


def test_statistics_have_no_images_to_read(write, moments):
    with pytest.raises(ValueError, match=r"set\.npz: holds statistics \(mu, sigma\) but no images"):
        NpzImages.open(write(mu=moments["mu"], sigma=moments["sigma"])).read([0])


def wrong_statistics(moments, **changes):
    return {k: v for k, v in {**moments, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, r"sigma is missing; mu and sigma belong together"),
        ({"mu_s": None}, r"mu_s is missing"),
        ({"mu": np.zeros(768)}, r"mu is float64 \(768,\).*\(2048,\)"),
        ({"sigma_s": np.zeros((2023, 7))}, r"sigma_s is float64 \(2023, 7\)"),
        ({"mu": np.zeros(2048, np.int32)}, r"mu is int32"),
        ({"mu_s": np.full(2023, np.nan, np.float32)}, r"mu_s has values that are NaN"),
        ({"sigma": np.full((2048, 2048), np.inf, np.float32)}, r"sigma has values.*infinite"),
        ({"mu": np.array([None] * 2048)}, r"mu is an array of Python objects"),
    ],
)
def test_wrong_statistics_are_named(tmp_path, moments, changes, message):
    moments = {**moments, "sigma": np.eye(2048, dtype=np.float32)}
    np.savez(tmp_path / "set.npz", **wrong_statistics(moments, **changes))
    images = NpzImages.open(tmp_path / "set.npz")
    with pytest.raises(ValueError, match=message) as caught:
        images.statistics()
    assert str(tmp_path / "set.npz") in str(caught.value)


def test_stray_arrays_beside_images_do_no_harm(write):
    path = write(arr_0=PIXELS, mu=np.zeros(3), note=np.array([None]))
    assert np.array_equal(NpzImages.open(path).read([4]), PIXELS[[4]])


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (
            PIXELS.astype(np.float32),
            "is float32; convert to uint8 and say by which rule: 127.5 * x",
        ),
        (PIXELS.astype(np.int64), "is int64; convert to uint8"),
        (PIXELS > 9, "is bool; convert to uint8"),
        (PIXELS[..., 0], "shape (12, 8, 6) of greyscale images"),
        (PIXELS[..., :1], "shape (12, 8, 6, 1) of greyscale images"),
        (PIXELS[..., :1].transpose(0, 3, 1, 2), "shape (12, 1, 8, 6) of greyscale images"),
        (PIXELS.transpose(0, 3, 1, 2), "transpose to NHWC"),
        (PIXELS.transpose(0, 3, 1, 2).astype(np.float16), "transpose to NHWC"),
        (PIXELS[..., [0, 1, 2, 2]], "alpha channel"),
        (PIXELS[..., [0, 1]], "has shape (12, 8, 6, 2)"),
        (PIXELS[:, :0], "has shape (12, 0, 6, 3)"),
        (PIXELS[0, 0], "has shape (6, 3)"),
        (np.uint8(3), "has shape ()"),
        (np.asfortranarray(PIXELS), "np.ascontiguousarray"),
    ],
)
def test_what_is_not_uint8_rgb_in_nhwc_is_refused_with_the_remedy(write, array, fault):
    assert fault in refusal(write(array))


def test_every_fault_of_the_images_is_told_at_once(write):
    message = refusal(write(PIXELS.transpose(0, 3, 1, 2).astype(np.float32)))
    assert "is float32" in message
    assert "NCHW" in message


class Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("key", ["arr_0", "arr_1"])
def test_pickled_objects_are_refused_unread(write, key):
    objects = np.array([Evil()] * 12, object)
    message = refusal(write(**{"arr_0": PIXELS, key: objects}))
    assert f"{key} is an array of Python objects" in message


@pytest.mark.parametrize(
    "labels", [LABELS[:-1], LABELS.astype(np.float32), LABELS[:, None], LABELS > 0]
)
def test_labels_are_one_integer_an_image(write, labels):
    assert "12 images need integer labels of shape (12,)" in refusal(write(PIXELS, labels))


def test_wrong_keys_are_listed(write):
    message = refusal(write(images=PIXELS, y=LABELS))
    assert "holds images, y, but neither images (arr_0)" in message


def test_an_archive_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0", b"\x00")
    assert "holds arr_0, but neither" in refusal(tmp_path / "set.npz")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set\.npz"):
        NpzImages.open(tmp_path / "set.npz")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\x93NUMPY" + bytes(200)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    assert "is not a whole npz file" in refusal(tmp_path / "set.npz")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_on_opening(write, part):
    path = write(PIXELS, LABELS)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "is not a whole npz file" in refusal(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("size", [700, -1])
def test_a_member_shorter_than_its_header_says_is_refused(tmp_path, kind, size):
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    with zipfile.ZipFile(tmp_path / "set.npz", "w", kind) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:size])
    assert "arr_0 should take" in refusal(tmp_path / "set.npz")


@pytest.mark.parametrize(
    "head", [b"no array", b"\x93NUMPY\x01\x00\x06\x00{'a':1", b"\x93NUMPY\x09"]
)
def test_a_member_that_is_no_array_is_refused(tmp_path, head):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", head)
    assert "arr_0 is no npy array" in refusal(tmp_path / "set.npz")


def test_a_packing_that_numpy_does_not_write_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue())
    assert "packed in a way that NumPy does not write" in refusal(tmp_path / "set.npz")


def flip_a_bit(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damaged_compressed_pixels_are_found_at_the_latest_with_the_last_image(tmp_path):
    pixels = RNG.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "set.npz", pixels)
    flip_a_bit(tmp_path / "set.npz", 100_000)
    images = NpzImages.open(tmp_path / "set.npz")
    assert np.array_equal(images.read([0, 1]), pixels[:2])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"set\.npz: is not a whole npz file"):
            images.read(range(2, 12))


def test_damaged_stored_pixels_are_found_by_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_images, "_CHUNK", 256)  # the pixels begin and end within chunks
    np.savez(tmp_path / "set.npz", mu=np.zeros(40), arr_0=PIXELS, arr_1=LABELS)
    images = NpzImages.open(tmp_path / "set.npz")
    assert NpzImages.open(tmp_path / "set.npz").fingerprint
    flip_a_bit(tmp_path / "set.npz", images.start + PIXELS.size - 1)
    with pytest.raises(ValueError, match=r"set\.npz: is not a whole npz file: arr_0 has another"):
        _ = images.fingerprint


def test_damaged_labels_are_found_on_opening(tmp_path):
    np.savez(tmp_path / "set.npz", arr_1=LABELS, arr_0=PIXELS)
    flip_a_bit(tmp_path / "set.npz", 30 + len("arr_1.npy") + 20 + 128 + 8)
    assert "is not a whole npz file" in refusal(tmp_path / "set.npz")
