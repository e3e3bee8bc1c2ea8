"""Processes that end with the one that started them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

_STARTER = """
    import os, subprocess, sys
    from pathlib import Path
    child = '''
import time
from pathlib import Path
from selfdistill.lifeline import parent_in_session
time.sleep({wait})
Path({out!r}).write_text(str(parent_in_session()))
'''
    process = subprocess.Popen([sys.executable, "-c", child])
    print(os.getpid(), flush=True)
    if {stays}:
        process.wait()
"""


@pytest.mark.parametrize("stays", [True, False])
def test_a_parent_that_died_before_anyone_asked_is_known_to_be_gone(tmp_path, stays):
    out = tmp_path / "parent"
    program = _STARTER.replace("\n    ", "\n").format(wait=0.5, out=str(out), stays=stays)
    starter = subprocess.run(
        [sys.executable, "-c", program], start_new_session=True, capture_output=True, text=True
    )
    until = time.monotonic() + 60
    while not (out.is_file() and out.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert int(Path(out).read_text()) == (int(starter.stdout) if stays else -1)
