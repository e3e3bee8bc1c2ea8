"""Signals that ask a training to save its state and leave."""

import logging
import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self

logger = logging.getLogger(__name__)


class StopRequest:
    """Within the `with` block, SIGTERM and SIGINT set a flag instead of ending the process.

    Outside the main thread no handler can be set, and the signals do what they did.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def leave(self, nimg: int) -> NoReturn:
        """End the process as the signal asked, now that the state is saved.

        Raises:
            KeyboardInterrupt: After SIGINT.
            SystemExit: With status 143, after SIGTERM (or when another rank got the signal).
        """
        logger.warning("Stopped by a signal; state saved at %s images", f"{nimg:,}")
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number
