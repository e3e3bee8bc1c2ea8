import itertools
import operator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from timeit import timeit

import pytest

from selfdistill.pipelines.preprocess.pool import work_off

# Workers import no test: a task is a call of the standard library, `timeit(count, number=n)` one
# that counts n units.


@pytest.mark.parametrize("num_workers", [0, 2])
def test_units_of_all_tasks_are_counted_once(num_workers):
    tasks = [partial(timeit, number=number) for number in (1, 20, 0, 300)]
    steps: list[int] = []
    work_off(tasks, operator.call, num_workers, steps.append)
    assert sum(steps) == 321


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_of_a_task_is_raised_here(num_workers):
    with pytest.raises(TypeError, match="int"):
        work_off([int], operator.call, num_workers, lambda _: None)


def test_vanished_process_is_told_with_the_remedy():
    suicide = partial(timeit, "import signal; signal.raise_signal(signal.SIGKILL)")
    tasks = [partial(timeit, number=1), suicide, *[partial(timeit, number=1)] * 8]
    with pytest.raises(ChildProcessError, match=r"was killed, .* run again, what is finished is "):
        work_off(tasks, operator.call, 2, lambda _: None)


@pytest.mark.parametrize(
    ("second", "told"), [(BrokenProcessPool(), ChildProcessError), (OSError("second"), OSError)]
)
def test_pool_that_breaks_while_it_starts_a_process_is_told_from_another_fault(
    monkeypatch, second, told
):
    errors = [OSError("handle is closed"), second]

    def submit(*_):
        raise errors.pop(0)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with pytest.raises(told):
        work_off([int], operator.call, 2, lambda _: None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tasks_are_taken_as_they_are_needed_and_may_be_without_end(num_workers):
    taken, done = 0, 0

    def tasks():
        nonlocal taken
        for number in itertools.count():
            taken += 1
            assert taken - done <= max(1, 2 * num_workers)
            yield int if number == 50 else partial(timeit, number=1)

    def advance(count: int) -> None:
        nonlocal done
        done += count

    with pytest.raises(TypeError, match="int"):
        work_off(tasks(), operator.call, num_workers, advance)
    assert taken > 50
