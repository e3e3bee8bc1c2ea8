"""The metrics by name, and what to measure. Imports no torch: every command reads this."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from selfdistill.base_config import Config
from selfdistill.metrics import measures
from selfdistill.metrics.metric import ExtractorName, Metric, Need

Profile = Literal["exact", "fast"]
# The metrics in which papers give their numbers.
PublishedMetric = Literal["fid", "sfid", "inception_score", "precision", "recall", "fd_dinov2"]


def _frechet(label: str, extractor: ExtractorName, tap: str, *, paired: bool = False) -> Metric:
    need = Need(extractor, tap, "own_moments" if paired else "moments")
    digits = ".4g" if extractor == "tiny" else ".2f"
    return Metric(label, "lower", digits, partial(measures.frechet, need=need), need, paired=paired)


def _manifold(label: str, part: measures.Part, arithmetic: measures.Arithmetic) -> Metric:
    need = Need("inception_2015", "pool_3", "features")
    measure = partial(measures.manifold, need=need, part=part, arithmetic=arithmetic)
    return Metric(label, "higher", ".3f", measure, need)


_LOGITS = Need("inception_2015", "logits", "scores")

METRICS: dict[str, Metric] = {  # in the order of a table's columns
    "fid": _frechet("FID", "inception_2015", "pool_3"),
    "sfid": _frechet("sFID", "inception_2015", "spatial"),
    "inception_score": Metric(
        "IS", "higher", ".1f", partial(measures.inception_score, need=_LOGITS), _LOGITS, alone=True
    ),
    "precision": _manifold("Precision", "precision", "float16"),
    "recall": _manifold("Recall", "recall", "float16"),
    "precision_float32": _manifold("Precision (float32)", "precision", "float32"),
    "recall_float32": _manifold("Recall (float32)", "recall", "float32"),
    "fd_dinov2": _frechet("FD-DINOv2", "dinov2", "cls"),
    "fd_dinov2_pil": _frechet("FD-DINOv2 (PIL)", "dinov2_pil", "cls"),
    "fid_768": _frechet("FID-768", "inception_2015", "pool_768"),
    "fid_clean": _frechet("FID (clean-fid, clean)", "clean", "pool_3"),
    "fid_legacy_tensorflow": _frechet(
        "FID (clean-fid, legacy_tensorflow)", "legacy_tensorflow", "pool_3"
    ),
    "rfid": _frechet("rFID", "inception_2015", "pool_3", paired=True),
    "psnr": Metric("PSNR", "higher", ".2f", measures.psnr, paired=True),
    "fd_tiny": _frechet("fd_tiny", "tiny", "filters"),
    "class_accuracy": Metric("class_accuracy", "higher", ".3f", measures.class_accuracy),
}


def needs_of(metrics: Iterable[str], *, of_reference: bool = False) -> tuple[Need, ...]:
    """Return what the metrics need to know of the samples, or of the real images; each once."""
    chosen = [METRICS[name] for name in metrics]
    needs = [one.need for one in chosen if one.need and not (of_reference and one.alone)]
    return tuple(sorted(set(needs)))


class EvaluationConfig(Config):
    """What is measured, and how.

    Attributes:
        metrics: Names of the metrics, each once.
        batch_size: Images per forward pass of an extractor; changes no result but rounding.
        profile: "exact": the network as published; "fast": batch norm folded into the convolutions
            and channels last, the same features to about 1e-5 relative.
        num_manifold_images: Real images whose features precision and recall are taken over, drawn
            from all of them; None: all. ADM's reference files bring 10,000 of their own.
    """

    metrics: tuple[str, ...] = Field(min_length=1)
    batch_size: PositiveInt = 64
    profile: Profile = "exact"
    num_manifold_images: Annotated[int, Field(ge=4)] | None = 10_000

    @model_validator(mode="after")
    def _metrics_are_known_and_named_once(self) -> Self:
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"no metrics {unknown}; there are {', '.join(METRICS)}")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"a metric is named twice in {list(self.metrics)}")
        return self


class CompareConfig(Config):
    """An evaluation of images that a user brings.

    Attributes:
        samples: What is judged: an ADM `.npz`, a folder of images, or image shards.
        reference: What it is held against: any of these; an ADM `.npz` may hold statistics alone.
        name: Of the result's file; the catalog reads it from --params alone.
        repeats: Equal consecutive parts that the samples are cut into; each is evaluated, and the
            result has mean and standard deviation.
        evaluation: What is measured, and how.
    """

    samples: str | None = None
    reference: str | None = None
    name: str = "metrics"
    repeats: PositiveInt = 1
    evaluation: EvaluationConfig
