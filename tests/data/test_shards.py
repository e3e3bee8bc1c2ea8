import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selfdistill.data.shard_writer import ShardWriter, finalize
from selfdistill.data.shards import Shards, missing_shards, shard_name
from selfdistill.files import DamagedError

SHAPE = (5, 3)  # 15 bytes a record: no multiple of Arrow's padding


def record(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


def write_shard(directory: Path, shard: int, numbers: range) -> None:
    with ShardWriter(directory, shard, SHAPE, "uint8") as writer:
        for number in numbers:
            writer.append(f"k{number}", number % 7, record(number))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    write_shard(tmp_path, 0, range(150))
    write_shard(tmp_path, 1, range(150, 200))
    return finalize(tmp_path, num_shards=2, shape=SHAPE, dtype="uint8", class_names=list("abcdefg"))


def test_records_come_back_in_any_order(shards):
    indices = np.array([199, 0, 149, 150, 64, 63, 0])
    expected = np.stack([record(number) for number in indices])
    np.testing.assert_array_equal(shards.read(indices), expected)
    assert shards.read([]).shape == (0, *SHAPE)


def test_keys_and_labels_are_those_of_the_records(shards):
    assert len(shards) == 200
    assert shards.keys == [f"k{number}" for number in range(200)]
    np.testing.assert_array_equal(shards.labels, np.arange(200) % 7)
    assert shards.labels.dtype == np.int64


def test_shard_sizes_are_the_records_of_each_shard(shards):
    assert shards.shard_sizes == [150, 50]


def test_float16_records_come_back_bit_by_bit(tmp_path):
    value = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float16)
    with ShardWriter(tmp_path, 0, value.shape, "float16") as writer:
        writer.append("k", 0, value)
    shards = finalize(tmp_path, num_shards=1, shape=value.shape, dtype="float16")
    np.testing.assert_array_equal(shards.read([0])[0], value)


def test_manifest_names_source_shard_and_record(tmp_path):
    with ShardWriter(tmp_path, 0, SHAPE, "uint8") as writer:
        writer.append("good", 3, record(0), "folder/good.png")
        writer.reject("bad", "truncated", 4, "folder/bad.png")
    shards = finalize(tmp_path, num_shards=1, shape=SHAPE, dtype="uint8")
    lines = shards.manifest.astype(object).where(shards.manifest.notna(), None)
    assert list(lines) == ["key", "label", "source", "crc32", "shard", "record", "reason"]
    assert lines.drop(columns="crc32").to_numpy().tolist() == [
        ["good", 3, "folder/good.png", 0, 0, None],
        ["bad", 4, "folder/bad.png", -1, -1, "truncated"],
    ]
    assert shards.header["num_rejects"] == 1


def test_reasons_are_text_even_where_there_are_none(shards):
    import pyarrow.parquet as pq

    kind = str(pq.read_schema(shards.path / "manifest.parquet").field("reason").type)
    assert kind in ("string", "large_string")


def test_shard_may_hold_no_record(tmp_path):
    with ShardWriter(tmp_path, 0, SHAPE, "uint8") as writer:
        writer.reject("bad", "truncated")
    shards = finalize(tmp_path, num_shards=1, shape=SHAPE, dtype="uint8")
    assert (len(shards), len(shards.labels), shards.keys) == (0, 0, [])


