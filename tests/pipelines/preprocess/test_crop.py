import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro.validation.type_extractor import TypeExtractor
from PIL import Image

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.crops import adm_center_crop, decode_rgb
from selfdistill.data.readers import open_reader
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import job
from selfdistill.io.raw_images import RawImagesDataset
from selfdistill.io.shards import PlaceDataset, ScratchDataset, ShardsDataset
from selfdistill.pipelines.preprocess import create_pipeline
from selfdistill.pipelines.preprocess import crop as crop_module
from selfdistill.pipelines.preprocess.nodes import crop_images

REPOSITORY = Path(__file__).parents[3]
SAMPLE = REPOSITORY.parent / "shared" / "data" / "imagenet_sample" / "train"
GOLDENS = REPOSITORY.parent / "shared" / "goldens" / "adm_crop.json"

Crop = Callable[..., Shards]


def png(seed: int, width: int = 20, height: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def config(**changes: object) -> PreprocessConfig:
    settings = {
        "crop": "adm",
        "resolution": 8,
        "num_classes": 3,
        "shard_size": 5,
        "max_reject_share": 0.2,
    }
    return PreprocessConfig.model_validate(settings | changes)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """23 images in 3 classes, two of them broken: 5 shards."""
    root = tmp_path / "raw"
    for number in range(23):
        file = root / f"class_{number % 3}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    (root / "class_0" / "06.png").write_bytes(png(6)[:-40])
    (root / "class_2" / "23.JPEG").write_bytes(b"")
    (root / "class_2" / "20.png").unlink()
    return root


@pytest.fixture
def crop(raw: Path, tmp_path: Path) -> Crop:
    """Run the node on the raw images as they are now."""

    def run(scratch: str = "scratch", num_workers: int = 0, **changes: object) -> Shards:
        (tmp_path / scratch).mkdir(exist_ok=True)
        return crop_images(
            open_reader(raw, "class_folders"),
            config(**changes),
            DistributedConfig(num_workers=num_workers),
            tmp_path / scratch,
        )

    return run


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def written(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("shard-*.arrow")}


def test_shards_hold_the_cropped_images_in_order(crop, raw):
    shards = crop()
    assert (len(shards), shards.shape, shards.dtype) == (21, (8, 8, 3), np.uint8)
    assert shards.class_names == ["class_0", "class_1", "class_2"]
    assert [entry["num_records"] for entry in shards.header["shards"]] == [4, 5, 5, 5, 2]
    assert shards.keys == sorted(shards.keys)
    for key, label, pixels in zip(shards.keys, shards.labels, shards.read(range(21)), strict=True):
        assert key.startswith(f"class_{label}/")
        expected = adm_center_crop(decode_rgb((raw / key).read_bytes()), 8)
        np.testing.assert_array_equal(pixels, expected)


def test_header_says_how_the_images_were_made(crop, raw):
    about = crop().header["about"]
    assert about.keys() == {"crop", "resolution", "raw_fingerprint", "decoder"}
    assert about["raw_fingerprint"] == open_reader(raw, "class_folders").fingerprint


def test_what_is_published_holds_the_set_alone_and_no_absolute_path(crop, tmp_path):
    shards = crop()
    files = contents(shards.path)
    assert {name for name in files if not name.startswith("shard-")} == {
        "manifest.json",
        "manifest.parquet",
    }
    assert {Path(name).suffix for name in files} == {".arrow", ".json", ".parquet"}
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    assert str(tmp_path) not in shards.manifest.to_csv()


def test_rejects_are_recorded_with_reasons(crop, caplog):
    with caplog.at_level(logging.WARNING):
        manifest = crop().manifest
    rejects = manifest[manifest["reason"].notna()].set_index("source")
    assert list(rejects.index) == ["class_0/06.png", "class_2/23.JPEG"]
    assert list(rejects["label"]) == [0, 2]
    assert list(rejects["shard"]) == [-1, -1]
    assert rejects["reason"]["class_2/23.JPEG"] == "empty file"
    assert "truncated" in rejects["reason"]["class_0/06.png"]
    assert len(manifest) == 23
    assert "2 of 23 images rejected" in caplog.text
    assert "class_2/23.JPEG: empty file" in caplog.text


def test_too_many_rejects_fail_but_the_shards_stay(crop, tmp_path):
    with pytest.raises(ValueError, match=r"a share of 0\.087, more than .* = 0\.05") as caught:
        crop(max_reject_share=0.05)
    assert "class_2/23.JPEG: empty file" in str(caught.value)
    (directory,) = (path for path in (tmp_path / "scratch").iterdir() if path.is_dir())
    before = written(directory)
    assert len(before) == 5
    assert written(crop(max_reject_share=0.1).path) == before


def test_number_of_processes_changes_no_byte(crop):
    one, three = crop("one", num_workers=0), crop("three", num_workers=3)
    assert contents(one.path) == contents(three.path)


def test_only_missing_shards_are_made_and_with_the_same_bytes(crop, caplog):
    shards = crop()
    before, times = contents(shards.path), written(shards.path)
    for name in ("shard-00001.arrow", "shard-00003.arrow", "manifest.json"):
        (shards.path / name).unlink()
    leftover = shards.path / ".shard-00003.arrow.0123abcd.tmp"
    leftover.write_bytes(b"half a shard")
    with caplog.at_level(logging.INFO):
        again = crop()
    assert contents(again.path) == before
    remade = {name for name, when in written(again.path).items() if times[name] != when}
    assert remade == {"shard-00001.arrow", "shard-00003.arrow"}
    assert "Going on with the unfinished job" in caplog.text
    assert "Cropping 10 images to 8 x 8, from shard 1 on" in caplog.text


def test_truncated_shard_is_named_and_made_anew_once_it_is_deleted(crop):
    shards = crop()
    before = contents(shards.path)
    file = shards.path / "shard-00002.arrow"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"shard-00002\.arrow: is truncated .*; delete it"):
        crop()
    file.unlink()
    assert contents(crop().path) == before


