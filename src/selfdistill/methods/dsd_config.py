"""Hyper-parameters of DSD."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config
from selfdistill.data.config import PhotometricConfig, Probability
from selfdistill.methods.objective import Objective

Weight = Annotated[float, Field(ge=0)]


class DSDWeights(Config):
    """Weights of the terms of the DSD objective; 0 leaves a term out.

    Attributes:
        distillation: The self-distillation itself, Eq. 13, or the naive velocity loss, Eq. 2.
        velocity: The velocity head on detached features, Eq. 14, by which images are sampled.
        reconstruction: Mean absolute error of the decoded image.
        perceptual: LPIPS of the decoded image.
        alignment: Cosine to the teacher's tokens.
        representation: Cosine to the averaged network's features of the clean image.
        classification: Cross-entropy of a linear head on the latent.
    """

    distillation: Weight
    velocity: Weight
    reconstruction: Weight
    perceptual: Weight
    alignment: Weight
    representation: Weight
    classification: Weight


class AugmentationConfig(Config):
    """What happens to the online branch's image; the target sees the clean one, equally flipped.

    Attributes:
        probability: Share of the images that are augmented; the others stay whole.
        mask_ratio: Range of the share of patches masked in those, drawn evenly.
        photometric: Colours, blur and solarisation of those; None: they keep their colours.
    """

    probability: Probability
    mask_ratio: tuple[Probability, Probability]
    photometric: PhotometricConfig | None

    @model_validator(mode="after")
    def _range_increases(self) -> Self:
        if self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio {list(self.mask_ratio)} is not an increasing range")
        return self


class DSDConfig(Objective):
    """The DSD objective (arXiv:2511.14716v1), and the steps of Sec. 3 that lead to it.

    Attributes:
        weights: Weights of the loss terms.
        target: Latent of the clean image that is distilled from: of the network itself with its
            gradient ("live", Eq. 2) or without ("detached", Eq. 8), or of the averaged network
            ("average", Eq. 13).
        prediction: What is compared with it: the clean latent in latent space ("z0", Eq. 13), or
            the velocity ("velocity", Eq. 2 and 8).
        velocity_target: Latent z* of Eq. 14: the network's own, of images that stay whole and
            count for those that do not ("whole"), or the averaged network's, of all images
            ("average").
        augmentation: Of the online branch; None: both branches see the same image.
        perceptual_network: Network of LPIPS: "lpips_vgg16" as published, or "lpips_random", a
            narrow one with fixed random weights that needs no file.
        time_distribution: Law of the flow time: the sigmoid of N(0, 1), or U(0, 1).
        class_dropout: Share of the labels replaced by the null class in the diffusion head.
        ema_decay: Final decay of the averaged network per optimizer step; it starts lower, at
            (1 + k) / (10 + k) after k steps.
    """

    name: Literal["dsd"]
    weights: DSDWeights
    target: Literal["live", "detached", "average"]
    prediction: Literal["z0", "velocity"]
    velocity_target: Literal["whole", "average"]
    augmentation: AugmentationConfig | None
    perceptual_network: Literal["lpips_vgg16", "lpips_random"]
    time_distribution: Literal["logit_normal", "uniform"]
    class_dropout: Probability
    ema_decay: Annotated[float, Field(ge=0, lt=1)]

    @property
    def frozen_weights(self) -> tuple[str, ...]:
        """Return those of LPIPS, where it is as published."""
        if self.weights.perceptual and self.perceptual_network == "lpips_vgg16":
            return ("vgg16", "lpips_vgg")
        return ()

    @property
    def needs_features(self) -> bool:
        """Return whether there is an alignment term."""
        return self.weights.alignment > 0

    @property
    def trains_sampling(self) -> bool:
        """Return whether velocities are learned."""
        return self.weights.velocity > 0 or (
            self.prediction == "velocity" and self.weights.distillation > 0
        )

    @property
    def trains_decoding(self) -> bool:
        """Return whether images are reconstructed."""
        return self.weights.reconstruction > 0 or self.weights.perceptual > 0

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        of_the_noisy_pass = ("distillation", "reconstruction", "perceptual", "alignment")
        if not any(getattr(self.weights, name) for name in (*of_the_noisy_pass, "representation")):
            raise ValueError(
                "weights: nothing trains the ViT; give a weight to one of "
                f"{', '.join(of_the_noisy_pass)} or representation"
            )
        if self.target != "average":
            if self.augmentation is not None:
                raise ValueError(
                    f"target {self.target!r} is the online latent itself, which an augmentation "
                    "would change: set augmentation to null, or target to average"
                )
            if self.weights.representation:
                raise ValueError(
                    "weights.representation distils from the averaged network: set it to 0, or "
                    "target to average"
                )
        always = self.augmentation is not None and self.augmentation.probability == 1
        if always and self.velocity_target == "whole" and self.weights.velocity:
            raise ValueError(
                "augmentation.probability 1 leaves no whole image to learn the velocity from: "
                "lower it, set velocity_target to average, or weights.velocity to 0"
            )
        return self
