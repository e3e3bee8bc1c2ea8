"""Terms that several objectives have."""

from torch import Tensor
from torch.nn import functional as F


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all but the samples, (N, ...) -> (N,)."""
    return (prediction - target).square().mean(dim=tuple(range(1, prediction.ndim)))


def one_minus_cosine(prediction: Tensor, target: Tensor, channels: int = -1) -> Tensor:
    """1 - cosine over the dimension of the channels, mean over all others, (N, ...) -> (N,)."""
    cosine = F.cosine_similarity(prediction, target, dim=channels)
    return 1 - cosine.mean(dim=tuple(range(1, cosine.ndim)))