def test_other_parameters_or_images_start_anew_beside_the_old(crop, raw, caplog):
    first = crop()
    with caplog.at_level(logging.INFO):
        second = crop(resolution=4)
    assert "Starting anew" in caplog.text
    (raw / "class_1" / "99.png").write_bytes(png(99))
    third = crop()
    assert len({first.path, second.path, third.path}) == 3
    assert all(shards.path.is_dir() for shards in (first, second, third))
    assert len(third) == 22


def test_other_code_of_the_crop_starts_anew(crop, monkeypatch):
    before = crop().path
    monkeypatch.setattr(crop_module.Code, "fingerprint", lambda code: f"changed {code.modules}")
    assert crop().path != before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_image_stops_the_run_and_finished_shards_stay(raw, tmp_path, crop, num_workers):
    reader = open_reader(raw, "class_folders")
    gone = raw / "class_2" / "17.png"
    gone.rename(tmp_path / "17.png")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(OSError, match=r"17\.png: cannot be read"):
        crop_images(
            reader, config(), DistributedConfig(num_workers=num_workers), tmp_path / "scratch"
        )
    (directory,) = (path for path in (tmp_path / "scratch").iterdir() if path.is_dir())
    before = written(directory)
    (tmp_path / "17.png").rename(gone)
    after = written(crop().path)
    assert before.items() <= after.items()
    if num_workers == 0:
        assert len(before) == 4


def test_wrong_number_of_classes_is_refused_before_any_work(crop, tmp_path):
    with pytest.raises(ValueError, match=r"have 3 classes, preprocess\.num_classes is 1000"):
        crop(num_classes=1000)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_full_disk_is_noticed_before_any_work(crop, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ValueError, match=r"23 images of 512 x 512 need 0\.0 GB in .*, where 0\.0 GB are"
    ):
        crop(resolution=512)
    assert not list((tmp_path / "scratch").rglob("*.arrow"))


