import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfdistill.data.crops import (
    CROPS,
    MAX_PIXELS,
    adm_center_crop,
    decode_rgb,
    edm_center_crop,
)

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample" / "train"
JPEGS = st.fixed_dictionaries(
    {
        "quality": st.integers(1, 100),
        "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
        "progressive": st.booleans(),
        "optimize": st.booleans(),
        "restart_marker_blocks": st.sampled_from([0, 2]),
    }
)


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def as_adm(data: bytes) -> np.ndarray | str:
    """Return what ADM's code makes of a file, or the reason why it fails."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        return "not an image in a format that Pillow reads"
    except Exception as error:
        return f"cannot be decoded: {str(error) or type(error).__name__}"


def as_we(data: bytes) -> np.ndarray | str:
    try:
        image = decode_rgb(data)
    except ValueError as error:
        return str(error)
    assert image.mode == "RGB"
    return np.asarray(image)


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


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.sampled_from([1, 7, 16]),
)
def test_edm_crop_is_lanczos_of_the_largest_centred_square(width, height, size):
    image = noise(width, height)
    side = min(width, height)
    rows = slice((height - side) // 2, (height + side) // 2)
    columns = slice((width - side) // 2, (width + side) // 2)
    square = Image.fromarray(np.asarray(image)[rows, columns])
    expected = square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(edm_center_crop(image, size), np.asarray(expected))


def test_edm_crop_enlarges_what_is_too_small():
    assert edm_center_crop(noise(5, 9), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("crop", CROPS.values())
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1)])
def test_image_one_pixel_wide_is_cropped(crop, size):
    assert crop(Image.new("RGB", size, (1, 2, 3)), 8).tolist() == [[[1, 2, 3]] * 8] * 8


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), options=JPEGS)
def test_jpeg_is_decoded_as_adm_does(mode, width, height, options):
    data = encode(noise(width, height).convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(as_we(data), as_adm(data))


@settings(max_examples=200, deadline=None)
@given(
    options=JPEGS,
    grey=st.booleans(),
    end=st.one_of(st.none(), st.integers(2, 1500), st.just(-2)),
    flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=2),
    more=st.binary(max_size=4),
)
def test_damaged_jpeg_is_decoded_or_refused_as_adm_does(options, grey, end, flips, more):
    data = bytearray(encode(noise(19, 21).convert("L" if grey else "RGB"), "JPEG", **options)[:end])
    for place, byte in flips:
        data[place % len(data)] = byte
    ours, theirs = as_we(bytes(data + more)), as_adm(bytes(data + more))
    assert type(ours) is type(theirs)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("options", [{"icc_profile": b"profile"}, {"comment": b"x" * 70}, {}])
def test_what_a_jpeg_says_beside_its_pixels_is_ignored(options):
    image = noise(20, 10)
    plain = as_we(encode(image, "JPEG"))
    np.testing.assert_array_equal(as_we(encode(image, "JPEG", **options)), plain)
    np.testing.assert_array_equal(as_we(encode(image, "JPEG", **options) + b"more"), plain)


def test_of_several_pictures_the_first_is_taken():
    first, second = noise(20, 10, 0), noise(20, 10, 1)
    for file_format in ("MPO", "GIF", "WEBP"):
        data = encode(first, file_format, save_all=True, append_images=[second])
        np.testing.assert_array_equal(as_we(data), as_adm(data))


@pytest.mark.data
def test_imagenet_sample_is_decoded_as_adm_does():
    if not SAMPLE.is_dir():
        pytest.skip(f"{SAMPLE} is absent")
    files = sorted(SAMPLE.glob("*/*"))
    assert len(files) == 300
    for file in files:
        data = file.read_bytes()
        np.testing.assert_array_equal(as_we(data), as_adm(data), str(file))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode):
    image = decode_rgb(encode(Image.new(mode, (3, 2))))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_sixteen_bit_grey_is_clipped_to_eight_as_by_pillow():
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(values))
    np.testing.assert_array_equal(as_we(data), as_adm(data))
    assert as_we(data)[0, :, 0].tolist() == [0, 255, 255, 255]


def test_transparency_is_dropped_not_blended():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert as_we(encode(palette, transparency=0)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert as_we(encode(Image.new("RGBA", (1, 1), (7, 8, 9, 0)))).tolist() == [[[7, 8, 9]]]
    assert as_we(encode(Image.new("LA", (1, 1), (7, 0)))).tolist() == [[[7, 7, 7]]]
    assert as_we(encode(noise(3, 2), transparency=(1, 2, 3))).tolist() == (
        np.asarray(noise(3, 2)).tolist()
    )


def test_black_and_white_is_0_and_255():
    image = Image.fromarray(np.array([[True, False]]))
    assert as_we(encode(image)).tolist() == [[[255] * 3, [0] * 3]]


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


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), size=st.sampled_from([1, 8, 33, 64]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_crop_is_the_one_that_scales_first_and_cuts_then(width, height, size, seed):
    """ADM's own order; ours cuts columns between the two passes of the scaling."""
    image = noise(width, height, seed)
    scaled = image
    while min(scaled.size) >= 2 * size:
        scaled = scaled.resize((scaled.width // 2, scaled.height // 2), Image.Resampling.BOX)
    scale = size / min(scaled.size)
    scaled = scaled.resize(
        (round(scaled.width * scale), round(scaled.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    expected = np.asarray(scaled)[top : top + size, left : left + size]
    np.testing.assert_array_equal(adm_center_crop(image, size), expected)
