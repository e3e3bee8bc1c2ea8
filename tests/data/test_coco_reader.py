"""COCO's layout: an image is a class, and its captions the class's name."""

import json

import pytest

from selfdistill.data.readers import open_reader

CAPTIONS = [
    {"id": 7, "image_id": 2, "caption": "A later one."},
    {"id": 5, "image_id": 2, "caption": " Two dogs\nrun. "},
    {"id": 6, "image_id": 1, "caption": "A cat."},
]


@pytest.fixture
def coco(tmp_path):
    def write(captions=CAPTIONS):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "val2014").mkdir(exist_ok=True)
        images = [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "a.jpg"}]
        content = {"images": images, "annotations": captions}
        (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
        for name in ("a.jpg", "b.jpg", "unnamed.jpg"):
            (tmp_path / "val2014" / name).write_bytes(name.encode())
        return tmp_path

    return write


def test_the_captions_name_the_class_of_an_image(coco):
    reader = open_reader(coco(), "coco", "val2014")
    assert reader.class_names == ["Two dogs run.\nA later one.", "A cat."]
    found = [(image.key, image.label, image.data) for image in reader.iterate()]
    assert found == [("val2014/a.jpg", 0, b"a.jpg"), ("val2014/b.jpg", 1, b"b.jpg")]
    assert [image.label for image in reader.part(1, 2).iterate()] == [1]


def test_another_caption_is_another_dataset(coco):
    before = open_reader(coco(), "coco", "val2014").fingerprint
    assert open_reader(coco(), "coco", "val2014").fingerprint == before
    changed = [*CAPTIONS[:2], {**CAPTIONS[2], "caption": "A dog."}]
    assert open_reader(coco(changed), "coco", "val2014").fingerprint != before


def test_what_is_missing_is_named(coco, tmp_path):
    with pytest.raises(ValueError, match=r"1 images have no caption, b\.jpg"):
        open_reader(coco(CAPTIONS[:2]), "coco", "val2014")
    (coco() / "val2014" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images .* b\.jpg for one; unpack val"):
        open_reader(tmp_path, "coco", "val2014")
    with pytest.raises(FileNotFoundError, match=r"captions_val2017\.json: no captions here"):
        open_reader(tmp_path, "coco", "val2017")
    with pytest.raises(ValueError, match="layout coco needs a split"):
        open_reader(tmp_path, "coco")
    (tmp_path / "annotations" / "captions_val2014.json").write_text("[]")
    with pytest.raises(ValueError, match=r"captions_val2014\.json is not a file of COCO's"):
        open_reader(tmp_path, "coco", "val2014")
