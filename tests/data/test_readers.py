import gzip
import hashlib
import io
import json
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfdistill.data.crops import adm_center_crop, decode_rgb
from selfdistill.data.file_reader import FileReader, _class_images, _Member, scan_class_folders
from selfdistill.data.raw import RawImage, Reader
from selfdistill.data.readers import open_reader

SHARED = Path(__file__).parents[3] / "shared" / "data"
CLASSES = {"n01": ["b.JPEG", "a.jpg", "c.png"], "n02": ["z.JPEG"], "n10": ["y.webp", "x.JPEG"]}


def content(folder: str, name: str) -> bytes:
    return f"bytes of {folder}/{name}".encode() * (ord(name[0]) - 90)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "train"
    for folder, names in CLASSES.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(content(folder, name))
    return root


def tar(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return data.getvalue()


def class_tars() -> dict[str, bytes]:
    return {
        f"{folder}.tar": tar({name: content(folder, name) for name in names})
        for folder, names in CLASSES.items()
    }


@pytest.fixture
def nested_tar(tmp_path: Path) -> Path:
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar(class_tars()))
    return path


@pytest.fixture
def tar_folder(tmp_path: Path) -> Path:
    root = tmp_path / "tars"
    root.mkdir()
    for name, data in class_tars().items():
        (root / name).write_bytes(data)
    return root


def write_parquet(
    path: Path,
    images: list[tuple[bytes | None, int | None]],
    *,
    image="image",
    label="label",
    **more,
) -> None:
    """Write images (bytes, label); `names` as class names, in row groups of `row_group_size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [{"bytes": data, "path": None} for data, _ in images]
    labels = [number for _, number in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(content, kind), label: pa.array(labels, pa.int64())}
    table = pa.table(columns)
    if names := more.get("names"):
        about = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=more.get("row_group_size", 3))


def numbered(count: int, num_classes: int = 2) -> list[tuple[bytes | None, int | None]]:
    return [(f"image {k}".encode(), k % num_classes) for k in range(count)]


class Touching:
    """Touches a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def write_edm(path: Path, images: list[list], *, given: object = ..., compression=0) -> Path:
    """Write a zip or a folder as dataset_tool.py does; `given` stands for other labels."""
    files = {name: f"bytes of {name}".encode() for name, _ in images}
    files["dataset.json"] = json.dumps({"labels": images if given is ... else given}).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def cifar10_batch(number: int, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 10, count), rng.integers(0, 256, (count, 3072), dtype=np.uint8)


def write_cifar10(folder: Path, version: str, *, packed: bool = True) -> Path:
    """Write one of CIFAR-10's versions with four images a batch, as its archive or unpacked."""
    names = ["airplane", "automobile", *(f"class_{k}" for k in range(2, 10))]
    binary = version == "binary"
    top = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
    files: dict[str, bytes] = {}
    for number in (3, 1, 2, 5, 4, 6):
        name = f"data_batch_{number}" if number < 6 else "test_batch"
        labels, pixels = cifar10_batch(number)
        if binary:
            records = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            files[f"{name}.bin"] = records.tobytes()
        else:
            batch = {b"labels": labels.tolist(), b"data": pixels, b"batch_label": b"batch"}
            files[name] = pickle.dumps(batch, 2)
    if binary:
        files["batches.meta.txt"] = ("\n".join(names) + "\n\n").encode()
    else:
        files["batches.meta"] = pickle.dumps({b"label_names": [n.encode() for n in names]}, 2)
    if packed:
        path = folder / f"cifar-10-{version}.tar.gz"
        path.write_bytes(gzip.compress(tar({f"{top}/{name}": files[name] for name in files}), 1))
        return path
    for name, data in files.items():
        (folder / top).mkdir(exist_ok=True)
        (folder / top / name).write_bytes(data)
    return folder / top


def facts(reader: Reader) -> list[tuple[str, int, bytes]]:
    return [(image.key, image.label, image.data) for image in reader.iterate()]


