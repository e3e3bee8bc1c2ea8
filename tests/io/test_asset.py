import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kedro.io import DatasetError

from selfdistill import files
from selfdistill.io.asset import AssetDataset

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(files, "_hashed", {})
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def server():
    """Address of a server that counts its requests; /cut ends in the middle."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            httpd.requests.append(self.path)
            if self.path not in ("/weights.pth", "/cut"):
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            return self.wfile.write(CONTENT[: 2_000_000 if self.path == "/cut" else None])

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.requests, httpd.url = [], f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def closed_port():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        yield unheard.getsockname()[1]


def entry(path, url=None, sha256=SHA256):
    return AssetDataset(url=url, filepath=str(path), sha256=sha256)


def test_an_absent_file_is_downloaded_once(server, tmp_path):
    path = tmp_path / "deep" / "weights.pth"
    weights = entry(path, f"{server.url}/weights.pth", SHA256.upper())
    assert not weights.exists()
    server.requests.clear()
    assert [weights.load(), weights.load()] == [path, path]
    assert weights.exists()
    assert path.read_bytes() == CONTENT
    assert server.requests == ["/weights.pth"]
    origin = path.parent / "weights.pth.origin.json"
    assert sorted(path.parent.iterdir()) == [path, origin]
    assert json.loads(origin.read_text()) == {"url": f"{server.url}/weights.pth", "sha256": SHA256}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # other users may read it


def test_a_file_that_is_there_needs_no_network_and_is_hashed_once(
    closed_port, tmp_path, monkeypatch
):
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    hashed = []
    original = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: hashed.append(path) or original(path))
    for _ in range(3):
        assert entry(path, f"http://127.0.0.1:{closed_port}/weights.pth").load() == path
    assert hashed == [path]
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(DatasetError, match="is not the expected file"):
        entry(path).load()
    assert len(hashed) == 2


def test_a_wrong_file_is_named_with_both_hashes_and_left_alone(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    for url, remedy in (
        ("http://127.0.0.1/w", "delete it and run again to fetch it from http://127.0.0.1/w"),
        (None, "delete it and put the right file there"),
    ):
        with pytest.raises(DatasetError) as caught:
            entry(path, url, OTHER).load()
        for part in (str(path), f"expected sha256 {OTHER}, found {SHA256}", remedy):
            assert part in str(caught.value)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("place", "sha256", "reason"),
    [
        ("weights.pth", OTHER, f"expected sha256 {OTHER}, found {SHA256}"),
        ("absent.pth", SHA256, "404"),
        ("cut", SHA256, "IncompleteRead"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing_behind(
    server, tmp_path, place, sha256, reason
):
    path = tmp_path / "weights.pth"
    with pytest.raises(DatasetError) as caught:
        entry(path, f"{server.url}/{place}", sha256).load()
    for part in (f"{path}: could not be", f"from {server.url}/{place}: ", reason, "put it there"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_offline_the_address_and_the_path_are_named(closed_port, tmp_path):
    url = f"http://127.0.0.1:{closed_port}/weights.pth"
    with pytest.raises(DatasetError) as caught:
        entry(tmp_path / "weights.pth", url).load()
    assert str(tmp_path / "weights.pth") in str(caught.value)
    assert url in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_an_address_the_path_and_the_hash_are_named(tmp_path):
    with pytest.raises(DatasetError, match=rf"weights\.pth: no file here.*{SHA256}"):
        entry(tmp_path / "weights.pth").load()


@pytest.mark.parametrize("sha256", ["", "6726825d", SHA256 + "0", "g" * 64, f"{SHA256}\n", 7])
def test_a_malformed_hash_is_refused_at_once(tmp_path, sha256):
    with pytest.raises(ValueError, match="is not 64 hex digits"):
        entry(tmp_path / "weights.pth", sha256=sha256)


@pytest.mark.parametrize("url", ["weights.pth", "file:///weights.pth", ""])
def test_a_malformed_address_is_refused_at_once(tmp_path, url):
    with pytest.raises(ValueError, match="is not an http or https address"):
        entry(tmp_path / "weights.pth", url)


def test_a_published_file_is_not_written(tmp_path):
    with pytest.raises(DatasetError, match=r"weights\.pth is a published file"):
        entry(tmp_path / "weights.pth").save(b"mine")
    assert not list(tmp_path.iterdir())


def test_the_entry_is_light_to_import():
    code = "import sys, selfdistill.io.asset; sys.exit(bool({'torch', 'pooch'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)
