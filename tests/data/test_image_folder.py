import hashlib
import logging
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from selfdistill.data.image_folder import ImageFolder

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 6, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for index, pixels in enumerate(PIXELS):
        save(tmp_path / "set" / f"{index}.png", pixels)
    return tmp_path / "set"


def refusal(folder, file=None):
    """The text of the error that opening a folder raises; it names the file."""
    with pytest.raises(ValueError, match=r"; |: ") as caught:
        ImageFolder.open(folder)
    assert str(file or folder) in str(caught.value)
    return str(caught.value)


def test_pixels_are_those_of_the_files_in_the_order_asked_for(folder):
    images = ImageFolder.open(folder)
    assert (len(images), images.shape, images.about) == (6, (8, 6, 3), {})
    read = images.read([4, 0, 0, 5])
    assert read.dtype == np.uint8
    assert np.array_equal(read, PIXELS[[4, 0, 0, 5]])
    assert images.read([]).shape == (0, 8, 6, 3)
    assert np.array_equal(images.read(np.arange(6)), PIXELS)


def test_files_of_any_depth_are_sorted_by_path_whatever_the_case_of_the_suffix(tmp_path):
    names = ["a/b/2.PNG", "a/1.bmp", "b/0.Tiff", "c.webp", "d.tif"]
    for name, pixels in zip(names, PIXELS, strict=False):
        save(tmp_path / name, pixels, **({"lossless": True} if "webp" in name else {}))
    (tmp_path / "a" / "readme.txt").write_text("no image")
    save(tmp_path / ".hidden.png", PIXELS[5])
    save(tmp_path / ".cache" / "5.png", PIXELS[5])
    images = ImageFolder.open(tmp_path)
    assert images.names == tuple(sorted(names))
    assert np.array_equal(images.read(range(5)), PIXELS[[1, 0, 2, 3, 4]])
    assert images.about == {}


def test_links_are_followed(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one.png").symlink_to(folder / "1.png")
    (tmp_path / "links" / "all").symlink_to(folder)
    images = ImageFolder.open(tmp_path / "links")
    assert np.array_equal(images.read(range(7)), PIXELS[[0, 1, 2, 3, 4, 5, 1]])


def test_a_link_in_a_circle_and_a_link_to_nothing_are_named(folder):
    (folder / "round").symlink_to(folder)
    assert "link to a folder that it lies in" in refusal(folder, folder / "round")
    (folder / "round").unlink()
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    assert "cannot be opened" in refusal(folder, folder / "gone.png")


def test_no_folder_and_no_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no folder here"):
        ImageFolder.open(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    assert "holds no images; put some (bmp, jpeg, jpg" in refusal(tmp_path)


def test_mixed_sizes_name_two_files(folder):
    save(folder / "3.png", PIXELS[0].transpose(1, 0, 2))
    message = refusal(folder, folder / "3.png")
    assert f"has 8 x 6 pixels, but {folder / '0.png'} has 6 x 8" in message


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16"])
def test_the_first_file_of_another_mode_is_named_with_the_remedy(folder, mode):
    for name in ("2.png", "4.png"):
        Image.new(mode, (6, 8)).save(folder / name)
    message = refusal(folder, folder / "2.png")
    assert f"has mode {'16-bit I' if mode == 'I;16' else mode}; convert the images" in message


def test_cmyk_is_refused(folder):
    Image.new("CMYK", (6, 8)).save(folder / "2.jpg")
    assert "has mode CMYK" in refusal(folder, folder / "2.jpg")


def test_sixteen_bits_a_channel_are_refused_though_pillow_would_read_them(folder):
    (folder / "2.png").write_bytes(png_of_16_bits(PIXELS[2]))
    assert Image.open(folder / "2.png").mode == "RGB"
    assert "has mode 16-bit RGB" in refusal(folder, folder / "2.png")


def png_of_16_bits(pixels):
    height, width, _ = pixels.shape

    def chunk(name, content):
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_opening_decodes_nothing_and_reading_names_the_truncated_file(folder):
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])
    images = ImageFolder.open(folder)
    assert np.array_equal(images.read([0, 1]), PIXELS[:2])
    with pytest.raises(ValueError, match=r"2\.png: cannot be decoded: .*make or copy it again"):
        images.read(range(6))


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%EndComments\n"])
def test_a_file_that_is_no_image_is_named_and_no_interpreter_is_called(folder, content):
    (folder / "2.png").write_bytes(content)
    assert "is not a whole BMP, JPEG, PNG" in refusal(folder, folder / "2.png")


def test_a_file_that_changed_since_is_named(folder):
    images = ImageFolder.open(folder)
    save(folder / "2.png", PIXELS[0].transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"2\.png: is now uint8 \(6, 8, 3\)"):
        images.read([2])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/0.png", "cat/1.png", "ant/0.png", "dog/7.png"], [0, 1, 1, 2]),
        (["cat/0.png", "ant/1.png", "2.png"], [-1] * 3),
        (["cat/a/0.png", "ant/1.png"], [-1] * 2),
        (["cat/a/0.png", "cat/b/0.png"], [-1] * 2),
        (["images/0.png", "images/1.png"], [-1] * 2),
    ],
)
def test_labels_are_those_of_class_folders_of_one_level(tmp_path, names, labels):
    for name in names:
        save(tmp_path / name, PIXELS[0])
    found = ImageFolder.open(tmp_path).labels
    assert found.dtype == np.int64
    assert found.tolist() == labels


@pytest.mark.parametrize(
    ("name", "options", "lossy"),
    [
        ("2.jpg", {}, True),
        ("2.webp", {}, True),
        ("2.webp", {"exif": b"Exif\0\0"}, True),
        ("2.webp", {"lossless": True}, False),
        ("2.webp", {"lossless": True, "exif": b"Exif\0\0"}, False),
        ("2.tif", {"compression": "jpeg"}, True),
        ("2.tif", {"compression": "tiff_lzw"}, False),
    ],
)
def test_compression_with_loss_is_noted_and_warned_of(folder, caplog, name, options, lossy):
    save(folder / name, PIXELS[2], **options)
    with caplog.at_level(logging.WARNING):
        images = ImageFolder.open(folder)
    assert images.about == ({"lossy": 1} if lossy else {})
    assert ("1 of 7 images are compressed with loss" in caplog.text) == lossy


def test_the_fingerprint_is_of_names_and_contents(folder, tmp_path):
    expected = hashlib.sha256()
    for index in range(6):
        content = hashlib.sha256((folder / f"{index}.png").read_bytes()).hexdigest()
        expected.update(f"{index}.png\0{content}\n".encode())
    first = ImageFolder.open(folder).fingerprint
    assert first == expected.hexdigest()
    folder = folder.rename(tmp_path / "elsewhere")
    assert ImageFolder.open(folder).fingerprint == first
    (folder / "5.png").rename(folder / "6.png")
    renamed = ImageFolder.open(folder).fingerprint
    save(folder / "6.png", PIXELS[0])
    assert len({first, renamed, ImageFolder.open(folder).fingerprint}) == 3


def test_a_pickled_handle_opens_again(folder):
    images = ImageFolder.open(folder)
    assert len(images.labels) == 6
    assert images.fingerprint
    again = pickle.loads(pickle.dumps(images))
    assert "fingerprint" not in vars(again)
    assert np.array_equal(again.read([3]), PIXELS[[3]])
