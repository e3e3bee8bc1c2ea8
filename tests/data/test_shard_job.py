"""The kind of job itself, on shards that cost nothing."""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfdistill.data.shard_job import Fault, ShardJob, find_faults, share_of, verify
from selfdistill.data.shard_writer import ShardWriter
from selfdistill.data.shards import Shards, shard_name
from selfdistill.distributed import World
from selfdistill.files import DamagedError, job, publish_directory

SHAPE = (4,)


class Maker:
    """Makes shards whose records are their numbers.

    Attributes:
        made: Numbers of those that were made, in order.
        fail_at: The shard that cannot be made.
        offset: Added to all records.
    """

    def __init__(self) -> None:
        self.made: list[int] = []
        self.fail_at, self.offset = -1, 0

    def __call__(self, directory: Path, numbers: Sequence[int]) -> None:
        for shard in numbers:
            if shard == self.fail_at:
                raise OSError(f"shard {shard} cannot be made")
            with ShardWriter(directory, shard, SHAPE, "uint8") as writer:
                for number in range(shard % 3):
                    record = np.full(SHAPE, shard + self.offset, np.uint8)
                    writer.append(f"{shard}/{number}", number, record)
                writer.reject(f"{shard}/reject", "no image")
            self.made.append(shard)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def seven(maker: Maker) -> ShardJob:
    return ShardJob(
        "seven", "numbers", [4] * 7, SHAPE, "uint8", maker, ("a", "b"), {"of": "numbers"}
    )


@pytest.fixture
def place(seven: ShardJob, maker: Maker, tmp_path: Path) -> Path:
    """The published set."""
    publish_directory(seven.build(tmp_path / "scratch").path, tmp_path / "set")
    maker.made.clear()
    return tmp_path / "set"


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_job_that_failed_goes_on_where_it_stopped(seven, maker, tmp_path):
    maker.fail_at = 3
    with pytest.raises(OSError, match="shard 3 cannot be made"):
        seven.build(tmp_path)
    maker.fail_at = -1
    shards = seven.build(tmp_path)
    assert maker.made == [0, 1, 2, 3, 4, 5, 6]
    assert shards.about == {"of": "numbers"}
    assert (len(shards), shards.header["num_rejects"]) == (6, 7)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(num_shards=st.integers(0, 9), num_hosts=st.integers(1, 12), chance=st.randoms())
def test_shares_in_any_order_make_every_shard_once(tmp_path_factory, num_shards, num_hosts, chance):
    maker, scratch = Maker(), tmp_path_factory.mktemp("scratch")
    shared = ShardJob("shared", "numbers", [4] * num_shards, SHAPE, "uint8", maker)
    hosts = list(range(num_hosts))
    chance.shuffle(hosts)
    for host in hosts:
        shared.build_share(scratch, host, num_hosts)
    assert sorted(maker.made) == list(range(num_shards))
    shared.build(scratch)
    assert len(maker.made) == num_shards


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_that_are_started_again_share_what_is_left(tmp_path, maker, size):
    """Though a shard is made while the last of them looks."""
    made = [0, 2, 4, 6]  # by a rank 0; its rank 1 made none
    maker(tmp_path, made)
    lists: list[Sequence[int]] = []

    class Rank(World):
        def from_main(self, numbers):
            lists.append(numbers)
            return list(lists[0])

    ranks = [Rank(rank, size, torch.device("cpu")) for rank in range(size)]
    shares = [share_of(range(8), tmp_path, ranks[0])]
    maker(tmp_path, [1])
    shares += [share_of(range(8), tmp_path, rank) for rank in ranks[1:]]
    assert sorted(itertools.chain(*shares)) == [1, 3, 5, 7]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_share_says_what_is_left_to_others(seven, tmp_path, caplog):
    caplog.set_level("INFO")
    seven.build_share(tmp_path, 1, 2)
    assert "Host 1 of 2: its 4 shards are made. 3 of 7 are left to other hosts" in caplog.text
    seven.build_share(tmp_path, 0, 2)
    assert "the run without a share makes the manifest" in caplog.text


def test_run_of_the_whole_job_is_refused_beside_a_share_and_shares_are_not(seven, tmp_path):
    with job(tmp_path, seven.name, shared=True):
        with pytest.raises(ValueError, match="another run is at work"):
            seven.build(tmp_path)
        seven.build_share(tmp_path, 0, 2)
    with job(tmp_path, seven.name), pytest.raises(ValueError, match="another run is at work"):
        seven.build_share(tmp_path, 1, 2)