class TestClassFolders:
    def test_sorted_folders_are_the_classes_and_sorted_files_the_order(self, folders):
        reader = open_reader(folders, "class_folders")
        assert reader.class_names == ["n01", "n02", "n10"]
        assert [(image.key, image.label) for image in reader.iterate()] == [
            ("n01/a.jpg", 0),
            ("n01/b.JPEG", 0),
            ("n01/c.png", 0),
            ("n02/z.JPEG", 1),
            ("n10/x.JPEG", 2),
            ("n10/y.webp", 2),
        ]
        assert len(reader) == 6
        assert next(reader.part(3, 4).iterate()) == RawImage(
            "n02/z.JPEG", 1, "n02/z.JPEG", content("n02", "z.JPEG")
        )

    def test_hidden_files_and_other_suffixes_are_ignored(self, folders):
        before = open_reader(folders, "class_folders")
        (folders / ".cache").mkdir()
        (folders / "labels.txt").touch()
        (folders / "n01" / "._a.jpg").touch()
        (folders / "n01" / "notes.txt").touch()
        (folders / "n01" / "folder.png").mkdir()
        after = open_reader(folders, "class_folders")
        assert facts(after) == facts(before)
        assert after.fingerprint == before.fingerprint

    def test_fingerprint_sees_a_new_name_and_a_new_size(self, folders):
        seen = {open_reader(folders, "class_folders").fingerprint}
        (folders / "n01" / "b.JPEG").write_bytes(b"longer or shorter")
        seen.add(open_reader(folders, "class_folders").fingerprint)
        (folders / "n01" / "b.JPEG").rename(folders / "n01" / "bb.JPEG")
        seen.add(open_reader(folders, "class_folders").fingerprint)
        assert len(seen) == 3

    def test_missing_folder_is_named_with_the_remedy(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere: no raw images here; put them there"):
            open_reader(tmp_path / "nowhere", "class_folders")

    def test_folder_without_class_folders_is_refused(self, tmp_path):
        (tmp_path / "a.jpg").touch()
        with pytest.raises(ValueError, match="no class folders"):
            open_reader(tmp_path, "class_folders")

    def test_empty_class_folder_is_named(self, folders):
        (folders / "n05").mkdir()
        (folders / "n05" / "readme.txt").touch()
        with pytest.raises(ValueError, match="1 of 4 classes hold no images: n05;"):
            open_reader(folders, "class_folders")

    def test_tar_is_told_its_layout(self, nested_tar):
        with pytest.raises(ValueError, match="use layout: imagenet_tar"):
            open_reader(nested_tar, "class_folders")

    def test_file_that_shrank_since_the_scan_stops_the_run(self, folders):
        reader = open_reader(folders, "class_folders")
        (folders / "n02" / "z.JPEG").write_bytes(b"")
        with pytest.raises(
            OSError, match=r"z\.JPEG: cannot be read: it is shorter than when it was scanned"
        ):
            list(reader.iterate())

    def test_png_named_jpeg_is_read_like_any_other(self, folders):
        Image.new("RGB", (3, 2), (1, 2, 3)).save(folders / "n01" / "a.jpg", "PNG")
        first = next(open_reader(folders, "class_folders").iterate())
        assert decode_rgb(first.data).getpixel((0, 0)) == (1, 2, 3)


class TestImageNetTar:
    def test_nested_tar_equals_the_folders(self, folders, nested_tar):
        expected, reader = (
            open_reader(folders, "class_folders"),
            open_reader(nested_tar, "imagenet_tar"),
        )
        assert reader.class_names == expected.class_names
        assert facts(reader) == facts(expected)
        assert reader.fingerprint == expected.fingerprint

    def test_folder_of_class_tars_equals_the_folders(self, folders, tar_folder):
        expected, reader = (
            open_reader(folders, "class_folders"),
            open_reader(tar_folder, "imagenet_tar"),
        )
        assert reader.class_names == expected.class_names
        assert facts(reader) == facts(expected)
        assert reader.fingerprint == expected.fingerprint

    def test_source_is_archive_and_member(self, nested_tar, tar_folder):
        first = next(open_reader(nested_tar, "imagenet_tar").iterate())
        assert first.source == "ILSVRC2012_img_train.tar:n01/a.jpg"
        assert next(open_reader(tar_folder, "imagenet_tar").iterate()).source == "n01.tar:n01/a.jpg"

    def test_nothing_is_written(self, nested_tar):
        list(open_reader(nested_tar, "imagenet_tar").iterate())
        assert list(nested_tar.parent.iterdir()) == [nested_tar]

    def test_inner_tar_without_an_end_mark_ends_where_it_ends(self, tmp_path, folders):
        path = tmp_path / "nested.tar"
        bare = {
            name: data[
                : sum(512 + -(-len(content(name[:3], n)) // 512) * 512 for n in CLASSES[name[:3]])
            ]
            for name, data in class_tars().items()
        }
        path.write_bytes(tar(bare))
        reader = open_reader(path, "imagenet_tar")
        assert facts(reader) == facts(open_reader(folders, "class_folders"))

    def test_flat_tar_is_refused(self, tmp_path):
        path = tmp_path / "val.tar"
        path.write_bytes(tar({"ILSVRC2012_val_00000001.JPEG": b"x"}))
        with pytest.raises(ValueError, match=r"no class tars but ILSVRC2012_val_00000001\.JPEG"):
            open_reader(path, "imagenet_tar")

    def test_file_that_is_no_tar_is_refused(self, tmp_path):
        path = tmp_path / "x.tar"
        path.write_bytes(b"no tar" * 500)
        with pytest.raises(ValueError, match=r"x\.tar: not a whole, uncompressed tar"):
            open_reader(path, "imagenet_tar")

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
    def test_truncated_tar_is_refused(self, nested_tar, share):
        data = nested_tar.read_bytes()
        data = data[: int(len(tar(class_tars()).rstrip(b"\0")) * share)]
        nested_tar.write_bytes(data)
        with pytest.raises(ValueError, match="not a whole, uncompressed tar"):
            open_reader(nested_tar, "imagenet_tar")

    def test_empty_class_tar_is_named(self, tar_folder):
        (tar_folder / "n05.tar").write_bytes(tar({"notes.txt": b"x"}))
        with pytest.raises(ValueError, match="1 of 4 classes hold no images: n05;"):
            open_reader(tar_folder, "imagenet_tar")

    def test_folder_without_tars_is_refused(self, folders):
        with pytest.raises(ValueError, match="for extracted images use layout: class_folders"):
            open_reader(folders, "imagenet_tar")


class TestUnlabelled:
    def test_images_anywhere_are_of_one_class_and_sorted_by_path(self, folders):
        (folders / "top.png").write_bytes(b"top")
        (folders / "n01" / "deep").mkdir()
        (folders / "n01" / "deep" / "x.png").write_bytes(b"deep")
        (folders / "n01" / "notes.txt").touch()
        (folders / ".hidden").mkdir()
        (folders / ".hidden" / "y.png").touch()
        reader = open_reader(folders, "unlabelled")
        assert reader.class_names == ["unlabelled"]
        assert [(image.key, image.label) for image in reader.iterate()] == [
            (key, 0)
            for key in (
                "n01/a.jpg", "n01/b.JPEG", "n01/c.png", "n01/deep/x.png", "n02/z.JPEG",
                "n10/x.JPEG", "n10/y.webp", "top.png",
            )
        ]  # fmt: skip
        assert next(reader.part(3, 4).iterate()).data == b"deep"

    def test_folder_without_images_and_a_file_are_refused(self, tmp_path):
        (tmp_path / "inside").mkdir()
        (tmp_path / "x.zip").touch()
        with pytest.raises(ValueError, match="holds no images; put some"):
            open_reader(tmp_path, "unlabelled")
        with pytest.raises(ValueError, match="a zip with layout: edm"):
            open_reader(tmp_path / "x.zip", "unlabelled")

    def test_no_image_is_read_twice_through_a_link(self, folders):
        (folders / "n01" / "back").symlink_to(folders)
        with pytest.raises(ValueError, match="back: is read already; remove the link"):
            open_reader(folders, "unlabelled")


class TestEDM:
    LABELS = [["00000/img1.png", 1], ["00000/img0.png", 0], ["00001/img2.png", 1]]

    def test_zip_and_folder_are_the_same_and_nothing_is_written(self, tmp_path):
        path = write_edm(tmp_path / "x.zip", self.LABELS)
        of_zip = open_reader(path, "edm")
        of_folder = open_reader(write_edm(tmp_path / "folder", self.LABELS), "edm")
        assert of_zip.class_names == of_folder.class_names == ["0", "1"]
        assert facts(of_zip) == facts(of_folder)
        assert facts(of_zip)[:2] == [
            ("00000/img0.png", 0, b"bytes of 00000/img0.png"),
            ("00000/img1.png", 1, b"bytes of 00000/img1.png"),
        ]
        assert of_zip.fingerprint == of_folder.fingerprint
        assert next(of_zip.part(2, 3).iterate()).source == "x.zip:00001/img2.png"

    @pytest.mark.parametrize("kind", ["x.zip", "folder"])
    def test_without_labels_all_are_of_one_class(self, tmp_path, kind):
        reader = open_reader(write_edm(tmp_path / kind, self.LABELS, given=None), "edm")
        assert reader.class_names == ["unlabelled"]
        assert reader.labels.tolist() == [0, 0, 0]

    def test_fingerprint_sees_the_labels(self, tmp_path):
        others = [[name, 1 - label] for name, label in self.LABELS]
        seen = {
            open_reader(write_edm(tmp_path / f"{k}.zip", labels), "edm").fingerprint
            for k, labels in enumerate((self.LABELS, others))
        }
        assert len(seen) == 2

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([["00000/img0.png", 0]], "has no label for 2 images"),
            ([*LABELS, ["lost.png", 0]], r"1 of the 4 labelled images are absent, lost\.png"),
            ([[name, 2 * label] for name, label in LABELS], "class 1 for one; take the whole"),
            ([[name, [0.5]] for name, _ in LABELS], "which is no class index"),
            ([[name, -1] for name, _ in LABELS], "which is no class index"),
            ([[name, 10**9] for name, _ in LABELS], "which is no class index"),
            (7, "not as dataset_tool.py writes it"),
        ],
    )
    def test_wrong_labels_are_refused(self, tmp_path, given, message):
        path = write_edm(tmp_path / "x.zip", self.LABELS, given=given)
        with pytest.raises(ValueError, match=message):
            open_reader(path, "edm")

    def test_compressed_damaged_and_empty_zips_are_refused(self, tmp_path):
        path = write_edm(tmp_path / "x.zip", self.LABELS, compression=zipfile.ZIP_DEFLATED)
        with pytest.raises(ValueError, match=r"img0\.png is compressed.*; unpack the zip"):
            open_reader(path, "edm")
        path.write_bytes(write_edm(tmp_path / "y.zip", self.LABELS).read_bytes()[:-9])
        with pytest.raises(ValueError, match="not a whole zip"):
            open_reader(path, "edm")
        with pytest.raises(ValueError, match="holds no images"):
            open_reader(write_edm(tmp_path / "z.zip", []), "edm")


class TestCifar10:
    def test_a_record_is_a_label_and_three_planes(self, tmp_path):
        reader = open_reader(write_cifar10(tmp_path, "binary"), "cifar10", "train")
        labels, pixels = cifar10_batch(2)
        image = list(reader.iterate())[5]
        assert len(reader) == 20
        assert reader.class_names[:2] == ["airplane", "automobile"]
        assert (image.key, image.label) == ("data_batch_2/00001", labels[1])
        assert image.source == "cifar-10-binary.tar.gz:data_batch_2.bin:1"
        expected = pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(decode_rgb(image.data)), expected)

    def test_both_versions_packed_or_not_are_the_same_images(self, tmp_path):
        readers = [
            open_reader(write_cifar10(tmp_path, version, packed=packed), "cifar10", split)
            for split in ("test", "train")
            for version in ("binary", "python")
            for packed in (True, False)
        ]
        for reader in readers:
            same = readers[0] if len(reader) == 4 else readers[-1]
            assert facts(reader) == facts(same)
            assert reader.fingerprint == same.fingerprint
        assert readers[0].fingerprint != readers[-1].fingerprint

    def test_a_pickle_that_runs_something_is_refused_and_not_run(self, tmp_path):
        path = write_cifar10(tmp_path, "python", packed=False)
        trace = tmp_path / "trace"
        (path / "data_batch_3").write_bytes(pickle.dumps(Touching(trace)))
        with pytest.raises(ValueError, match="data_batch_3 is not a pickle of arrays"):
            open_reader(path, "cifar10", "train")
        assert not trace.exists()

    def test_other_folders_splits_and_damage_are_refused(self, tmp_path):
        path = write_cifar10(tmp_path, "binary")
        with pytest.raises(ValueError, match="no split 'val'; take train or test"):
            open_reader(path, "cifar10", "val")
        with pytest.raises(ValueError, match="needs a split"):
            open_reader(path, "cifar10")
        with pytest.raises(ValueError, match="neither version of CIFAR-10"):
            open_reader(tmp_path, "cifar10", "train")
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ValueError, match="not a whole tar"):
            open_reader(path, "cifar10", "train")
        folder = write_cifar10(tmp_path, "binary", packed=False)
        (folder / "data_batch_4.bin").write_bytes(b"x" * 3074)
        with pytest.raises(ValueError, match=r"data_batch_4\.bin ends within an image"):
            open_reader(folder, "cifar10", "train")

    def test_a_batch_that_changed_since_the_scan_stops_the_run(self, tmp_path):
        path = write_cifar10(tmp_path, "binary", packed=False)
        reader = open_reader(path, "cifar10", "test")
        (path / "test_batch.bin").write_bytes(bytes(4 * 3073))
        with pytest.raises(OSError, match=r"test_batch\.bin: cannot be read: it is not what was"):
            list(reader.iterate())


