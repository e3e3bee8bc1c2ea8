"""A row's optimizer step on tensors without values: its FLOP, and what a device holds for it.

The step is the loop's: in every turn losses, backward and update with the row's own optimizers,
then what the method does after a step. So a new method or network is planned without an edit here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from selfdistill.data.loader import Batch
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.method import Method
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.networks.vae import VAE
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.plan.trace import Tracer, tracing, without_values
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.layers import layers_of, recompute_layers
from selfdistill.pipelines.train.optim import apply_gradients, build_optimizers


@dataclass(frozen=True)
class StepCost:
    """What one step costs a rank; memory in bytes.

    Attributes:
        size: Images of the micro-batch.
        share: Images of the step.
        num_turns: Turns of a step; where there are several, its images wait for the later ones.
        tokens: Bytes of an image's stored teacher tokens, in float16; 0: none are read.
        num_trained: Parameters that take a gradient.
        loss_flops: Losses and their gradients, of a micro-batch in every turn; layers that are
            computed again are counted again.
        update_flops: Optimizers, of a step.
        weights: Networks that FSDP shards: trained ones, and their averaged copies.
        frozen: All others, the teacher at work among them.
        gradients: Of all turns.
        states: Of the optimizers.
        checkpoint: What a checkpoint keeps.
        backward: The most that is alive in the forward and backward passes, all of the above
            included.
        update: The most that is alive in the updates, likewise.
        rest: Weights of the sharded networks outside their layers.
        layer: Weights of the largest layer.
    """

    size: int
    share: int
    num_turns: int
    tokens: int
    num_trained: int
    loss_flops: int
    update_flops: int
    weights: int
    frozen: int
    gradients: int
    states: int
    checkpoint: int
    backward: int
    update: int
    rest: int
    layer: int

    @property
    def held(self) -> int:
        """What stays from step to step, gradients included."""
        return self.weights + self.frozen + self.gradients + self.states


class EmptyDraws(Draws):
    """Draws without numbers, whose making would cost more time here than the networks."""

    def seed_layers(self, name: str) -> None:
        """Do nothing: what is dropped has no values."""

    def _words(self, name: str, size: int) -> Tensor:
        return self.index.new_empty((len(self.index), -(-size // 4) * 4))


def outline(network: NetworkConfig, method: MethodConfig) -> Method:
    """Build a row's method on the meta device; no file is read."""
    with torch.device("meta"):
        built = build_method(network, method, dict.fromkeys(method.root.frozen_weights))
    built.name_classes(None)
    return built


def outline_teacher(config: TeacherConfig, resolution: int) -> Teacher:
    """Build a teacher on the meta device, whatever its weights; no file is read."""
    shapes = {"weights": "random", "seed": 0, "weights_sha256": None}
    with torch.device("meta"):
        return Teacher(config.model_copy(update=shapes), resolution)


def trace_step(
    network: NetworkConfig,
    method: MethodConfig,
    train: TrainConfig,
    resolution: int,
    *,
    num_ranks: int = 1,
    teacher: TeacherConfig | None = None,
    on_gpu: bool = True,
) -> StepCost:
    """Take one step of a rank, after the first, and return what it cost.

    Args:
        network: The architecture.
        method: The objective.
        train: The loop's parameters.
        resolution: Side of the images, pixels.
        num_ranks: Ranks that share the step. Several keep their gradients in buckets that last.
        teacher: The teacher if it is at work in the step.
        on_gpu: Whether the step is CUDA's, in the row's precision; a CPU computes in float32.

    Raises:
        ValueError: If the batch does not divide among the ranks.
    """
    share = train.share_of_rank(num_ranks)
    size = min(train.micro_batch_size, share)
    built = outline(network, method)
    built.before_step(train.total_nimg)  # of stages the last, which does the most
    taught = None if teacher is None else outline_teacher(teacher, resolution)
    checkpoint = size_of_checkpoint(built)
    fake = without_values()
    with tracing() as tracer:
        rank = _Rank(built, taught, network, method, train, resolution, fake, on_gpu=on_gpu)
        weights, layers = rank.weights()
        static = tracer.live
        rank.make_states()
        states = tracer.live - static
        buckets = rank.fill_gradients(rank.trained)
        gradients = tracer.live - static - states
        if num_ranks == 1:
            buckets.clear()
            rank.drop_gradients()
        backward = update = loss_flops = update_flops = 0
        for name in rank.trained:
            if share > size:  # the micro-batches before have left a gradient
                rank.fill_gradients([name])
            begin = _restart(tracer)
            rank.backward(name, size)
            backward, loss_flops = max(backward, tracer.peak), loss_flops + tracer.flops - begin
            begin = _restart(tracer)
            rank.update(name)
            update, update_flops = max(update, tracer.peak), update_flops + tracer.flops - begin
        _restart(tracer)
        built.after_step(train.batch_size, train.batch_size)
        update = max(update, tracer.peak)
    return StepCost(
        size=size,
        share=share,
        num_turns=len(rank.trained),
        tokens=rank.tokens if teacher is None else 0,
        num_trained=rank.num_trained,
        loss_flops=loss_flops,
        update_flops=update_flops,
        weights=weights,
        frozen=static - weights,
        gradients=gradients,
        states=states,
        checkpoint=checkpoint,
        backward=backward,
        update=update,
        rest=weights - sum(layers),
        layer=max(layers, default=0),
    )


