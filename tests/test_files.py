import errno
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfdistill import files
from selfdistill.files import (
    atomic_path,
    job,
    locked_file,
    naming_full_disk,
    publish_directory,
)


def tree(root: Path) -> dict[str, str]:
    """Every file below `root`, hidden ones too, and its text."""
    return {
        file.relative_to(root).as_posix(): file.read_text()
        for file in root.rglob("*")
        if file.is_file()
    }


def write_tree(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def fail_while_writing(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("stop")


def test_failed_write_leaves_the_old_content_whole_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError, match="stop"):
        fail_while_writing(tmp_path / "file")
    assert tree(tmp_path) == {"file": "old"}


def test_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        fail_while_writing(tmp_path / "file")
    assert tree(tmp_path) == {}


def test_file_appears_under_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "folder" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert tree(tmp_path) == {"folder/file": "new"}


@pytest.fixture(params=["same file system", "other file system"])
def source(request, tmp_path, monkeypatch) -> Path:
    """A finished directory; its file system may be one from which no rename leads out."""
    source = write_tree(tmp_path / "scratch" / "made", {"a": "new a", "below/b": "new b"})
    if request.param == "other file system":
        rename, stat = Path.rename, Path.stat

        def refuse(self: Path, target: Path) -> Path:
            if self == source and target.parent != source.parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self), None, str(target))
            return rename(self, target)

        def elsewhere(self: Path, **options: bool) -> os.stat_result:
            found = stat(self, **options)
            if self != source:
                return found
            return os.stat_result([*found[:2], found.st_dev + 1, *found[3:]])

        monkeypatch.setattr(Path, "rename", refuse)
        monkeypatch.setattr(Path, "stat", elsewhere)
    return source


def test_published_directory_moves_to_its_place(source, tmp_path):
    publish_directory(source, tmp_path / "out" / "set")
    assert tree(tmp_path) == {"out/set/a": "new a", "out/set/below/b": "new b"}
    assert not source.exists()


def test_published_directory_replaces_the_old_one_whole(source, tmp_path):
    write_tree(tmp_path / "set", {"a": "old a", "c": "old c"})
    publish_directory(source, tmp_path / "set")
    assert tree(tmp_path) == {"set/a": "new a", "set/below/b": "new b"}


def test_directory_published_where_it_lies_stays(tmp_path):
    here = write_tree(tmp_path / "set", {"a": "text"})
    publish_directory(here, tmp_path / "other" / ".." / "set")
    assert tree(tmp_path) == {"set/a": "text"}


def test_job_goes_on_in_its_own_directory_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with job(tmp_path / "scratch", "one") as directory:
        (directory / "done").write_text("half")
    assert caplog.text == ""
    with job(tmp_path / "scratch", "one") as directory:
        assert tree(directory) == {"done": "half"}
    assert "Going on with the unfinished job" in caplog.text


def test_other_job_starts_anew_beside_the_unfinished_one_and_names_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with job(tmp_path, "one") as directory:
        (directory / "done").write_text("half")
    with job(tmp_path, "two") as directory:
        assert tree(directory) == {}
    assert "Starting anew" in caplog.text
    assert "unfinished one beside it" in caplog.text


def test_two_jobs_never_share_a_scratch_folder(tmp_path):
    with (
        job(tmp_path, "one"),
        pytest.raises(ValueError, match="another run is at work"),
        job(tmp_path, "one"),
    ):
        pass
    with job(tmp_path, "two") as directory:
        assert directory == tmp_path / "two"


def test_file_of_a_killed_writer_is_written_from_its_start(tmp_path):
    (tmp_path / "file").write_text("what a killed writer left behind")
    with locked_file(tmp_path / "file") as file:
        file.write(b"new")
    assert tree(tmp_path) == {"file": "new"}


def test_file_that_another_is_writing_is_refused_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LOCK_PATIENCE", 0.0)
    with locked_file(tmp_path / "file") as file:
        file.write(b"whole")
        with (
            pytest.raises(ValueError, match=r"file: another run is writing it; wait for it to end"),
            locked_file(tmp_path / "file"),
        ):
            pass
    assert tree(tmp_path) == {"file": "whole"}


def test_whoever_waited_for_a_file_leaves_alone_what_was_renamed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LOCK_POLL", 0.01)
    waits = threading.Event()
    monkeypatch.setattr(files.time, "sleep", lambda _: waits.set())

    def write_second() -> None:
        with locked_file(tmp_path / "file") as file:
            file.write(b"second")

    with ThreadPoolExecutor(1) as pool, locked_file(tmp_path / "file") as file:
        second = pool.submit(write_second)
        waits.wait()
        file.write(b"first")
        (tmp_path / "file").rename(tmp_path / "done")
        second.result()  # the name is free: it need not wait for the lock any longer
    assert tree(tmp_path) == {"done": "first", "file": "second"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_with_the_file_and_the_remedy(tmp_path, code):
    (tmp_path / "file").write_text("old")

    def write() -> None:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("half of the n")
            raise OSError(code, os.strerror(code))

    with pytest.raises(
        OSError, match=rf"{tmp_path}/file: cannot be written, .* keep data on another disk"
    ):
        write()
    assert tree(tmp_path) == {"file": "old"}


def test_other_errors_of_a_disk_stay_what_they_are(tmp_path):
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as caught, naming_full_disk(tmp_path):
        raise error
    assert caught.value is error


def test_publishing_removes_what_a_killed_one_left_and_nothing_else(source, tmp_path):
    others = {
        "sets/.other.01234567.tmp/a": "of another set",
        "sets/set_2/a": "another set",
        "sets/.set": "no temporary file",
    }
    write_tree(tmp_path, others)
    write_tree(tmp_path, {"sets/.set.01234567.tmp/a": "old a", "sets/.set.89abcdef.tmp": "a file"})
    publish_directory(source, tmp_path / "sets" / "set")
    assert tree(tmp_path) == {**others, "sets/set/a": "new a", "sets/set/below/b": "new b"}


def test_job_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    kept = {"one/shard": "whole", "two/shard": "whole", "one.json": "{}"}
    write_tree(tmp_path, kept)
    write_tree(tmp_path, {".one.json.0a.tmp": "{", "one/.shard.tmp": "ha", "two/.x.0b.tmp": "lf"})
    with job(tmp_path, "one"):
        assert tree(tmp_path) == {**kept, ".lock": ""}


def test_shares_of_a_job_leave_each_others_temporary_files_alone(tmp_path):
    write_tree(tmp_path, {"one/.shard.tmp": "of another share"})
    with job(tmp_path, "one", shared=True), job(tmp_path, "one", shared=True) as directory:
        assert tree(directory) == {".shard.tmp": "of another share"}
    with job(tmp_path, "one", shared=True), pytest.raises(ValueError, match="at work"):
        job(tmp_path, "one").__enter__()
