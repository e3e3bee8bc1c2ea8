import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfdistill.data.crops import MAX_PIXELS, adm_center_crop, decode_rgb


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([1, 2, 7, 32]))
def test_crop_is_square_whatever_the_image(width, height, size):
    pixels = adm_center_crop(Image.new("RGB", (width, height), (1, 2, 3)), size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (1, 2, 3)).all()


def test_image_of_the_right_size_is_untouched():
    image = noise(32, 32)
    np.testing.assert_array_equal(adm_center_crop(image, 32), np.asarray(image))


def test_odd_excess_is_cut_more_at_the_end():
    image = noise(37, 32)  # an excess of 5: 2 on the left, 3 on the right
    np.testing.assert_array_equal(adm_center_crop(image, 32), np.asarray(image)[:, 2:34])


def test_double_size_is_halved_with_a_box_filter():
    image = noise(64, 64)
    means = np.asarray(image).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(adm_center_crop(image, 32) - means).max() <= 1  # two passes, each rounds


def test_scaled_image_that_would_not_fit_in_memory_is_refused():
    with pytest.raises(ValueError, match="refused to scale 1 x 100000 pixels to 512 x 51200000"):
        adm_center_crop(Image.new("RGB", (1, 100_000)), 512)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode):
    image = decode_rgb(encode(Image.new(mode, (3, 2))))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_cmyk_jpeg_becomes_rgb():
    red = Image.new("RGB", (16, 16), (250, 0, 0)).convert("CMYK")
    pixels = np.asarray(decode_rgb(encode(red, "JPEG", quality=95)))
    assert pixels[..., 0].min() > 240
    assert pixels[..., 1:].max() < 15


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    assert decode_rgb(encode(noise(20, 10), "JPEG", exif=exif)).size == (20, 10)


def test_truncated_file_is_refused():
    data = encode(noise(64, 64), "JPEG")
    with pytest.raises(ValueError, match="truncated"):
        decode_rgb(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"no image", "not an image in a format that Pillow reads")],
)
def test_reason_is_the_same_on_every_run(data, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        decode_rgb(data)


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 700), byte=st.integers(0, 255), file_format=st.sampled_from(["PNG", "GIF"])
)
def test_damaged_file_is_decoded_or_refused_but_never_stops_the_run(at, byte, file_format):
    data = bytearray(encode(noise(24, 24), file_format))
    data[at % len(data)] = byte
    with contextlib.suppress(ValueError):  # any other error would stop the run
        assert decode_rgb(bytes(data)).mode == "RGB"


def test_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    side = 60_000
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=rf"refused to decode: .*{MAX_PIXELS}"):
        decode_rgb(bomb)
