"""Hyper-parameters of the methods. Importable without torch, so that the registry stays quick."""

from typing import Annotated, Literal, Self

from pydantic import Field, RootModel, model_validator

from selfdistill.base_config import Config

# Titles of the papers, by the name of their method.
PAPERS = {"dsd": "DSD: Diffusion as Self-Distillation (arXiv:2511.14716)"}

Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class DSDWeights(Config):
    """Weights of the terms of the DSD objective."""

    distillation: Weight
    velocity: Weight
    reconstruction: Weight
    alignment: Weight
    classification: Weight


class DSDConfig(Config):
    """The DSD objective (arXiv:2511.14716v1).

    Attributes:
        weights: Weights of the loss terms.
        time_distribution: Law of the flow time: the sigmoid of N(0, 1), or U(0, 1).
        mask_probability: Share of the images whose online branch sees masked patches.
        mask_ratio: Range of the share of patches masked in those, drawn evenly.
        class_dropout: Share of the labels replaced by the null class in the diffusion head.
        ema_decay: Final decay of the averaged network per optimizer step; it starts lower, at
            (1 + k) / (10 + k) after k steps.
    """

    name: Literal["dsd"]
    weights: DSDWeights
    time_distribution: Literal["logit_normal", "uniform"]
    mask_probability: Probability
    mask_ratio: tuple[Probability, Probability]
    class_dropout: Probability
    ema_decay: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _some_images_stay_whole(self) -> Self:
        if self.mask_probability == 1:
            raise ValueError("mask_probability 1 leaves no whole image to learn the velocity from")
        if self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio {list(self.mask_ratio)} is not an increasing range")
        return self


class MethodConfig(RootModel[DSDConfig]):
    """Any method, told apart by its `name`."""

    model_config = {"frozen": True}
