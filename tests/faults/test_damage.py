"""Damage of published sets: found in its place, told of when read strictly, repaired alone."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from selfdistill.data.readers import open_reader
from selfdistill.data.shard_job import find_faults
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import DamagedError, publish_directory
from selfdistill.pipelines.features.nodes import cache_features, repair_features
from selfdistill.pipelines.preprocess.nodes import crop_images, repair_images
from selfdistill.pipelines.verify.nodes import verify_shards

MACHINE = DistributedConfig(device="cpu", num_ranks=1, num_workers=0)
PIXELS, FOOTER = 0.5, -20  # places in a file: a share of it, or bytes from its end


@dataclass
class Published:
    """A published set and its repair.

    Attributes:
        place: Its directory.
        repair: Repairs it.
    """

    place: Path
    repair: Callable[[], object]


@pytest.fixture(scope="module")
def made(small_raw, crop, teacher, tmp_path_factory):
    """Images and their features, as they are published."""
    root = tmp_path_factory.mktemp("made")
    (root / "scratch").mkdir()
    images = crop_images(open_reader(small_raw, "class_folders"), crop, MACHINE, root / "scratch")
    publish_directory(images.path, root / "images")
    images = Shards.open(root / "images")
    features = cache_features(images, teacher, MACHINE, root / "scratch")
    publish_directory(features.path, root / "features")
    return root


@pytest.fixture
def images_set(made, raw, crop, tmp_path):
    scratch, place = tmp_path / "scratch", tmp_path / "images"
    scratch.mkdir()
    shutil.copytree(made / "images", place)

    def repair():
        return repair_images(open_reader(raw, "class_folders"), crop, MACHINE, scratch, place)

    return Published(place, repair)


@pytest.fixture
def features_set(made, images_set, teacher, tmp_path):
    scratch, place = tmp_path / "scratch_features", tmp_path / "features"
    scratch.mkdir()
    shutil.copytree(made / "features", place)
    images = Shards.open(images_set.place)
    return Published(place, lambda: repair_features(images, teacher, MACHINE, scratch, place))


@pytest.fixture(params=["images_set", "features_set"])
def published(request):
    return request.getfixturevalue(request.param)


def flip(file: Path, place: float) -> None:
    """Flip a bit of the byte at a place: an offset, from the end if negative, or a share."""
    data = bytearray(file.read_bytes())
    offset = int(len(data) * place) if isinstance(place, float) else place
    data[offset] ^= 1
    file.unlink()  # whoever has the old one mapped keeps it
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def garble(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def faulty(place: Path) -> list[str]:
    return [fault.file for fault in find_faults(place, 2)]


SHARD, SUMMARY = "shard-00002.arrow", "shard-00002.json"
DAMAGES = {
    "pixels": (SHARD, lambda file: flip(file, PIXELS)),
    "first byte": (SHARD, lambda file: flip(file, 0)),
    "schema": (SHARD, lambda file: flip(file, 60)),
    "footer": (SHARD, lambda file: flip(file, FOOTER)),
    "last byte": (SHARD, lambda file: flip(file, -1)),
    "truncated shard": (SHARD, truncate),
    "longer shard": (SHARD, lengthen),
    "empty shard": (SHARD, lambda file: file.write_bytes(b"")),
    "zeroed shard": (SHARD, garble),
    "missing shard": (SHARD, Path.unlink),
    "summary": (SUMMARY, lambda file: flip(file, 0.5)),
    "truncated summary": (SUMMARY, lambda file: file.write_bytes(file.read_bytes()[:20])),
    "empty summary": (SUMMARY, lambda file: file.write_bytes(b"")),
    "missing summary": (SUMMARY, Path.unlink),
    "manifest": ("manifest.parquet", lambda file: flip(file, 0.5)),
    "truncated manifest": ("manifest.parquet", truncate),
    "missing manifest": ("manifest.parquet", Path.unlink),
    "header": ("manifest.json", lambda file: flip(file, 0.5)),
    "truncated header": ("manifest.json", truncate),
    "zeroed header": ("manifest.json", garble),
    "missing header": ("manifest.json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_in_its_place_and_repaired_alone(
    published, damage, contents, states, leftovers, tmp_path
):
    place = published.place
    before, untouched = contents(place), states(place)
    name, harm = DAMAGES[damage]
    harm(place / name)
    assert faulty(place) == [name]
    with pytest.raises(DamagedError, match=rf"1 files are damaged; .*repair(.|\n)*{place / name}"):
        verify_shards(MACHINE, images=place)
    published.repair()
    assert contents(place) == before
    assert leftovers(tmp_path) == []
    verify_shards(MACHINE, images=place)
    # A shard and its summary are made together; the header is written with the manifest.
    stem = name.partition(".")[0]
    touched = {file for file, state in states(place).items() if untouched[file] != state}
    assert touched == {file for file in untouched if file.partition(".")[0] == stem}
    assert not [path for path in tmp_path.glob("scratch*/*") if path.name != ".lock"]


def test_several_damages_at_once_are_all_found_and_repaired(
    published, contents, states, leftovers, tmp_path
):
    place = published.place
    before, untouched = contents(place), states(place)
    flip(place / "shard-00000.arrow", PIXELS)
    (place / "shard-00001.json").unlink()
    truncate(place / "shard-00003.arrow")
    (place / "shard-00005.arrow").unlink()
    (place / "shard-00005.json").unlink()
    (place / "manifest.parquet").write_bytes(b"")
    harmed = [
        "manifest.parquet", "shard-00000.arrow", "shard-00001.json", "shard-00003.arrow",
        "shard-00005.arrow", "shard-00005.json",
    ]  # fmt: skip
    assert faulty(place) == harmed
    published.repair()
    assert contents(place) == before
    assert leftovers(tmp_path) == []
    after = states(place)
    for shard in (2, 4):
        for name in (f"shard-0000{shard}.arrow", f"shard-0000{shard}.json"):
            assert after[name] == untouched[name]


def test_set_without_a_sound_header_and_shard_is_repaired(published, contents):
    """The summaries say what the shards were, where the header says nothing any more."""
    before = contents(published.place)
    flip(published.place / "manifest.json", 0.3)
    flip(published.place / "shard-00001.arrow", PIXELS)
    flip(published.place / "manifest.parquet", 0.5)
    (published.place / "shard-00005.arrow").unlink()
    (published.place / "shard-00005.json").unlink()  # the last one: not even its number is known
    published.repair()
    assert contents(published.place) == before
    assert faulty(published.place) == []


def test_any_flipped_bit_of_any_file_is_found_in_that_file(published, contents):
    chance, place = random.Random(0), published.place
    for name, content in contents(place).items():
        # All of the header, whose words decide how it is read; elsewhere a few.
        bits = range(8 * len(content)) if name == "manifest.json" else range(0)
        drawn = [chance.randrange(8 * len(content)) for _ in range(12)]
        for bit in chance.sample(bits, 250) if bits else drawn:
            data = bytearray(content)
            data[bit // 8] ^= 1 << bit % 8
            (place / name).write_bytes(data)
            assert faulty(place) == [name], f"bit {bit}"
        (place / name).write_bytes(content)
    assert faulty(place) == []


def test_any_flipped_bit_in_what_says_the_format_of_a_header_is_damage(images_set):
    file = images_set.place / "manifest.json"
    content = file.read_bytes()
    first = content.index(b'"format"')
    for bit in range(8 * first, 8 * (content.index(b",", first) + 1)):
        data = bytearray(content)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert faulty(images_set.place) == ["manifest.json"], bytes(data[first : first + 13])


def test_damaged_record_is_told_of_when_reading_is_strict_and_the_others_are_read(images_set):
    place = images_set.place
    whole = Shards.open(place).read(range(59))
    wanted = Shards.open(place).shard_sizes
    first = sum(wanted[:2])
    content = (place / SHARD).read_bytes()
    offset = content.index(whole[first + 3].tobytes()) + 1000
    flip(place / SHARD, offset)
    strict, lax = Shards.open(place, strict=True), Shards.open(place)
    with pytest.raises(DamagedError, match=rf"{place / SHARD}: record class_\d/\d\d\.png is"):
        strict.read([0, first + 3])
    others = [row for row in range(59) if row != first + 3]
    np.testing.assert_array_equal(strict.read(others), whole[others])
    assert (lax.read([first + 3]) != whole[first + 3]).sum() == 1


_READ_STRICTLY = """
import json, sys
from pathlib import Path
import numpy as np
from selfdistill.data.shards import Shards
from selfdistill.files import DamagedError
place, file = Path(sys.argv[1]), Path(sys.argv[2])
whole = Shards.open(place)
rows, keys = whole.read(range(len(whole))), whole.keys
content = file.read_bytes()
for bit in json.loads(sys.argv[3]):
    data = bytearray(content)
    data[bit // 8] ^= 1 << bit % 8
    file.unlink()  # the old one stays mapped
    file.write_bytes(data)
    print(bit, end=" ", flush=True)
    try:
        shards = Shards.open(place, strict=True)
        found = shards.read(range(len(shards)))
        same = np.array_equal(found, rows) and shards.keys == keys
        print("same" if same else "other", flush=True)
    except DamagedError as error:
        print("told" if str(file) in str(error) else "unnamed", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def test_no_flipped_bit_of_a_shard_goes_unnoticed_when_reading_is_strict(images_set, project):
    """Wherever it is: what is read is what was written, or an error names the shard."""
    file = images_set.place / SHARD
    size, chance = file.stat().st_size, random.Random(0)
    data = file.read_bytes()
    bulk = data.index(Shards.open(images_set.place).read([20]).tobytes())
    rest = [*range(bulk), *range(bulk + 9 * 3072, size)]  # what frames the pixels
    bits = [8 * byte + chance.randrange(8) for byte in (*rest, *range(bulk, size, 4000))]
    done = subprocess.run(
        [sys.executable, "-c", _READ_STRICTLY, str(images_set.place), str(file), str(bits)],
        cwd=project / "src",
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, lines[-1:])
    assert {line[1] for line in lines} <= {"same", "told"}, [
        line for line in lines if line[1] not in ("same", "told")
    ]


def test_repair_of_other_raw_images_is_refused_and_works_once_they_are_back(
    images_set, raw, contents, states, tmp_path
):
    place = images_set.place
    before = contents(place)
    flip(place / SHARD, PIXELS)
    damaged, untouched = contents(place), states(place)
    image = raw / Shards.open(place).keys[20]  # of the third shard
    original = image.read_bytes()
    shutil.copyfile(next(file for file in (raw / "class_2").iterdir()), image)
    assert image.stat().st_size == len(original)
    with pytest.raises(ValueError, match=rf"{SHARD}: made again, it is another one .*: inputs"):
        images_set.repair()
    assert contents(place) == damaged
    assert states(place) == untouched
    image.write_bytes(original)
    images_set.repair()
    assert contents(place) == before


def test_refused_repair_leaves_nothing_that_a_later_run_takes_up(
    images_set, raw, crop, contents, tmp_path
):
    before = contents(images_set.place)
    flip(images_set.place / SHARD, PIXELS)
    image = raw / Shards.open(images_set.place).keys[20]
    original = image.read_bytes()
    shutil.copyfile(next(file for file in (raw / "class_2").iterdir()), image)
    with pytest.raises(ValueError, match="made again, it is another one"):
        images_set.repair()
    image.write_bytes(original)
    reader = open_reader(raw, "class_folders")
    again = crop_images(reader, crop, MACHINE, tmp_path / "scratch")
    assert contents(again.path) == before


def test_whole_set_is_left_as_it_is(published, states):
    before = states(published.place)
    published.repair()
    assert states(published.place) == before


def test_repair_of_a_set_that_was_never_made_says_so(images_set):
    shutil.rmtree(images_set.place)
    with pytest.raises(FileNotFoundError, match="run the stage that makes it"):
        images_set.repair()


def test_repair_of_features_that_were_never_made_does_nothing(features_set):
    shutil.rmtree(features_set.place)
    features_set.repair()
    assert not features_set.place.exists()


def test_verify_passes_over_sets_that_were_never_made_but_not_over_all(images_set, tmp_path):
    verify_shards(MACHINE, images=images_set.place, features=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nothing to verify: no set at .*nowhere"):
        verify_shards(MACHINE, features=tmp_path / "nowhere")


def test_verify_names_the_damage_of_all_sets(features_set, images_set):
    flip(images_set.place / SHARD, PIXELS)
    flip(features_set.place / "manifest.parquet", 0.5)
    with pytest.raises(DamagedError) as caught:
        verify_shards(MACHINE, images=images_set.place, features=features_set.place)
    assert str(caught.value).startswith("2 files are damaged; run the repair pipeline")
    for file in (images_set.place / SHARD, features_set.place / "manifest.parquet"):
        assert f"{file}: is damaged: its sha256 is" in str(caught.value)


def kedro(project, conf, pipeline):
    command = [sys.executable, "-m", "selfdistill", "run", "--env=tiny", f"--pipelines={pipeline}"]
    return subprocess.run(
        [*command, f"--conf-source={conf.path}"], cwd=project, capture_output=True, text=True
    )


def test_commands_find_the_damage_of_images_and_features_and_repair_it(
    project, conf, contents, states, leftovers
):
    done = kedro(project, conf, "preprocess_digits_32,features_digits_32")
    assert done.returncode == 0, done.stderr
    places = [
        conf.data / "03_primary/digits_32/images",
        conf.data / "04_feature/digits_32/features",
    ]
    before = [contents(place) for place in places]
    for place in places:
        flip(place / SHARD, PIXELS)
    untouched = [states(place) for place in places]
    done = kedro(project, conf, "verify_digits_32")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    _, _, error = done.stderr.partition("Error: ")
    assert error.startswith("2 files are damaged; run the repair pipeline of the dataset")
    assert all(f"{place / SHARD}: is damaged" in error for place in places)
    for pipeline in ("repair_digits_32", "verify_digits_32"):
        done = kedro(project, conf, pipeline)
        assert done.returncode == 0, done.stderr
    assert [contents(place) for place in places] == before
    for place, old in zip(places, untouched, strict=True):
        touched = {name for name, state in states(place).items() if state != old[name]}
        assert touched == {SHARD, SUMMARY}
    assert leftovers(conf.data) == []
