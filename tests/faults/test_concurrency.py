"""Two runs at once on one output: one of them works, or both do, and no byte differs."""

import os
import shutil
import signal
from contextlib import suppress

import pytest

from selfdistill.data.readers import open_reader
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import job, publish_directory
from selfdistill.pipelines.preprocess.nodes import crop_images


@pytest.fixture
def crop_here(raw, crop, tmp_path):
    """Crop the small images in this process, not yet published."""

    def run(scratch):
        (tmp_path / scratch).mkdir(exist_ok=True)
        reader = open_reader(raw, "class_folders")
        return crop_images(reader, crop, DistributedConfig(num_workers=0), tmp_path / scratch)

    return run


def any_shard(tmp_path, name):
    return lambda: any((tmp_path / name).glob("scratch/images/*/shard-*.arrow"))


def test_second_run_is_refused_at_once_and_the_first_is_unharmed(
    server, run_of, tmp_path, contents, leftovers
):
    first = server.start(**run_of("one"))
    first.wait_or_end(any_shard(tmp_path, "one"))
    os.kill(first.pid, signal.SIGSTOP)  # so that it does not end before the second begins
    second = server.start(**run_of("one"))
    assert second.wait() == 1
    os.kill(first.pid, signal.SIGCONT)
    assert second.error.startswith("ValueError: another run is at work in")
    assert "wait for it to end, or end it" in second.error
    assert first.wait() == 0, first.log
    server.run(**run_of("whole"))
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")
    assert leftovers(tmp_path) == []


def test_two_shares_work_beside_each_other_and_the_whole_run_finds_all_made(
    server, run_of, tmp_path, contents, leftovers
):
    shares = [
        server.start(**run_of("one", "share_images", host=host, num_hosts=2)) for host in (0, 1)
    ]
    assert [share.wait() for share in shares] == [0, 0]
    made = {path.name: path.stat() for path in tmp_path.glob("one/scratch/images/*/*.arrow")}
    assert len(made) == 20
    server.run(**run_of("one"))
    server.run(**run_of("whole"))
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")
    assert leftovers(tmp_path) == []
    for name, state in made.items():
        found = (tmp_path / "one" / "images" / name).stat()
        assert (found.st_ino, found.st_mtime_ns) == (state.st_ino, state.st_mtime_ns)


def test_the_whole_run_and_a_share_refuse_each_other(server, run_of, tmp_path):
    share = run_of("one", "share_images", host=1, num_hosts=2)
    for at_work, other in (({"shared": True}, run_of("one")), ({}, share)):
        with job(tmp_path / "one" / "scratch" / "images", "at-work", **at_work):
            refused = server.start(**other)
            assert refused.wait() == 1
            assert refused.error.startswith("ValueError: another run is at work in")


def test_same_share_twice_at_once_harms_nothing(server, run_of, tmp_path, contents, leftovers):
    twins = [server.start(**run_of("one", "share_images", host=0, num_hosts=2)) for _ in range(2)]
    for twin in twins:
        assert twin.wait() == 0 or "another run is writing it" in twin.error, twin.log
    server.run(**run_of("one", "share_images", host=1, num_hosts=2))
    server.run(**run_of("one"))
    server.run(**run_of("whole"))
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")
    assert leftovers(tmp_path) == []


def test_run_that_comes_between_making_and_publishing_harms_nothing(
    crop_here, tmp_path, contents, leftovers
):
    first = crop_here("scratch")
    second = crop_here("scratch")
    publish_directory(first.path, tmp_path / "images")
    before = contents(tmp_path / "images")
    with pytest.raises(OSError, match="another run"):
        publish_directory(second.path, tmp_path / "images")
    assert contents(tmp_path / "images") == before
    assert leftovers(tmp_path) == []


def test_run_that_publishes_while_another_tidies_up_never_publishes_a_part(
    crop_here, disk_of, tmp_path, contents, monkeypatch
):
    """Between file systems the scratch copy is removed file by file, with no lock held."""
    disk = disk_of("size=10m")
    made = crop_here("scratch").path
    source = shutil.copytree(made, disk.path / "set")
    remove, others = shutil.rmtree, []

    def remove_with_another_run_beside(path, **options):
        if not others and any(path.glob("shard-*")) and path.is_relative_to(disk.path):
            others.append(path)
            for file in sorted(path.glob("shard-*"))[:6]:
                file.unlink()
            with suppress(OSError):
                publish_directory(source, tmp_path / "images")
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_with_another_run_beside)
    publish_directory(source, tmp_path / "images")
    assert others
    assert contents(tmp_path / "images") == contents(made)
