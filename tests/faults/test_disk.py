"""Disks that are full, read-only, or two: a clear error, nothing is lost, the next run goes on."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kedro.io import DatasetError

from selfdistill import files
from selfdistill.data import shard_job, shard_writer
from selfdistill.data.config import LatentsConfig
from selfdistill.data.readers import open_reader
from selfdistill.distributed_config import DistributedConfig
from selfdistill.io.shards import ScratchDataset, ShardsDataset
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.features.nodes import cache_features
from selfdistill.pipelines.latents.nodes import encode_latents
from selfdistill.pipelines.preprocess.nodes import crop_images

_WRITE_ONLY = Path("/proc/sys/vm/compact_memory")
REMEDY = (
    r"cannot be written, the disk is full .*: make room, or keep data on another disk .* run again"
)


@pytest.fixture
def preprocess(raw, crop):
    """Preprocess below a folder, from raw images to the published set."""

    def run(data: Path, num_workers: int = 0, scratch: Path | None = None) -> None:
        reader = open_reader(raw, "class_folders")
        work = ScratchDataset(path=str(scratch or data / "scratch")).load()
        shards = crop_images(reader, crop, DistributedConfig(num_workers=num_workers), work)
        ShardsDataset(path=str(data / "images")).save(shards)

    return run


@pytest.fixture(scope="module")
def many_images(shard_set, tmp_path_factory):
    rows = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    return shard_set(tmp_path_factory.mktemp("given"), rows, 20)


@pytest.fixture
def encode(many_images, teacher):
    """Cache features below a folder, up to the published set."""

    def run(data: Path) -> None:
        machine = DistributedConfig(device="cpu", num_ranks=1, num_workers=1)
        work = ScratchDataset(path=str(data / "scratch")).load()
        shards = cache_features(many_images, teacher, machine, work)
        ShardsDataset(path=str(data / "features")).save(shards)

    return run


@pytest.fixture
def filling(monkeypatch):
    """Let the disk have had enough room when a run began."""
    monkeypatch.setattr(shard_job, "check_space", lambda *_: None)


def complete(data: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in data.glob("scratch/*/shard-*.arrow")}


@pytest.mark.usefixtures("filling")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("full", ["size=120k", "nr_inodes=9"])
def test_full_disk_stops_preprocess_and_with_more_room_it_goes_on(
    preprocess, disk_of, tmp_path, contents, leftovers, num_workers, full
):
    disk = disk_of(full)
    with pytest.raises(OSError, match=rf"shard-0000\d\.(arrow|json): {REMEDY}") as caught:
        preprocess(disk.path, num_workers)
    assert "what is finished is kept" in str(caught.value)
    kept = complete(disk.path)
    assert 0 < len(kept) < 6
    if num_workers == 0:  # else another process was stopped in the midst of its shard
        assert leftovers(disk.path) == []
    disk.remount("size=10m,nr_inodes=1000")
    preprocess(disk.path, num_workers)
    preprocess(tmp_path / "whole")
    assert leftovers(disk.path) == []
    assert contents(disk.path) == contents(tmp_path / "whole")
    for name, inode in kept.items():
        assert (disk.path / "images" / name).stat().st_ino == inode


@pytest.mark.usefixtures("filling")
def test_full_disk_stops_feature_caching_and_with_more_room_it_goes_on(
    encode, disk_of, tmp_path, contents, leftovers
):
    disk = disk_of("size=60k")
    with pytest.raises(OSError, match=rf"shard-0000\d\.(arrow|json): {REMEDY}"):
        encode(disk.path)
    assert 0 < len(complete(disk.path)) < 6
    assert leftovers(disk.path) == []
    disk.remount("size=10m")
    encode(disk.path)
    encode(tmp_path / "whole")
    assert contents(disk.path) == contents(tmp_path / "whole")


def refusing_flush(code, condition):
    """Flush, but refuse with an error where the condition holds of the file's path."""
    flush = os.fsync

    def refuse(descriptor):
        if condition(str(Path(f"/proc/self/fd/{descriptor}").readlink())):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    return refuse


