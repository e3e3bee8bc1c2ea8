"""The model card of a release: what it is, how to use it, its numbers, where it comes from."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import yaml

from selfdistill.base_config import as_written
from selfdistill.diffusion.config import SolverConfig
from selfdistill.methods.config import PAPERS
from selfdistill.metrics.config import METRICS
from selfdistill.metrics.definitions import title_of

logger = logging.getLogger(__name__)

_ARROWS = {"lower": "↓", "higher": "↑"}
_SECTIONS = ("network", "method", "train")  # of the parameters, as the checkpoint has them
_HEADS = ("sampling", "metric", "paper", "ours", "data", "samples", "reference", "extractor")
_NUM_TEXT = 2

_USE = """\
```python
from selfdistill.methods.release import Release
{name} = Release.open(".")  # this directory; device="cuda" for a GPU
x = {name}.sample({labels}){autoencoder}
```

Images are uint8{latents}. `sample` takes {asked}. By default it samples
as `{sampling}` below; anything else is a keyword: `{name}.sample({labels}, seed=1, guidance=3.0)`.
"""
_LICENCE = """\
The code is under Apache-2.0. The training images and the teacher have terms of their own, which
this release cannot change, such as ImageNet's terms of access and the DINOv3 License. So have
published weights that a row starts from: DiT's and EDM's are for non-commercial use, and Stable
Diffusion's come under CreativeML OpenRAIL-M, whose restrictions of use hold for what is made of
them.
"""


def default_sampling(paper: Mapping[str, Any], samplings: Mapping[str, Any]) -> SolverConfig:
    """Return how a release samples: as the sampling for which the paper has the lowest FID.

    Without guidance, where another network guides: a release is one network.

    Args:
        paper: The row's `PaperConfig`, as written.
        samplings: The row's samplings, as written.
    """
    chosen = as_written(samplings[_default_name(paper, samplings)])
    solver = SolverConfig.of(chosen)
    guided_by_another = chosen.get("guide") is not None
    return solver.model_copy(update={"guidance": 1.0}) if guided_by_another else solver


def _default_name(paper: Mapping[str, Any], samplings: Mapping[str, Any]) -> str:
    """Return the sampling for which the paper has the lowest FID; without one, the first."""
    fids = {name: paper["samplings"].get(name, {}).get("fid", float("inf")) for name in samplings}
    return min(samplings, key=fids.__getitem__)


@dataclass(frozen=True)
class Card:
    """What the model card of a row says.

    Attributes:
        row: The row.
        about: The content of the checkpoint's `checkpoint.json`.
        paper: The row's `PaperConfig`, as written.
        data: The dataset of the row.
        samplings: The row's samplings, as written.
        results: By sampling, and by "reconstruction", what the evaluate stage made of this
            checkpoint's images; what nobody has evaluated is absent.
        num_classes: Classes that can be sampled.
    """

    row: str
    about: Mapping[str, Any]
    paper: Mapping[str, Any]
    data: str
    samplings: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    num_classes: int

    @classmethod
    def collect(
        cls,
        about: Mapping[str, Any],
        paper: Mapping[str, Any],
        data: str,
        samplings: Mapping[str, Any],
        metrics: Mapping[str, Mapping[str, Any] | None],
        *,
        num_classes: int,
    ) -> Self:
        """Make the card from catalog entries; numbers of another checkpoint are left out.

        Args:
            about: The content of the checkpoint's `checkpoint.json`.
            paper: The row's `PaperConfig`, as written.
            data: The dataset of the row.
            samplings: The row's samplings, as written.
            metrics: By "<row>.<sampling>.metrics", the evaluate stage's dict or None.
            num_classes: Classes that can be sampled.
        """
        rows = {name.split(".")[0] for name in metrics}
        assert len(rows) == 1, f"a card is of one row, got metrics of {sorted(rows)}"
        results = {}
        for name, result in metrics.items():
            if result is None:
                continue
            measured_of = result["protocol"].get("samples", {}).get("checkpoint")
            if measured_of == about["sha256"]:
                results[name.split(".")[1]] = result
            else:
                logger.warning(
                    "%s were measured of another checkpoint: they are left out of the model card. "
                    "Run the stages sample and evaluate again, then export",
                    name,
                )
        return cls(rows.pop(), about, paper, data, samplings, results, num_classes)

    def markdown(self) -> str:
        """Return the card."""
        network, method = self.about["network"], self.about["method"]
        name, encodes = method["name"], method["name"] == "dsd"
        what, latents = "the network that samples", ""
        if encodes:
            what = "one network that encodes, decodes and samples"
            tokens = (network["resolution"] // network["patch_size"]) ** 2
            latents = (
                f" of {network['resolution']} x {network['resolution']} pixels, latents {tokens} "
                f"tokens of {network['latent_dim']}\nchannels each"
            )
        reads = "text" in network
        asked = "prompts"
        if not reads:
            asked = f"class indices, 0 to {self.num_classes - 1}, whose names are in `config.json`"
        numbers = [207, 88] if self.num_classes > 207 else [1, 0]
        use = _USE.format(
            name=name,
            labels=["a red bus", "two dogs"] if reads else numbers,
            asked=asked,
            autoencoder=f"; z = {name}.encode(x); x = {name}.decode(z)" if encodes else "",
            latents=latents,
            sampling=_default_name(self.paper, self.samplings),
        )
        nimg = f"{self.about['nimg']:,}"
        made = f"trained on {self.data} for {nimg} images"
        if "train" not in self.about:
            made = "the network that it starts from, as it is"
        averaged = bool(method.get("ema_decay"))
        title = PAPERS[self.paper["name"]]
        parameters = {
            "data": self.data,
            **{name: self.about[name] for name in _SECTIONS if name in self.about},
            "samplings": {name: as_written(sampling) for name, sampling in self.samplings.items()},
        }
        return "\n".join(
            [
                f"# {self.row}\n",
                f"Row `{self.row}` of {title},\n{made}: {what}."
                + ("\nThe weights are the averaged ones.\n" if averaged else "\n"),
                "## Use\n",
                use,
                "## Numbers\n",
                _table(list(self._lines())),
                self._note() + self._selection(),
                "## Parameters\n",
                f"```yaml\n{_yaml(parameters)}```\n",
                "## Origin\n",
                _table(list(self._origin()), ("", "")),
                "## Licence\n",
                _LICENCE,
            ]
        )

    def _lines(self) -> Iterator[tuple[str, ...]]:
        """Yield a line for each sampling and each metric that the paper or we have of it."""
        for sampling in dict.fromkeys((*self.samplings, *self.results)):
            paper = self.paper["samplings"].get(sampling, {})
            result = self.results.get(sampling)
            ours = result["metrics"] if result else {}
            for metric in (name for name in METRICS if name in paper or name in ours):
                label = f"{METRICS[metric].label} {_ARROWS[METRICS[metric].better]}"
                theirs = _shown(metric, paper.get(metric))
                if result is None or metric not in ours:
                    yield sampling, label, theirs, *[""] * (len(_HEADS) - 3)
                    continue
                spread = result.get("std", {}).get(metric)
                number = _shown(metric, ours[metric])
                number += "" if spread is None else f" ± {_shown(metric, spread)}"
                protocol = _protocol(metric, result["protocol"])
                encoded = result["protocol"]["samples"].get("reconstruction", {})
                own = as_written(self.samplings[sampling]) if sampling in self.samplings else {}
                data = encoded.get("data") or own.get("data") or self.data
                yield sampling, label, theirs, number, data, *protocol

    def _note(self) -> str:
        named = self.paper["reference"] or "its dataset"
        reference = named if isinstance(named, str) else " and ".join(named)
        count = self.paper["num_samples"]
        number = "an unpublished number of" if count is None else f"{count:,}"
        doubt = ""
        if not self.paper.get("recipe_published", True):
            doubt = "\nThe paper does not publish the recipe of this row: it is ours."
        if uncertain := self.paper.get("uncertain"):
            doubt += f"\nIt is not certain that its numbers belong to {', '.join(uncertain)}."
        return (
            f"The paper's numbers are of {number} samples on "
            f"{self.paper['data']} against {reference}.\nOurs are given as measured: they compare "
            "only on the same data, of as many samples and against\nthe same reference. Where "
            f"nobody has measured, ours is empty.{doubt}\n"
        )

    def _selection(self) -> str:
        """Return out of how many states the weights were chosen, apart from what they measure."""
        selected = self.about.get("selected")
        if selected is None:
            return ""
        metric, num = METRICS[selected["metric"]].label, len(selected["trail"])
        value, nimg = _shown(selected["metric"], selected["value"]), selected["nimg"]
        return (
            f"\nThe weights are those of {nimg:,} images, the best of {num} evaluations "
            f"during training:\n{metric} {value}. That number is optimistic, being the best of "
            f"{num}; those above are of other noise.\n"
        )

    def _origin(self) -> Iterator[tuple[str, str]]:
        """Yield what is known of the making."""
        about = self.about
        code = about.get("code", {})
        yield "source", str(code.get("source", "not known"))
        yield "torch", str(code.get("torch", "not known"))
        yield "training", str(about.get("fingerprint", "not known"))
        for name, value in about.get("inputs", {}).items():
            yield name, str(value)
        yield "images seen", f"{about['nimg']:,}"
        yield "checkpoint (sha256)", str(about["sha256"])


def _protocol(metric: str, protocol: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return number of samples, reference and extractor of one of the numbers."""
    about, need = protocol["reference"], METRICS[metric].need
    reference = title_of(about["published"]) or f"{about['num_images']:,} images"
    extractor = protocol["extractors"].get(need.extractor) if need else None
    network = f"{need.extractor} ({extractor['weights_sha256'][:8]})" if need and extractor else ""
    return f"{protocol['num_samples']:,}", reference, network


def _shown(metric: str, value: float | None) -> str:
    return "" if value is None else format(value, METRICS[metric].digits)


def _yaml(values: Mapping[str, Any]) -> str:
    """Return values as conf has them: short lists and blocks on one line, no aliases."""
    apart = json.loads(json.dumps(values))  # what YAML would give an alias, each time anew
    return yaml.safe_dump(apart, sort_keys=False, default_flow_style=None, width=100)


def _table(lines: Sequence[tuple[str, ...]], heads: Sequence[str] = _HEADS) -> str:
    rules = ["---" if number < _NUM_TEXT else "--:" for number in range(len(heads))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rules, *lines))
