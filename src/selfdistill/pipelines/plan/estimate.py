"""From FLOP and bytes to hours, room on disk, and GPUs that are large enough."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from selfdistill.data.config import LatentsConfig, PreprocessConfig
from selfdistill.data.tokens import packed_dim
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.plan.config import HardwareConfig, PlanConfig
from selfdistill.pipelines.plan.sampling import SamplingCost
from selfdistill.pipelines.plan.step import StepCost
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.selection_config import SelectionConfig

STRATEGIES = ("ddp", "fsdp")
_AHEAD = 2  # batches that the loader moves to the GPU while one is worked on


@dataclass(frozen=True)
class RowPlan:
    """What a row will cost; FLOP of an image where nothing else is said, memory and disk in bytes.

    Attributes:
        data: The dataset.
        step: A step of a rank.
        num_gpus: Ranks.
        num_images: Images that are trained on.
        num_steps: Optimizer steps.
        loss_flops: Losses and gradients.
        teacher_flops: Of a teacher at work; 0: there is none.
        sampling: Of a sample; None: nothing is sampled.
        hours: GPU hours by hardware: training, and all samplings.
        memory: Of a GPU by strategy, at the row's micro-batch; empty if it is not trained.
        fits: Largest micro-batch that fits, by hardware and strategy; 0: not even one image does.
        samples: Samples of all samplings as shards and as npz, and reconstructions.
    """

    data: str
    step: StepCost
    num_gpus: int
    num_images: int
    num_steps: int
    loss_flops: int
    teacher_flops: int
    sampling: SamplingCost | None
    hours: Mapping[str, tuple[float, float]]
    memory: Mapping[str, int]
    fits: Mapping[str, Mapping[str, int]]
    samples: int

    @property
    def total_flops(self) -> int:
        """FLOP of the training on all GPUs, each of which makes the whole update."""
        images = self.num_images * (self.loss_flops + self.teacher_flops)
        return images + self.num_steps * self.num_gpus * self.step.update_flops


@dataclass(frozen=True)
class DatasetPlan:
    """What a dataset's sets take on the disk, in bytes; None: the number of images is not known.

    Attributes:
        num_images: Images.
        is_made: Whether the number is of the finished set, not from the configuration.
        images: Pixels.
        features: Teacher's tokens.
        latents: Of all sets of latents.
        feature_hours: GPU hours by hardware for the features.
    """

    num_images: int | None
    is_made: bool
    images: int | None
    features: int | None
    latents: int | None
    feature_hours: Mapping[str, float] = field(default_factory=dict)


def plan_training(
    data: str,
    resolution: int,
    train: TrainConfig | None,
    step: StepCost,
    teacher_flops: int,
    sampling: SamplingCost | None,
    samplings: Mapping[str, SampleConfig],
    num_reconstructed: int,
    plan: PlanConfig,
    selection: SelectionConfig | None = None,
) -> RowPlan:
    """Return what a row will cost.

    Args:
        data: The dataset.
        resolution: Side of the images, pixels.
        train: The loop's parameters; None: it is not trained.
        step: A step of a rank.
        teacher_flops: Of an image that the teacher sees while training.
        sampling: Of a sample.
        samplings: The samplings by name.
        num_reconstructed: Images that are encoded and decoded.
        plan: The assumptions.
        selection: What the best state is selected by: its samples count as training, in TF32; the
            metric's own network is left out.
    """
    num_steps = num_images = loss_flops = 0
    if train is not None:
        num_steps = -(-train.total_nimg // train.batch_size)
        num_images = num_steps * train.batch_size
        loss_flops = step.loss_flops // step.size - teacher_flops  # which the step has counted too
    of_training = num_images * loss_flops + num_steps * plan.num_gpus * step.update_flops
    drawn = sum(
        config.total_images * sampling.flops[name] for name, config in samplings.items() if sampling
    )
    of_selection = 0
    if selection is not None and train is not None and sampling is not None:
        num_evaluations = selection.num_evaluations(train.total_nimg)
        of_sample = sampling.flops[selection.sampling]
        of_selection = num_evaluations * selection.num_images * of_sample
    hours = {}
    for name, gpu in plan.hardware.items():
        in_bf16 = train is not None and train.precision == "bf16"
        peak = gpu.bf16_tflops if in_bf16 else gpu.tf32_tflops
        training = gpu_hours(of_training, peak, plan)
        training += gpu_hours(num_images * teacher_flops + of_selection, gpu.tf32_tflops, plan)
        hours[name] = (training, gpu_hours(drawn, gpu.tf32_tflops, plan))
    pixels = 3 * resolution**2
    num_samples = sum(config.total_images for config in samplings.values())
    return RowPlan(
        data=data,
        step=step,
        num_gpus=plan.num_gpus,
        num_images=num_images,
        num_steps=num_steps,
        loss_flops=loss_flops,
        teacher_flops=teacher_flops,
        sampling=sampling,
        hours=hours,
        memory={
            one: memory(step, one, plan.num_gpus, step.size, pixels) for one in STRATEGIES if train
        },
        fits={
            name: {one: largest_batch(step, one, gpu, plan, pixels) for one in STRATEGIES}
            for name, gpu in plan.hardware.items()
            if train
        },
        samples=pixels * (2 * num_samples + num_reconstructed),
    )


def gpu_hours(flops: int, tflops: float, plan: PlanConfig) -> float:
    """Return the hours of one GPU at the assumed share of its peak."""
    return flops / (tflops * 1e12 * plan.utilisation) / 3600


def memory(step: StepCost, strategy: str, num_ranks: int, size: int, pixels: int) -> int:
    """Return the bytes that a rank needs at most.

    "ddp" is what was traced. "fsdp" is computed of it: weights, gradients and states are cut into
    equal shares; what is outside the layers, two layers and one layer's gradient are whole at a
    time; the update is left as large as it is, since whole matrices are gathered for it.

    A smaller micro-batch than the traced one is given its share of the activations, and half of all
    weights beside: what autocast copies of them at most. That is an upper bound.

    Args:
        step: What was traced.
        strategy: "ddp" or "fsdp".
        num_ranks: Ranks.
        size: Images of the micro-batch, at most the one that was traced.
        pixels: Values of an image, a byte each while it waits.
    """
    activations = (step.backward - step.held) * size // step.size
    copies = (step.weights + step.frozen) // 2 if size < step.size else 0
    backward = step.held + activations + copies
    update = step.update
    if strategy == "fsdp":
        cut = step.weights + step.gradients + step.states
        spared = cut - cut // num_ranks
        backward += step.rest + 3 * step.layer - spared
        update -= spared
    num_waiting = _AHEAD * size + (step.share if step.num_turns > 1 else 0)
    return max(backward, update) + num_waiting * (pixels + step.tokens)


def largest_batch(
    step: StepCost, strategy: str, gpu: HardwareConfig, plan: PlanConfig, pixels: int
) -> int:
    """Return the largest micro-batch up to the row's that fits a GPU and divides its share; or 0.

    Args:
        step: What was traced.
        strategy: "ddp" or "fsdp".
        gpu: The GPU.
        plan: The assumptions.
        pixels: Values of an image.
    """
    room = gpu.memory_gb * 1e9 * plan.usable_memory
    sizes = (size for size in range(step.size, 0, -1) if step.share % size == 0)
    return next(
        (size for size in sizes if memory(step, strategy, plan.num_gpus, size, pixels) <= room), 0
    )


def plan_sets(
    num_images: int | None,
    is_made: bool,
    preprocess: PreprocessConfig,
    teacher: TeacherConfig | None,
    teacher_flops: int,
    latents: Mapping[str, tuple[LatentsConfig, VAEConfig]],
    plan: PlanConfig,
) -> DatasetPlan:
    """Return what a dataset will take; keys and checksums, 200 bytes a record, are left out.

    Args:
        num_images: Images, if it is known.
        is_made: Whether the number is of the finished set.
        preprocess: The images.
        teacher: The teacher whose features are kept, if there is one.
        teacher_flops: Of an image that it sees.
        latents: Sets of latents with their VAEs.
        plan: The assumptions.
    """
    side, n = preprocess.resolution, num_images
    if n is None:
        return DatasetPlan(None, is_made, None, None, None)
    features, hours = 0, {}
    if teacher is not None:
        ways = 1 + teacher.cache.mirrored
        token = packed_dim(teacher.dim) if teacher.cache.dtype == "int8" else 2 * teacher.dim
        features = n * ways * teacher.grid(side) ** 2 * token
        hours = {
            name: gpu_hours(n * ways * teacher_flops, gpu.tf32_tflops, plan)
            for name, gpu in plan.hardware.items()
        }
    size = sum(
        (1 + one.mirrored) * 2 * vae.latent_channels * (side // vae.downsampling) ** 2
        * (4 if one.dtype == "float32" else 2)
        for one, vae in latents.values()
    )  # fmt: skip
    return DatasetPlan(n, is_made, n * 3 * side**2, features, n * size, hours)
