"""A process that ends when its parent does, so that no orphan works on."""

import ctypes
import os
import signal
import sys


def parent_in_session() -> int:
    """Return the parent's process id; -1 if the parent is gone.

    Whoever adopts orphans has a session of its own. Not for a process that leads a session itself.
    """
    parent = os.getppid()
    return parent if os.getsid(parent) == os.getsid(0) else -1


def die_with_parent(starter: int) -> None:
    """Ask the kernel to terminate this process when its parent dies (Linux only).

    Args:
        starter: Process id of the parent; 0 when unknown.
    """
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    if starter and os.getppid() != starter:  # it died before the call above
        os.kill(os.getpid(), signal.SIGTERM)
