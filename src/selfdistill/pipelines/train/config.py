"""How a row is trained. Intervals and schedules count images, not steps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config

Count = Annotated[int, Field(gt=0)]

# Keys that change memory or safety, and no bit of the result.
NEUTRAL = {"recompute_activations", "checkpoint_nimg"}
# With one that changes the order of sums: a training that goes on with others is still the same.
MACHINE = {"micro_batch_size", *NEUTRAL}


class _AdamWValues(Config):
    """What both optimizers have.

    Attributes:
        lr: Learning rate after the warm-up.
        weight_decay: Decoupled decay of the matrices; nothing else decays.
        betas: AdamW's averages.
        eps: AdamW's epsilon.
    """

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    eps: Annotated[float, Field(gt=0)]


class AdamWConfig(_AdamWValues):
    """AdamW on everything."""

    name: Literal["adamw"]


class MuonConfig(_AdamWValues):
    """Muon on hidden matrices (RMS-matched, so that one learning rate serves both), AdamW beside.

    Attributes:
        momentum: Muon's momentum (Nesterov).
        num_newton_schulz: Muon's orthogonalisation steps.
    """

    name: Literal["muon"]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    num_newton_schulz: Count


OptimizerConfig = Annotated[MuonConfig | AdamWConfig, Field(discriminator="name")]


class TrainConfig(Config):
    """The loop's parameters.

    Attributes:
        seed: Seed of the weights and of every draw, in [0, 2^32).
        total_nimg: Images to train on; the last step may go past it by less than a batch.
        batch_size: Images an optimizer step, over all ranks.
        micro_batch_size: Images a rank holds at once; changes memory, and the result only of
            networks with dropout and of SiDA, whose adversarial terms are means over it.
        data_share: Share of the dataset's images that is seen, of all classes alike.
        flip: Whether half of the images are mirrored.
        optimizer: Optimizers and their rates.
        optimizers: Those of single turns instead, by the name of the network that they train.
        warmup_nimg: Images over which the learning rate rises linearly.
        schedule: The rate after the warm-up: constant, or half a cosine down to 0.
        clip_norm: Largest norm of a network's gradient; None: any is taken.
        precision: Autocast type on CUDA; a CPU always computes in float32.
        compile: Whether the transformer layers are compiled, on CUDA only.
        recompute_activations: Whether the backward pass computes the layers' activations again
            instead of keeping them; changes memory and time, not the result.
        log_nimg: Images between two lines of the curves.
        num_probe_images: Images, the first of the stream, that the method's diagnostics look at
            with each line of the curves; 0: no diagnostics.
        checkpoint_nimg: Images between two saved states; a multiple of log_nimg.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    total_nimg: Count
    batch_size: Count
    micro_batch_size: Count
    data_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: bool
    optimizer: OptimizerConfig
    optimizers: dict[str, OptimizerConfig] = {}
    warmup_nimg: Annotated[int, Field(ge=0)]
    schedule: Literal["constant", "cosine"]
    clip_norm: Annotated[float, Field(gt=0)] | None
    precision: Literal["bf16", "fp32"]
    compile: bool
    recompute_activations: bool
    log_nimg: Count
    num_probe_images: Annotated[int, Field(ge=0)]
    checkpoint_nimg: Count

    @model_validator(mode="after")
    def _intervals_fit(self) -> Self:
        for name in ("log_nimg", "checkpoint_nimg"):
            if getattr(self, name) % self.batch_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} is no multiple of batch_size {self.batch_size}"
                )
        if self.checkpoint_nimg % self.log_nimg:
            raise ValueError(
                f"checkpoint_nimg {self.checkpoint_nimg} is no multiple of log_nimg {self.log_nimg}"
            )
        return self

    def optimizer_of(self, name: str) -> OptimizerConfig:
        """Return the optimizers of a turn."""
        return self.optimizers.get(name, self.optimizer)

    def share_of_rank(self, num_ranks: int) -> int:
        """Return the images of a step that fall to one of `num_ranks` ranks.

        Raises:
            ValueError: If batch or micro-batch do not divide.
        """
        share, rest = divmod(self.batch_size, num_ranks)
        if rest or not share or share % min(self.micro_batch_size, share):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {num_ranks} ranks with micro-"
                f"batches of {self.micro_batch_size}: change distributed.num_ranks or the row's "
                "train.micro_batch_size"
            )
        return share