def test_failed_shard_leaves_nothing(tmp_path):
    def fail() -> None:
        with ShardWriter(tmp_path, 0, SHAPE, "uint8") as writer:
            writer.append("k", 0, record(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []
    assert missing_shards(tmp_path, 1) == [0]


@pytest.mark.parametrize("wrong", [np.zeros((5, 4), np.uint8), np.zeros(SHAPE, np.float32)])
def test_record_of_another_shape_or_type_is_refused(tmp_path, wrong):
    with (
        pytest.raises(ValueError, match=r"k: record is .*, the shard holds uint8\[5, 3\]"),
        ShardWriter(tmp_path, 0, SHAPE, "uint8") as writer,
    ):
        writer.append("k", 0, wrong)


def test_missing_shards_are_those_not_complete(tmp_path):
    write_shard(tmp_path, 1, range(3))
    assert missing_shards(tmp_path, 3) == [0, 2]
    with pytest.raises(ValueError, match=r"shards \[0, 2\] are missing; run the stage again"):
        finalize(tmp_path, num_shards=3, shape=SHAPE, dtype="uint8")


@pytest.mark.parametrize("shard", [0, 1])
def test_truncated_shard_is_named_when_the_set_is_opened(shards, shard):
    file = shards.path / shard_name(shard)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=rf"{shard_name(shard)}: is truncated \({size - 100:,} bytes of"
    ):
        Shards.open(shards.path)


def test_truncated_shard_is_named_before_the_manifest_is_written(tmp_path):
    write_shard(tmp_path, 0, range(150))
    file = tmp_path / shard_name(0)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{file.name}: is truncated .*; delete it and run"):
        finalize(tmp_path, num_shards=1, shape=SHAPE, dtype="uint8")


def test_missing_shard_is_named(shards):
    (shards.path / shard_name(1)).unlink()
    with pytest.raises(ValueError, match=rf"{shard_name(1)}: is missing"):
        Shards.open(shards.path)


def test_unfinished_set_does_not_open(tmp_path):
    write_shard(tmp_path, 0, range(3))
    with pytest.raises(FileNotFoundError, match="run the stage that makes it"):
        Shards.open(tmp_path)


def test_same_records_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_shard(tmp_path / name, 0, range(100))
        finalize(tmp_path / name, num_shards=1, shape=SHAPE, dtype="uint8")
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 4


def test_checksum_in_the_header_is_that_of_the_shard(shards):
    from selfdistill.files import sha256_of

    for entry in shards.header["shards"]:
        assert sha256_of(shards.path / entry["file"]) == entry["sha256"]
    written = json.loads((shards.path / "manifest.json").read_text())
    assert written.pop("checksum")
    assert written == shards.header


def test_handle_travels_without_its_records(shards):
    shards.read([0, 199])
    assert shards.labels.size
    assert len(pickle.dumps(shards)) < 2000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shards)).read([5])[0], record(5))


def test_importing_the_module_loads_neither_pandas_nor_pyarrow():
    code = (
        "import selfdistill.data.shards, sys; assert not {'pandas', 'pyarrow'} & set(sys.modules)"
    )
    src = str(Path(__file__).parents[2] / "src")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=src)


@pytest.mark.parametrize("shape", [(1,), (3,), (8,), (13,), (64,), (2, 4, 7)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_data_lies_in_the_arrow_file_where_the_header_says(tmp_path, shape, dtype):
    import pyarrow as pa

    rows = np.random.default_rng(0).integers(0, 99, (130, *shape)).astype(dtype)
    with ShardWriter(tmp_path, 0, shape, dtype) as writer:
        for number, row in enumerate(rows):
            writer.append("k" * (number % 7), number, row, "s" * (number % 5))
    shards = finalize(tmp_path, num_shards=1, shape=shape, dtype=dtype)
    np.testing.assert_array_equal(shards.read(range(130)), rows)
    with pa.OSFile(str(tmp_path / shard_name(0))) as file:
        table = pa.ipc.open_file(file).read_all()
    assert [np.frombuffer(each.as_py(), dtype).tolist() for each in table["data"]] == [
        row.reshape(-1).tolist() for row in rows
    ]
    assert table["label"].to_pylist() == list(range(130))


def test_damaged_manifest_is_named_when_labels_are_read(shards):
    file = shards.path / "manifest.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.parquet: is damaged"):
        _ = Shards.open(shards.path).labels


def test_record_that_does_not_exist_is_refused(shards):
    for index in (-1, 200):
        with pytest.raises(IndexError, match="records are 0 to 199"):
            shards.read([0, index])


def test_keys_of_some_records_come_in_their_order(shards):
    assert shards.keys_of(np.array([199, 0, 0, 64])) == ["k199", "k0", "k0", "k64"]


@pytest.mark.parametrize("strict", [False, True])
def test_set_that_is_replaced_under_a_reader_is_noticed(tmp_path, strict):
    for name, offset in (("one", 0), ("two", 100)):
        write_shard(tmp_path / name, 0, range(offset, offset + 70))
        write_shard(tmp_path / name, 1, range(offset + 70, offset + 90))
        finalize(tmp_path / name, num_shards=2, shape=SHAPE, dtype="uint8")
    reader = Shards.open(tmp_path / "one", strict=strict)
    if strict:
        reader.read([0])
    reader.read([5])
    (tmp_path / "one").rename(tmp_path / "old")
    (tmp_path / "two").rename(tmp_path / "one")
    np.testing.assert_array_equal(reader.read([5])[0], record(5))  # its map is the old one's
    with pytest.raises(DamagedError, match=rf"{shard_name(1)}: was damaged, removed or replaced"):
        reader.read([75])


@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_shard_that_goes_after_the_set_was_opened_is_named(shards, fault):
    file = shards.path / shard_name(1)
    file.unlink() if fault == "missing" else file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DamagedError, match=rf"{file.name}: was damaged, removed or replaced"):
        shards.read([199])