class TestParquet:
    def test_images_of_all_files_follow_each_other(self, tmp_path):
        write_parquet(tmp_path / "train-00000-of-00002.parquet", numbered(7), names=["cat", "dog"])
        write_parquet(tmp_path / "train-00001-of-00002.parquet", numbered(5), names=["cat", "dog"])
        reader = open_reader(tmp_path, "parquet")
        images = list(reader.iterate())
        assert reader.class_names == ["cat", "dog"]
        assert len(reader) == len(images) == 12
        assert [image.data for image in images] == [data for data, _ in numbered(7) + numbered(5)]
        assert images[8] == RawImage(
            "train-00001-of-00002/000001", 1, "train-00001-of-00002.parquet:1", b"image 1"
        )

    def test_split_is_a_prefix_of_the_file_name(self, tmp_path):
        write_parquet(tmp_path / "train-00000-of-00001.parquet", numbered(7))
        write_parquet(tmp_path / "test-00000-of-00001.parquet", numbered(5))
        assert len(open_reader(tmp_path, "parquet", "train")) == 7
        assert len(open_reader(tmp_path, "parquet", "test")) == 5

    def test_splits_are_never_mixed_silently(self, tmp_path):
        write_parquet(tmp_path / "train-00000-of-00001.parquet", numbered(7))
        write_parquet(tmp_path / "test-00000-of-00001.parquet", numbered(5))
        with pytest.raises(ValueError, match="holds the splits test, train; choose one"):
            open_reader(tmp_path, "parquet")

    def test_split_that_is_not_there_is_refused(self, tmp_path):
        write_parquet(tmp_path / "train-00000-of-00001.parquet", numbered(7))
        with pytest.raises(ValueError, match="no Parquet files of split val; found: train-00000"):
            open_reader(tmp_path, "parquet", "val")

    def test_other_column_names_of_the_hub_are_known(self, tmp_path):
        names = {"image": "img", "label": "fine_label", "names": ["a", "b"]}
        write_parquet(tmp_path / "x.parquet", numbered(4), **names)
        reader = open_reader(tmp_path / "x.parquet", "parquet")
        assert (reader.class_names, len(reader)) == (["a", "b"], 4)

    def test_classes_without_names_are_numbered(self, tmp_path):
        write_parquet(tmp_path / "x.parquet", numbered(9, num_classes=3))
        assert open_reader(tmp_path, "parquet").class_names == ["0", "1", "2"]

    def test_missing_columns_are_refused_and_those_there_are_named(self, tmp_path):
        write_parquet(tmp_path / "x.parquet", numbered(4), image="picture", label="target")
        with pytest.raises(ValueError, match="found: picture, target"):
            open_reader(tmp_path, "parquet")

    @pytest.mark.parametrize(("label", "message"), [(-1, r"range over \[-1, 1\]"), (None, "null")])
    def test_unlabelled_images_are_refused(self, tmp_path, label, message):
        write_parquet(tmp_path / "x.parquet", [*numbered(4), (b"x", label)], names=["a", "b"])
        with pytest.raises(ValueError, match=message):
            open_reader(tmp_path, "parquet")

    def test_image_without_bytes_is_an_empty_file(self, tmp_path):
        write_parquet(tmp_path / "x.parquet", [*numbered(4), (None, 0)])
        assert list(open_reader(tmp_path, "parquet").iterate())[-1].data == b""

    def test_file_that_is_no_parquet_is_named(self, tmp_path):
        (tmp_path / "x.parquet").write_bytes(b"no parquet" * 10)
        with pytest.raises(ValueError, match=r"x\.parquet: not a whole Parquet file"):
            open_reader(tmp_path, "parquet")

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"image": "img"}, "the image column is 'img', but 'image'"),
            ({"label": "fine_label"}, "the label column is 'fine_label', but 'label'"),
            ({"names": ["cat", "cow"]}, "the name of class 1 is 'cow', but 'dog'"),
            ({"names": ["cat"]}, "the number of class names is 1, but 2"),
            ({"names": None}, "the number of class names is 0, but 2"),
        ],
    )
    def test_first_file_that_differs_is_named_with_the_remedy(self, tmp_path, other, message):
        alike = {"names": ["cat", "dog"]}
        write_parquet(tmp_path / "a.parquet", numbered(4), **alike)
        write_parquet(tmp_path / "b.parquet", numbered(4), **alike)
        write_parquet(tmp_path / "c.parquet", numbered(4), **{**alike, **other})
        write_parquet(tmp_path / "d.parquet", numbered(4), **{**alike, **other})
        with pytest.raises(
            ValueError, match=rf"c\.parquet: {message} in a\.parquet; keep the files of one dataset"
        ):
            open_reader(tmp_path, "parquet")

    @pytest.mark.data
    def test_cifar10_is_read(self):
        if not (SHARED / "cifar10").is_dir():
            pytest.skip(f"{SHARED / 'cifar10'} is absent")
        reader = open_reader(SHARED / "cifar10", "parquet", "train")
        assert len(reader) == 50_000
        assert reader.class_names[:3] == ["airplane", "automobile", "bird"]
        images = list(reader.part(990, 1010).iterate())  # across row groups
        assert {adm_center_crop(decode_rgb(i.data), 32).shape for i in images} == {(32, 32, 3)}
        assert [image.key for image in images[:2]] == [
            "train-00000-of-00001/000990",
            "train-00000-of-00001/000991",
        ]