def test_second_run_in_the_same_scratch_is_refused(crop, tmp_path):
    with (
        job(tmp_path / "scratch", "another"),
        pytest.raises(ValueError, match="another run is at work"),
    ):
        crop()
    assert len(crop()) == 21


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_killed_run_leaves_no_process_and_goes_on_with_the_same_bytes(tmp_path):
    root, scratch = tmp_path / "raw", tmp_path / "scratch"
    (root / "class_0").mkdir(parents=True)
    (root / "class_0" / "000.png").write_bytes(png(0, 800, 700))
    for number in range(1, 60):
        os.link(root / "class_0" / "000.png", root / "class_0" / f"{number:03d}.png")
    scratch.mkdir()
    settings = config(num_classes=1, shard_size=3)
    program = tmp_path / "program.py"  # without a guard: workers must not import it
    program.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(REPOSITORY / 'src')!r})\n"
        "from selfdistill.data.config import PreprocessConfig\n"
        "from selfdistill.data.readers import open_reader\n"
        "from selfdistill.pipelines.preprocess.crop import crop_job\n"
        f"config = PreprocessConfig.model_validate_json({settings.model_dump_json()!r})\n"
        f"reader = open_reader(Path({str(root)!r}), 'class_folders')\n"
        f"crop_job(reader, config, 2).build(Path({str(scratch)!r}))\n"
    )
    parent = subprocess.Popen([sys.executable, str(program)])
    deadline = time.monotonic() + 180
    while not list(scratch.glob("*/shard-*.arrow")):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(running(int(pid)) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(children) >= 2
    assert not any(running(int(pid)) for pid in children)

    (directory,) = (path for path in scratch.iterdir() if path.is_dir())
    before = written(directory)
    assert 0 < len(before) < 20
    reader = open_reader(root, "class_folders")
    resumed = crop_images(reader, settings, DistributedConfig(num_workers=2), scratch)
    assert before.items() <= written(resumed.path).items()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    one_go = crop_images(reader, settings, DistributedConfig(num_workers=0), fresh)
    assert contents(resumed.path) == contents(one_go.path)


@pytest.mark.data
@pytest.mark.parametrize("size", [64, 256, 512])
def test_imagenet_sample_equals_the_reference_crop(tmp_path, size):
    if not (GOLDENS.is_file() and SAMPLE.is_dir()):
        pytest.skip(f"{GOLDENS} or {SAMPLE} is absent")
    expected = json.loads(GOLDENS.read_text())["sizes"][str(size)]
    reader = open_reader(SAMPLE, "class_folders")
    settings = config(
        resolution=size, num_classes=len(reader.class_names), shard_size=64, max_reject_share=0
    )
    shards = crop_images(reader, settings, DistributedConfig(num_workers=2), tmp_path)
    found = {
        key: hashlib.sha256(shards.read([index]).tobytes()).hexdigest()
        for index, key in enumerate(shards.keys)
    }
    assert len(found) == 300
    assert found == expected


def test_stage_turns_the_digits_into_shards(tmp_path):
    catalog = DataCatalog(
        {
            "raw": RawImagesDataset(path=str(tmp_path / "raw"), layout="class_folders"),
            "images_scratch": ScratchDataset(path=str(tmp_path / "scratch")),
            "images_place": PlaceDataset(path=str(tmp_path / "images")),
            "images": ShardsDataset(path=str(tmp_path / "images")),
            "params:preprocess": MemoryDataset(
                config(resolution=32, num_classes=10, shard_size=512, max_reject_share=0.01)
            ),
            "params:distributed": MemoryDataset(DistributedConfig(num_workers=0)),
        }
    )
    SequentialRunner().run(create_pipeline("digits"), catalog)
    shards = catalog.load("images")
    assert shards.path == tmp_path / "images"
    assert (len(shards), shards.shape) == (1797, (32, 32, 3))
    assert shards.header["num_rejects"] == 1
    assert shards.class_names == [f"digit_{number}" for number in range(10)]
    assert np.bincount(shards.labels).min() == 174


def test_kedro_finds_the_types_of_the_parameters():
    types = TypeExtractor({"preprocess": create_pipeline()}).extract_types_from_pipelines()
    assert types == {"preprocess": PreprocessConfig, "distributed": DistributedConfig}


def test_nodes_load_nothing_heavy():
    code = (
        "import selfdistill.pipelines.preprocess.nodes, sys; "
        "heavy = {'torch', 'pandas', 'pyarrow', 'PIL', 'sklearn'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY / "src")