def test_whole_set_has_no_faults(place):
    assert find_faults(place, 0) == []
    verify([place], 2)


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_faults_are_named_in_the_order_of_the_set(place, num_threads):
    for name in ("manifest.parquet", shard_name(4), "shard-00002.json"):
        damage(place / name)
    (place / shard_name(1)).unlink()
    faults = find_faults(place, num_threads)
    assert [(fault.file, fault.shard) for fault in faults] == [
        ("manifest.parquet", None), (shard_name(1), 1), ("shard-00002.json", 2), (shard_name(4), 4)
    ]  # fmt: skip
    assert faults[1] == Fault(shard_name(1), "is missing", 1)
    assert faults[3].reason.startswith("is damaged: its sha256 is ")


def test_many_faults_are_counted_and_the_first_ten_named(place):
    for file in place.glob("shard-*"):
        damage(file)
    with pytest.raises(DamagedError, match=r"^14 files are damaged; run") as caught:
        verify([place], 1)
    assert str(caught.value).count("\n  ") == 11
    assert str(caught.value).endswith("and 4 more")


def test_set_of_another_format_is_no_damage(place):
    header = json.loads((place / "manifest.json").read_text())
    del header["checksum"], header["format"]
    (place / "manifest.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="of format 1, this version reads 2; delete") as caught:
        verify([place], 1)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("names", [*itertools.combinations(["manifest.json", shard_name(5)], 2)])
def test_only_what_is_damaged_is_made_again(seven, maker, place, tmp_path, names):
    before = contents(place)
    for name in names:
        damage(place / name)
    shards = seven.repair(place, tmp_path / "scratch", 1)
    assert shards.path == place
    assert contents(place) == before
    assert maker.made == [5]


def test_whoever_has_a_damaged_set_open_keeps_what_it_has(seven, place, tmp_path):
    """A repaired shard takes its place by rename: nobody's memory map changes or ends."""
    opened = Shards.open(place)
    before = opened.read(range(6))
    damage(place / shard_name(2))
    harmed = opened.read(range(6))
    seven.repair(place, tmp_path / "scratch", 1)
    np.testing.assert_array_equal(opened.read(range(6)), harmed)
    np.testing.assert_array_equal(Shards.open(place).read(range(6)), before)


def test_failed_repair_leaves_the_set_as_it_was_and_works_later(seven, maker, place, tmp_path):
    before = contents(place)
    for shard in (2, 5):
        damage(place / shard_name(shard))
    damaged = contents(place)
    maker.fail_at = 5
    with pytest.raises(OSError, match="shard 5 cannot be made"):
        seven.repair(place, tmp_path / "scratch", 1)
    assert contents(place) == damaged
    maker.fail_at = -1
    seven.repair(place, tmp_path / "scratch", 1)
    assert contents(place) == before


def test_shard_that_comes_out_otherwise_is_refused_and_none_is_put_into_place(
    seven, maker, place, tmp_path
):
    before = contents(place)
    for shard in (1, 2):
        damage(place / shard_name(shard))
    damaged = contents(place)
    maker.offset = 100
    with pytest.raises(ValueError, match=rf"{shard_name(1)}: made again, it is another one"):
        seven.repair(place, tmp_path / "scratch", 1)
    assert contents(place) == damaged
    maker.offset = 0
    seven.repair(place, tmp_path / "scratch", 1)
    assert contents(place) == before


@pytest.mark.parametrize("num_shards", [6, 8])
def test_repair_by_a_job_of_another_number_of_shards_is_refused(
    seven, maker, place, tmp_path, num_shards
):
    damage(place / shard_name(1))
    damaged = contents(place)
    with pytest.raises(
        ValueError, match=rf"holds 7 shards, but .* give {num_shards}; delete it and run the st"
    ):
        replace(seven, sizes=[4] * num_shards).repair(place, tmp_path / "scratch", 1)
    assert contents(place) == damaged
    assert maker.made == []


def test_repair_beside_a_run_is_refused(seven, place, tmp_path):
    damage(place / shard_name(1))
    with (
        job(tmp_path / "scratch", "another"),
        pytest.raises(ValueError, match="another run is at work"),
    ):
        seven.repair(place, tmp_path / "scratch", 1)


def test_writer_that_outlived_its_run_never_completes_the_file_of_the_next(seven, tmp_path):
    """A killed run's process may still be at a shard when the next run begins with it."""
    orphan = ShardWriter(tmp_path / seven.name, 1, SHAPE, "uint8")
    orphan.__enter__()
    orphan.append("1/0", 0, np.ones(SHAPE, np.uint8))
    with job(tmp_path, seven.name) as directory:  # removes what dead writers left
        file = directory / f".{shard_name(1)}.tmp"
        inode = file.stat().st_ino if file.exists() else None
        assert inode is not None, "the file of a writer at work was removed"
    orphan.__exit__(None, None, None)
    assert (tmp_path / seven.name / shard_name(1)).stat().st_ino == inode


def test_writer_that_completes_leaves_alone_what_the_next_has_begun(tmp_path, monkeypatch):
    """Of two runs of one share, the second gets a shard's lock when the first has renamed it."""
    first = ShardWriter(tmp_path, 0, SHAPE, "uint8")
    second = ShardWriter(tmp_path, 0, SHAPE, "uint8")
    move = Path.replace

    def move_and_begin(source: Path, target: Path) -> Path:
        moved = move(source, target)
        if source.suffix == ".tmp" and target.suffix == ".arrow":
            monkeypatch.setattr(Path, "replace", move)
            second.__enter__()
        return moved

    with first:
        first.append("k", 0, np.zeros(SHAPE, np.uint8))
        monkeypatch.setattr(Path, "replace", move_and_begin)
    before = contents(tmp_path)[shard_name(0)]
    second.append("k", 0, np.zeros(SHAPE, np.uint8))
    second.__exit__(None, None, None)
    assert contents(tmp_path)[shard_name(0)] == before


def test_repair_of_a_manifest_leaves_what_the_header_says_of_the_origin(seven, place, tmp_path):
    """Features of other images must not become features of these by a repair."""
    before = Shards.open(place).header
    (place / "manifest.parquet").write_bytes(b"damaged")
    other = replace(seven, about={"of": "other numbers"}, class_names=("c",))
    other.repair(place, tmp_path / "scratch", 1)
    assert Shards.open(place).header == before
    assert len(Shards.open(place).labels) == len(Shards.open(place))


def test_repair_of_a_header_makes_a_shard_show_that_it_is_the_same_job(
    seven, maker, place, tmp_path
):
    (place / "manifest.json").unlink()
    maker.offset = 1
    with pytest.raises(ValueError, match="made again, it is another one"):
        seven.repair(place, tmp_path / "scratch", 1)
    assert not (place / "manifest.json").exists()
    maker.offset = 0
    seven.repair(place, tmp_path / "scratch", 1)
    assert Shards.open(place).header["job"] == seven.name


def test_each_host_asks_for_the_room_of_all_shares(seven, tmp_path, monkeypatch):
    """Or all of them start, and the disk is full when half is done."""
    asked = []
    monkeypatch.setattr(
        "selfdistill.data.shard_job.check_space", lambda _, size, what: asked.append((size, what))
    )
    seven.build_share(tmp_path, 2, 3)
    assert len(asked) == 1
    assert asked[0][1] == "28 numbers"
    assert asked[0][0] >= 28 * int(np.prod(SHAPE))


def test_way_out_of_a_refused_repair_leads_to_a_whole_set(seven, maker, place, tmp_path):
    """Of a set that was made on another device, say: equal by name, and not by bytes."""
    scratch = tmp_path / "scratch"
    (place / shard_name(4)).write_bytes(b"damaged")
    maker.offset = 1
    with pytest.raises(DamagedError, match=r"run the repair pipeline .* or delete the set"):
        seven.build(scratch, place)
    with pytest.raises(
        ValueError, match=rf"differ from those .*; delete {place} and run its stage"
    ):
        seven.repair(place, scratch, 1)
    shutil.rmtree(place)
    publish_directory(seven.build(scratch, place).path, place)
    verify([place], 1)


def test_stray_files_do_not_hinder_a_repair(seven, place, tmp_path):
    (place / "manifest.json").write_bytes(b"damaged")
    (place / "shard-00001.arrow.bak").write_bytes(b"a copy")
    (place / "shard-00001 (copy).arrow").write_bytes(b"a copy")
    seven.repair(place, tmp_path / "scratch", 1)
    verify([place], 1)


def test_set_without_a_sidecar_does_not_open(place):
    (place / "shard-00002.json").unlink()
    with pytest.raises(DamagedError, match=r"shard-00002\.json: is missing"):
        Shards.open(place)