@pytest.fixture(params=["class_folders", "imagenet_tar", "parquet", "unlabelled", "edm", "cifar10"])
def reader(request, tmp_path) -> Reader:
    if request.param == "cifar10":
        return open_reader(write_cifar10(tmp_path, "binary"), "cifar10", "train")
    if request.param == "edm":
        labels = [[f"{k // 3}/{k}.png", k % 3] for k in range(8)]
        return open_reader(write_edm(tmp_path / "x.zip", labels), "edm")
    if request.param == "parquet":
        write_parquet(tmp_path / "train-00000-of-00002.parquet", numbered(7))
        write_parquet(tmp_path / "train-00001-of-00002.parquet", numbered(5))
        return open_reader(tmp_path, "parquet", "train")
    name = {"imagenet_tar": "nested_tar"}.get(request.param, "folders")
    return open_reader(request.getfixturevalue(name), request.param)


def test_parts_make_up_the_whole(reader):
    whole = list(reader.iterate())
    for size in (1, 2, 5, 100):
        parts = [reader.part(k, min(k + size, len(reader))) for k in range(0, len(reader), size)]
        assert [image for part in parts for image in part.iterate()] == whole
        assert sum(len(part) for part in parts) == len(reader)


def test_part_of_a_part_counts_from_its_start(reader):
    assert list(reader.part(2, 6).part(1, 3).iterate()) == list(reader.iterate())[3:5]


