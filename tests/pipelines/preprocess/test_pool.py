import operator
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
