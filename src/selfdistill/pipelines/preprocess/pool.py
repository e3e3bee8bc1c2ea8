"""Tasks in several processes, which count their progress and end with this process."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

Task = TypeVar("Task")
Work = Callable[[Task, Callable[[], object]], object]

_POLL_SECONDS = 0.5


def work_off(
    tasks: Iterable[Task], work: Work[Task], num_workers: int, advance: Callable[[int], object]
) -> None:
    """Do all tasks; the first error ends it and is raised here.

    Args:
        tasks: What is to be done; each can be pickled. Only a few of them are waiting at a time.
        work: Does a task, and calls its second argument once for each unit of it that is done; a
            function of a module, or a partial of one.
        num_workers: Processes; 0 works in this one, task by task in order.
        advance: Gets how many units were done since its last call; of all processes together.

    Raises:
        ChildProcessError: If a process vanished.
    """
    if num_workers == 0:
        for task in tasks:
            work(task, lambda: advance(1))
        return
    shown, waiting = 0, iter(tasks)
    with _pool(num_workers) as (pool, counter):
        pending: set[Future[object]] = set()
        while True:
            with _hidden_main():
                for task in islice(waiting, 2 * num_workers - len(pending)):
                    pending.add(_hand_over(pool, work, task))
            if not pending:
                break
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                if error := future.exception():
                    raise _named(error)
            counted = counter.value
            advance(counted - shown)
            shown = counted


def _hand_over(pool: ProcessPoolExecutor, work: Work[Task], task: Task) -> Future[object]:
    """Submit a task.

    Raises:
        BrokenProcessPool: If a process vanished; also where the pool notices it, and closes its
            pipes, while a process is started for the task.
    """
    try:
        return pool.submit(_do, work, task)
    except OSError:
        pool.submit(int)  # refused if it broke
        raise


def _named(error: BaseException) -> BaseException:
    """Return an error of a process, or say that the process vanished."""
    if not isinstance(error, BrokenProcessPool):
        return error
    return ChildProcessError(
        "a process that worked on files was killed, perhaps for want of memory: run again, what is "
        "finished is kept; a smaller distributed.num_workers takes less memory"
    )


@contextmanager
def _pool(num_workers: int) -> "Iterator[tuple[ProcessPoolExecutor, Synchronized[int]]]":
    """Give a pool whose processes end with the block or with this process, whatever ends it.

    Each of them waits for the end of a pipe that only this process holds open.
    """
    context = get_context("spawn")
    counter = context.Value("q", 0)
    lifeline, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(lifeline, counter)
    )
    try:
        yield pool, counter
        pool.shutdown()
    except BrokenProcessPool as error:  # while a task was handed over
        raise _named(error) from error
    finally:
        our_end.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep processes that are started meanwhile from importing the script that started this one.

    They need none of it: it is all of Kedro's command line, or a script without a guard.
    """
    main = sys.modules["__main__"]
    names = [name for name in ("__file__", "__spec__") if name in vars(main)]
    hidden: dict[str, Any] = {name: vars(main)[name] for name in names}
    vars(main).update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        vars(main).update(hidden)


_counter: "Synchronized[int]"  # of a worker process: units done by all of them


def _start_worker(lifeline: Connection, counter: "Synchronized[int]") -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_leave_at_end_of, args=(lifeline,), daemon=True).start()


def _leave_at_end_of(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _do(work: Work[Task], task: Task) -> None:
    work(task, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