def test_reader_travels_to_another_process(reader):
    copy = pickle.loads(pickle.dumps(reader))
    assert list(copy.iterate()) == list(reader.iterate())
    assert copy.fingerprint == reader.fingerprint


def first_file(reader: Reader) -> Path:
    return reader.root / next(reader.iterate()).source.partition(":")[0]


@pytest.mark.parametrize("what", ["gone", "a folder", "a loop"])
def test_unreadable_file_is_named_with_the_remedy(reader, what):
    path = first_file(reader)
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what == "a loop":
        path.symlink_to(path)
    with pytest.raises(OSError, match=r"cannot be read: .*; make it readable") as info:
        list(reader.part(0, 2).iterate())
    assert str(path) in str(info.value)
    assert type(info.value) is OSError


def test_parquet_file_cut_off_since_the_scan_is_named(tmp_path):
    write_parquet(tmp_path / "x.parquet", numbered(9))
    reader = open_reader(tmp_path, "parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(OSError, match=r"x\.parquet: cannot be read: "):
        list(reader.iterate())
    write_parquet(tmp_path / "x.parquet", numbered(8))
    with pytest.raises(OSError, match=r"x\.parquet: cannot be read: it holds fewer images"):
        list(reader.iterate())


def test_index_of_imagenet_is_small(tmp_path):
    count, per_class = 128_000, 1280  # a tenth of ImageNet
    names = [f"n{k:08d}" for k in range(count // per_class)]
    images = [
        _class_images(
            name, (_Member(f"{name}_{j * 11}.JPEG", 0, 10**5 + j) for j in range(per_class))
        )
        for name in names
    ]
    tracemalloc.start()
    copy = pickle.loads(pickle.dumps(FileReader.of(tmp_path, names, images)))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(copy) == count
    assert taken < 15e6
    assert len(pickle.dumps(copy.part(512, 1024))) < 40_000


def test_part_of_a_parquet_reader_carries_its_own_labels_only(tmp_path):
    write_parquet(tmp_path / "x.parquet", numbered(5000), row_group_size=100)
    reader = open_reader(tmp_path, "parquet")
    assert len(pickle.dumps(reader.part(512, 576))) < 3000


def test_parquet_reader_holds_a_row_group_at_a_time(tmp_path):
    random = np.random.default_rng(0)
    write_parquet(
        tmp_path / "x.parquet", [(random.bytes(50_000), 0) for _ in range(400)], row_group_size=20
    )
    reader = open_reader(tmp_path, "parquet")
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() for _ in reader.iterate()) - before
    assert most < 5e6  # a row group has 1 MB, all have 20


def test_fingerprint_is_a_digest_of_keys_and_sizes(folders):
    text = "".join(
        f"{name}/{file}\0{len(content(name, file))}\n"
        for name, files in sorted(CLASSES.items())
        for file in sorted(files)
    )
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert open_reader(folders, "class_folders").fingerprint == expected


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use one of class_folders, imagenet_tar, parquet"):
        open_reader(tmp_path, "zip")  # type: ignore[arg-type]


def test_split_is_refused_where_there_are_none(folders):
    with pytest.raises(ValueError, match="has no splits"):
        open_reader(folders, "class_folders", "train")


def test_a_name_that_is_no_text_is_named(tmp_path):
    (tmp_path / "class_0").mkdir()
    try:
        (tmp_path / "class_0" / "bad\udcff.png").write_bytes(b"")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text only")
    with pytest.raises(ValueError, match=r"bad\\udcff\.png' is not UTF-8; rename the file"):
        scan_class_folders(tmp_path)
