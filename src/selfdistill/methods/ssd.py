"""SSD and iSSD: a network as its own teacher (Ma et al., CVPR 2025, Sec. 3).

A frozen copy takes one step of the sampler, from x_s to the cleaner x_t. Then

    explicit:  theta(x_s, s)            learns  lambda frozen(x_t, t) + (1 - lambda) frozen(x_s, s)
    implicit:  theta(x_t, t), mixed with what the frozen copy left at (x_s, s),
                                        learns  frozen(x_t, t)

so that each prediction knows where the next step leads. Sampling asks theta alone, mixed with
nothing: it costs what it did. Labels are dropped once, for all passes alike.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.loader import Batch
from selfdistill.diffusion.guidance import guide
from selfdistill.diffusion.process import as_times, pairs
from selfdistill.draws import Draws
from selfdistill.methods.latent_method import Tuned
from selfdistill.methods.losses import squared_error
from selfdistill.methods.method import Losses
from selfdistill.methods.ssd_config import ImplicitConfig, SSDConfig
from selfdistill.networks.fusion import Fusion, Recorded

_NUM_FINE = 16  # steps of the frozen network in place of one


class SSD(Tuned):
    """The network, and the frozen copy that it starts as.

    Args:
        network: A DiT or SiT, or DSD's ViT, trained.
        config: The objective.
        weights: None is needed; None in its place: a method that only samples, without the frozen
            copy unless it samples too.

    Raises:
        ValueError: If the grid or the weight is not of the network's process.
    """

    def __init__(
        self, network: nn.Module, config: SSDConfig, weights: object | None = None
    ) -> None:
        super().__init__(network, keep_frozen=weights is not None or config.only_step is not None)
        self.config = config
        self._pairs = pairs(self.process, config.grid)
        self._weights = [self._weight(number) for number in range(len(self._pairs))]

    @property
    def transient(self) -> tuple[str, ...]:
        """The frozen copy, unless it samples."""
        return () if self.config.only_step is not None else super().transient

    def loss(self, batch: Batch) -> Losses:
        """Return the squared distance from the target, (N,).

        Args:
            batch: Images or latents (N, *data_shape()), labels (N,).
        """
        number, s, t = self._draw_step(batch.draws)
        self.seed_layers(batch.draws, "network")
        labels = self.drop_labels(batch, self.config.class_dropout)
        x_s = self.process.noised(self._data(batch), self.draw_noise(batch.draws), s)
        with torch.no_grad():
            seen_s = self.see(x_s)
            at_s, recorded = self._record(seen_s, s, labels)
            x_t = self.process.step(x_s, self._guided(at_s, seen_s, s), s, t)
            seen_t = self.see(x_t)
            at_t = self.frozen(seen_t, t, labels)
        weight, form = self._weight_of(number, at_s), self.config.target
        if isinstance(form, ImplicitConfig):
            student, target = self._mixed(form, seen_t, t, labels, weight, at_s, recorded), at_t
        else:
            student, target = self.network(seen_s, s, labels), torch.lerp(at_s, at_t, weight)
        return {"distillation": squared_error(self._learned(student), self._learned(target))}

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> dict[str, Any]:
        """Return how far one step of the sampler ends from where many of the frozen network's do.

        Mean squared distances of a step that starts at a time that is trained: by the network, as
        it samples, by the frozen copy, and, where passes are mixed, by what is trained. The paper's
        Fig. 4(c) has the FID of these three.
        """
        number, s, t = self._draw_step(batch.draws)
        labels = self.drop_labels(batch, self.config.class_dropout)
        x = self.process.noised(self._data(batch), self.draw_noise(batch.draws), s)
        seen, time, end, form, mixed = self.see(x), s, t, self.config.target, {}
        if isinstance(form, ImplicitConfig):
            at_s, recorded = self._record(seen, s, labels)
            x = self.process.step(x, self.only_prediction(at_s), s, t)
            ends = [self._end_after(place) for place in range(len(self._pairs))]
            seen, time, end = self.see(x), t, as_times(ends, number.device)[number]
            weight = self._weight_of(number, at_s)
            mixed["mixed_error"] = self._mixed(form, seen, t, labels, weight, at_s, recorded)
        outputs = {
            "network_error": self.network(seen, time, labels),
            "frozen_error": self.frozen(seen, time, labels),
            **mixed,
        }
        goal = self._step_finely(x, time, end, labels)
        steps = {
            name: self.process.step(x, self.only_prediction(output), time, end)
            for name, output in outputs.items()
        }
        return {name: float(squared_error(x, goal).mean()) for name, x in steps.items()}

    def _step_finely(self, x: Tensor, t: Tensor, end: Tensor, labels: Tensor) -> Tensor:
        """Return where the frozen network's small steps lead from t to the end of a step."""
        inner = [self.process.between(t, end, part / _NUM_FINE) for part in range(1, _NUM_FINE)]
        for now, then in pairwise((t, *inner, end)):
            prediction = self.only_prediction(self.frozen(self.see(x), now, labels))
            x = self.process.step(x, prediction, now, then)
        return x

    def network_at(self, t: float) -> nn.Module:
        """Return the network; if one step alone was tuned, the frozen copy at all others."""
        if self.config.only_step is None:
            return self.network
        s, end = self._pairs[self.config.only_step]
        tuned = end if isinstance(self.config.target, ImplicitConfig) else s
        return self.network if t == tuned else self.frozen

    def _draw_step(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Return numbers (N,) of steps of the grid, and the times (N,) of their two ends."""
        if self.config.only_step is None:
            number = draws.integers("step", len(self._pairs), 1).squeeze(1)
        else:
            number = torch.full_like(draws.index, self.config.only_step)
        starts, ends = (as_times(times, number.device) for times in zip(*self._pairs, strict=True))
        return number, starts[number], ends[number]

    def _data(self, batch: Batch) -> Tensor:
        """Return clean latents: of the batch's images, or the frozen network's own."""
        if self.config.synthetic is None:
            return self.clean(batch)
        eps = batch.draws.normal("synthetic", *self.noise_shape())
        solver, draws = self.config.synthetic, batch.draws
        return self.generate(eps, batch.labels, solver, draws, lambda t: self.frozen)

    def _record(self, seen: Tensor, s: Tensor, labels: Tensor) -> tuple[Tensor, list[Recorded]]:
        """Return the frozen network's output at a step's start, and what is mixed later."""
        form = self.config.target
        if isinstance(form, ImplicitConfig) and form.site != "output":
            return self.frozen.record(seen, s, labels, form.site)
        return self.frozen(seen, s, labels), []

    def _guided(self, output: Tensor, seen: Tensor, s: Tensor) -> Tensor:
        """Return the prediction that the step is taken by."""
        prediction = self.only_prediction(output)
        if self.config.guidance == 1:
            return prediction
        null = torch.full_like(s, self.network.null_class, dtype=torch.int64)
        free = self.only_prediction(self.frozen(seen, s, null))
        return guide(prediction, free, self.config.guidance, self.config.guided_channels)

    def _mixed(
        self,
        form: ImplicitConfig,
        seen: Tensor,
        t: Tensor,
        labels: Tensor,
        weight: Tensor,
        at_s: Tensor,
        recorded: list[Recorded],
    ) -> Tensor:
        """Return the student of Eq. 6 at a step's end: mu of the start, 1 - mu of its own."""
        fusion = None
        if form.site != "output":
            fusion = Fusion(form.site, weight.flatten(), recorded)
        output = self.network(seen, t, labels, fusion)
        if form.site == "output" or form.fuse_output:
            output = torch.lerp(output, at_s, weight)
        return output

    def _learned(self, output: Tensor) -> Tensor:
        return output if self.config.include_variance else self.only_prediction(output)

    def _weight_of(self, number: Tensor, like: Tensor) -> Tensor:
        """Return lambda or mu of steps, so that it broadcasts with outputs (N, ...)."""
        table = torch.tensor(self._weights, device=number.device, dtype=like.dtype)
        return table[number].view(-1, *[1] * (like.ndim - 1))

    def _end_after(self, number: int) -> float:
        """Return where the sampler's step leads that starts at the end of one of the grid's."""
        following = self._pairs[number + 1 :]
        return following[0][1] if following else self.process.end

    def _weight(self, number: int) -> float:
        """Return lambda or mu of one of the grid's steps."""
        target, (s, t) = self.config.target, self._pairs[number]
        if isinstance(target, ImplicitConfig):
            if target.mix_prev != "auto":
                return target.mix_prev
            k = self.process.extrapolation(s, t, self._end_after(number))
            return k / (1 + k)
        if target.weight == "auto":
            return self.process.end_weight(s, t)
        if target.weight == "midpoint":
            return self.process.midpoint_weight(s, t)
        return target.weight
