"""Hyper-parameters of progressive distillation."""

from typing import Literal, Self

from pydantic import model_validator

from selfdistill.data.config import Probability
from selfdistill.diffusion.config import GridConfig
from selfdistill.methods.objective import Objective


class ProgressiveConfig(Objective):
    """Progressive distillation (Salimans and Ho, arXiv:2202.00512): two steps become one.

    Attributes:
        grid: The times of the frozen network's sampler; the student knows every second of them,
            from the noisiest on, which is the same grid with one halving more.
        class_dropout: Share of the labels replaced by the null class, the same for both.
        weighting: Of the squared error of the prediction: 1, or "truncated_snr": what makes it the
            larger of the errors of noise and of clean data.
    """

    name: Literal["progressive"]
    grid: GridConfig
    class_dropout: Probability
    weighting: Literal["none", "truncated_snr"]

    @property
    def needs_start(self) -> bool:
        """Return true: the start is the teacher."""
        return True

    @model_validator(mode="after")
    def _grid_halves(self) -> Self:
        if self.grid.num_times % 2:
            raise ValueError(f"grid: {self.grid.num_times} times cannot be halved")
        return self