def trace_nothing(network: NetworkConfig, method: MethodConfig) -> StepCost:
    """Return the cost of a row that is not trained: the room of its checkpoint."""
    nothing = dict.fromkeys((field.name for field in fields(StepCost)), 0)
    checkpoint = size_of_checkpoint(outline(network, method))
    return StepCost(**{**nothing, "checkpoint": checkpoint})


def size_of_checkpoint(built: Method) -> int:
    """Return the bytes of what a finished checkpoint keeps."""
    kept = built.kept(built.state_dict()).values()
    return sum(value.numel() * value.element_size() for value in kept)


def _restart(tracer: Tracer) -> int:
    """Let the peak begin at what is alive, and return the FLOP so far."""
    tracer.peak = tracer.live
    return tracer.flops


class _Rank:
    """Networks and optimizers without values, and the parts of a step."""

    def __init__(
        self,
        built: Method,
        teacher: Teacher | None,
        network: NetworkConfig,
        method: MethodConfig,
        train: TrainConfig,
        resolution: int,
        fake: FakeTensorMode,
        *,
        on_gpu: bool,
    ) -> None:
        self._method, self._teacher, self._network, self._train = built, teacher, network, train
        self._fake, self._resolution = fake, resolution
        self._needs_features = method.root.needs_features
        self._autocast = torch.autocast(
            "cpu", torch.bfloat16, enabled=on_gpu and train.precision == "bf16"
        )
        with fake:
            for module in (built, teacher):
                if module is not None:
                    module.to_empty(device="cpu")
        self.trained = {
            name: [p for p in getattr(built, name).parameters() if p.requires_grad]
            for name in built.turns()
        }
        self.num_trained = sum(p.numel() for ps in self.trained.values() for p in ps)
        self._optimizers = {
            name: build_optimizers(getattr(built, name), train.optimizer_of(name))
            for name in self.trained
        }
        if train.recompute_activations:
            recompute_layers(built)

    @property
    def tokens(self) -> int:
        """Bytes of an image's teacher tokens in float16, if the loss needs them."""
        network = self._network.root
        if not self._needs_features:
            return 0
        assert isinstance(network, DSDViTConfig)  # the only one that learns from a teacher
        return 2 * network.num_tokens * network.teacher_dim

    def weights(self) -> tuple[int, list[int]]:
        """Return the bytes of the networks that have layers, and of each layer."""
        found = {network: list(layers_of(network)) for network in self._method.children()}
        layers = [layer for layers in found.values() for layer in layers]
        whole = sum(_bytes_of(network) for network, layers in found.items() if layers)
        return whole, [_bytes_of(layer) for layer in layers]

    def make_states(self) -> None:
        """Let the optimizers make their states, as a first step does."""
        for name in self.trained:
            self.fill_gradients([name])
            self.update(name)

    def fill_gradients(self, names: Iterable[str]) -> list[Tensor]:
        """Give the parameters of some turns a gradient each, where they have none."""
        parameters = [p for name in names for p in self.trained[name]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in parameters if p.grad is not None]

    def drop_gradients(self) -> None:
        """Take all gradients away."""
        self._method.zero_grad(set_to_none=True)

    def backward(self, name: str, size: int) -> None:
        """Take the loss of a micro-batch and its gradient."""
        for other, parameters in self.trained.items():
            for parameter in parameters:
                parameter.requires_grad_(other == name)
        batch = self._batch(size)
        with self._autocast:
            losses = self._method.turns()[name](batch)
        (sum(losses.values()).sum() / size).backward()  # type: ignore[union-attr]

    def update(self, name: str) -> None:
        """Apply the gradients of a turn."""
        apply_gradients(self.trained[name], self._optimizers[name], self._train.clip_norm)

    def _batch(self, size: int) -> Batch:
        """Return a batch as the loader makes it."""
        network = self._network.root
        with self._fake:
            features = None
            if self._teacher is not None:
                features = self._teacher(torch.empty(size, 3, self._resolution, self._resolution))
            elif self._needs_features:
                assert isinstance(network, DSDViTConfig)
                features = torch.empty(size, network.num_tokens, network.teacher_dim)
            return Batch(
                images=torch.empty(size, *self._method.data_shape()),
                labels=torch.zeros(size, dtype=torch.int64),
                features=features,
                draws=EmptyDraws(self._train.seed, torch.arange(size)),
            )


def _bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def decoder_flops(config: VAEConfig, resolution: int) -> int:
    """Return the FLOP of decoding one image of `resolution` pixels; no file is read."""
    shapes = {"weights": "random", "revision": None, "weights_sha256": None}
    with torch.device("meta"):
        vae = VAE(config.model_copy(update=shapes))
    side = resolution // config.downsampling
    with without_values(), tracing() as tracer:
        vae.to_empty(device="cpu")
        vae.decode(torch.empty(1, config.latent_channels, side, side))
        return tracer.flops


def teacher_flops(config: TeacherConfig, resolution: int) -> int:
    """Return the FLOP of a teacher's pass over one image of `resolution` pixels."""
    teacher = outline_teacher(config, resolution)
    with without_values(), tracing() as tracer:
        teacher.to_empty(device="cpu")
        teacher(torch.empty(1, 3, resolution, resolution))
        return tracer.flops
