"""Pickles of arrays: read bit for bit, and nothing in them is executed."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from selfdistill.data.array_pickle import read_array_pickle


def read(data: bytes):
    return read_array_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_come_as_they_were_written(protocol):
    rng = np.random.default_rng(0)
    arrays = {
        "sigma": rng.normal(size=(3, 4)),
        "transposed": rng.normal(size=(3, 4)).T,
        "big": rng.normal(size=5).astype(">f8"),
        "pixels": rng.integers(0, 256, (2, 3), dtype=np.uint8),
        "empty": np.zeros((0, 2), np.float32),
    }
    found = read(pickle.dumps({"fid": arrays, "num_images": 5, "names": ["a", b"b"]}, protocol))
    assert list(found) == ["fid", "num_images", "names"]
    assert (found["num_images"], found["names"]) == (5, ["a", b"b"])
    for name, array in arrays.items():
        np.testing.assert_array_equal(found["fid"][name], array)
        assert found["fid"][name].dtype == array.dtype.newbyteorder("=")


def test_a_pickle_of_python_2_is_read():
    data = (
        b"\x80\x02}(U\x06labels](K\x03K\x04eU\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01"
        b"\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x02\x03\x04tbu."
    )
    found = read(data)
    assert found["labels"] == [3, 4]
    np.testing.assert_array_equal(found["data"], np.array([[1, 2], [3, 4]], np.uint8))


class Touching:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_name_that_no_array_needs_is_refused_and_not_run(tmp_path):
    with pytest.raises(ValueError, match=r"it asks for pathlib\S*\.Path\S*, which no array needs"):
        read(pickle.dumps({"fid": Touching(tmp_path / "trace")}))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.array(["text"]), {1, 2}, 1j, [[[[[[1]]]]]]],
    ids=["objects", "text", "set", "complex", "nested"],
)
def test_all_but_arrays_of_numbers_is_refused(value):
    with pytest.raises(ValueError, match="not a pickle of arrays, and not read"):
        read(pickle.dumps({"fid": value}, 4))


def test_a_forged_array_is_refused():
    data = pickle.dumps(np.arange(8.0), 2)
    longer = data.replace(b"K\x08\x85", b"K\x09\x85", 1)
    assert longer != data
    with pytest.raises(ValueError, match=r"an array of \(9,\) in it has 64 bytes"):
        read(longer)
    for stop in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="not a pickle of arrays"):
            read(data[:stop])


def test_a_dict_that_holds_itself_is_refused():
    inner: dict = {}
    inner["again"] = inner
    with pytest.raises(ValueError, match="nested too deep"):
        read(pickle.dumps(inner))