@pytest.mark.parametrize(
    ("stage", "code", "num_flushes"),
    [
        ("preprocess", errno.ENOSPC, 14),
        ("preprocess", errno.EDQUOT, 14),
        ("encode", errno.ENOSPC, 15),
    ],
)
def test_disk_that_is_full_at_any_flush_is_named_and_nothing_is_lost(
    request, stage, code, num_flushes, tmp_path, contents, leftovers, monkeypatch
):
    """Network file systems and quotas refuse when data are flushed: of each file, once."""
    run = request.getfixturevalue(stage)
    run(tmp_path / "whole")
    flushed: list[str] = []
    for number in range(1, num_flushes + 2):
        data = tmp_path / f"data_{number}"
        flushed.clear()

        def at_last(path, last=number):
            flushed.append(path)
            return len(flushed) == last

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refusing_flush(code, at_last))
            if number > num_flushes:  # there are no more
                run(data)
                break
            with pytest.raises(OSError, match=REMEDY):
                run(data)
        assert leftovers(data) == []
        kept = complete(data)
        run(data)
        assert contents(data) == contents(tmp_path / "whole")
        place = data / ("images" if stage == "preprocess" else "features")
        assert kept == {name: (place / name).stat().st_ino for name in kept}


@pytest.mark.parametrize("place", ["manifest.parquet", "manifest.json"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_is_full_at_the_manifest_names_it_and_keeps_all_shards(
    preprocess, tmp_path, contents, leftovers, monkeypatch, place, code
):
    preprocess(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing_flush(code, lambda path: f".{place}." in path))
        with pytest.raises(OSError, match=rf"{place}: {REMEDY}"):
            preprocess(tmp_path / "data")
    before = complete(tmp_path / "data")
    assert len(before) == 6
    assert leftovers(tmp_path / "data") == []
    preprocess(tmp_path / "data")
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    for name, inode in before.items():
        assert (tmp_path / "data" / "images" / name).stat().st_ino == inode


@pytest.mark.parametrize("number", [1, 2, 5, 9, 14])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_refused_write_of_a_shard_leaves_no_part_of_it(
    preprocess, tmp_path, contents, leftovers, monkeypatch, number, code
):
    write, left = shard_writer._HashedFile.write, [number]

    def refuse(file, data):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        return write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer._HashedFile, "write", refuse)
        with pytest.raises(OSError, match=os.strerror(code)):
            preprocess(tmp_path / "data")
    assert leftovers(tmp_path / "data") == []
    preprocess(tmp_path / "data")
    preprocess(tmp_path / "whole")
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_set_made_on_another_file_system_than_it_is_published_on_has_the_same_bytes(
    preprocess, disk_of, tmp_path, contents, leftovers
):
    disk = disk_of("size=10m")
    preprocess(tmp_path / "data", scratch=disk.path / "scratch")
    preprocess(tmp_path / "whole")
    assert contents(tmp_path / "data" / "images") == contents(tmp_path / "whole" / "images")
    assert leftovers(tmp_path) == []
    assert set(contents(disk.path)) == {"scratch/.lock"}


@pytest.mark.parametrize("is_seen", [True, False])
def test_set_that_does_not_fit_where_it_is_published_is_kept_and_the_old_one_too(
    preprocess, disk_of, tmp_path, contents, leftovers, monkeypatch, is_seen
):
    """Whether it is seen beforehand, or another one fills the disk meanwhile."""
    if not is_seen:
        monkeypatch.setattr(files, "check_space", lambda *_: None)
    disk = disk_of("size=150k")
    old = disk.path / "images"
    old.mkdir()
    (old / "manifest.json").write_text("the old set")
    refusal = "which are copied, need 0.0 GB" if is_seen else REMEDY
    with pytest.raises(DatasetError, match=refusal):
        preprocess(disk.path, scratch=tmp_path / "scratch")
    assert contents(disk.path) == {"images/manifest.json": b"the old set"}
    assert len(list(tmp_path.glob("scratch/*/shard-*.arrow"))) == 6
    disk.remount("size=10m")
    preprocess(disk.path, scratch=tmp_path / "scratch")
    preprocess(tmp_path / "whole")
    assert contents(disk.path / "images") == contents(tmp_path / "whole" / "images")
    assert leftovers(disk.path) == []


def no_room(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_too_small_a_disk_is_refused_before_features_are_encoded(encode, monkeypatch, tmp_path):
    no_room(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"120 records of features need 0\.0 GB in .*, where 0\.0"):
        encode(tmp_path)
    assert not list(tmp_path.rglob("*.arrow"))


def test_too_small_a_disk_is_refused_before_latents_are_encoded(shard_set, monkeypatch, tmp_path):
    rows = np.zeros((5, 32, 32, 3), np.uint8)
    images = shard_set(tmp_path / "given", rows)
    vae = VAEConfig(
        weights="random",
        seed=0,
        architecture={
            "block_out_channels": [8, 8, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        batch_size=4,
    )
    latents = LatentsConfig(vae="random", convention="sd", mirrored=False, dtype="float32")
    no_room(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"5 records of latents need 0\.0 GB in .*, where 0\.0"):
        encode_latents(
            images, latents, vae, DistributedConfig(device="cpu", num_ranks=1), tmp_path / "scratch"
        )
    assert not list((tmp_path / "scratch").rglob("*.arrow"))


def kedro(project, conf, *arguments):
    command = [sys.executable, "-m", "selfdistill", "run", "--env=tiny", *arguments]
    return subprocess.run(
        [*command, f"--conf-source={conf.path}"], cwd=project, capture_output=True, text=True
    )


def the_error(done):
    """The one line that a user gets to see."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.parametrize(
    "size",
    [
        pytest.param("2m"),
        "10m",
    ],
)
def test_full_data_root_ends_the_command_with_one_line(project, conf, disk_of, leftovers, size):
    """Full while the digits are written, and with no room for their shards."""
    disk = disk_of(f"size={size}")
    conf.change("tiny/globals.yml", {"data_root": str(disk.path)})
    error = the_error(kedro(project, conf, "--pipelines=preprocess_digits_32"))
    assert str(disk.path) in error
    assert "make room, or keep data on another disk (data_root in globals.yml" in error
    assert leftovers(disk.path) == []


def test_data_root_without_room_for_another_file_ends_the_command_with_one_line(
    project, conf, disk_of, leftovers
):
    """Of 1,797 raw images and four shards only the former find room."""
    disk = disk_of("size=100m,nr_inodes=1823")
    conf.change("tiny/globals.yml", {"data_root": str(disk.path)})
    error = the_error(kedro(project, conf, "--pipelines=preprocess_digits_32"))
    assert "make room, or keep data on another disk (data_root in globals.yml" in error
    assert leftovers(disk.path) == []


@pytest.mark.skipif(not _WRITE_ONLY.exists(), reason="needs a file that even root cannot read")
def test_unreadable_raw_image_ends_the_command_with_one_line(project, conf):
    raw = conf.data / "01_raw" / "digits"
    for number in range(10):
        (raw / f"digit_{number}").mkdir(parents=True)
        (raw / f"digit_{number}" / "a.png").write_bytes(b"no image")
    image = raw / "digit_4" / "b.png"
    image.symlink_to(_WRITE_ONLY)
    conf.change("tiny/parameters/distributed.yml", {"distributed": {"num_workers": 2}})
    error = the_error(kedro(project, conf, "--pipelines=share_preprocess_digits_32"))
    assert f"{image}: cannot be read: Permission denied; make it readable and run again" in error


def test_output_that_cannot_be_written_ends_in_an_error_that_names_it(
    preprocess, disk_of, tmp_path, contents
):
    disk = disk_of("size=10m")
    disk.remount("ro")
    with pytest.raises(DatasetError, match=rf"Read-only file system: .*{disk.path}"):
        preprocess(disk.path, scratch=tmp_path / "scratch")
    disk.remount("rw")
    preprocess(disk.path, scratch=tmp_path / "scratch")
    preprocess(tmp_path / "whole")
    assert contents(disk.path / "images") == contents(tmp_path / "whole" / "images")
