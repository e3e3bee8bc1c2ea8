"""Each metric taken of a subject. Every command reads this: what is heavy is imported in use."""

from typing import TYPE_CHECKING, Literal

from selfdistill.metrics.metric import Measurement, Need

if TYPE_CHECKING:
    from selfdistill.metrics.subject import Subject

Part = Literal["precision", "recall"]
Arithmetic = Literal["float16", "float32"]


def frechet(subject: "Subject", *, need: Need) -> Measurement:
    """Return the Fréchet distance of the samples' features from the real images'."""
    from selfdistill.metrics.frechet import frechet_distance

    distance = frechet_distance(subject.samples.moments[need], subject.reference.moments[need])
    return Measurement(distance, baselines=subject.baselines(need))


def inception_score(subject: "Subject", *, need: Need) -> Measurement:
    """Return the Inception Score of the samples."""
    from selfdistill.metrics.inception_score import SPLIT_SIZE

    protocol = {"split_size": SPLIT_SIZE, "split_order": "consecutive", "bias": False}
    return Measurement(subject.samples.scores[need], protocol=protocol)


def manifold(subject: "Subject", *, need: Need, part: Part, arithmetic: Arithmetic) -> Measurement:
    """Return improved precision or recall of the samples' features against the real images'."""
    from selfdistill.metrics.precision_recall import NEIGHBOURS

    precision, recall = subject.manifold(need, arithmetic)
    protocol = {
        "arithmetic": arithmetic,
        "neighbours": NEIGHBOURS,
        "num_reference": len(subject.reference.features[need]),
    }
    return Measurement(precision if part == "precision" else recall, protocol=protocol)


def psnr(subject: "Subject") -> Measurement:
    """Return the mean over the images of the PSNR of sample i against image i, in dB.

    Samples that equal their image have an infinite PSNR; they are counted and left out.

    Raises:
        ValueError: If all do.
    """
    import numpy as np

    from selfdistill.metrics.psnr import psnr as psnr_of

    pairs = zip(subject.sample_batches(), subject.image_batches(), strict=True)
    values = np.concatenate([psnr_of(sample, image) for sample, image in pairs])
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError(f"{subject.sample_set.path}: every sample equals its image")
    protocol = {"mean": "over images, in dB", "num_equal": len(values) - len(finite)}
    return Measurement(float(finite.mean()), protocol=protocol)


def class_accuracy(subject: "Subject") -> Measurement:
    """Return the share of samples that a classifier of the real images takes for their class.

    Every image has a class. The baseline "real" is the classifier's accuracy on real images held
    out.
    """
    import numpy as np

    from selfdistill.metrics.class_accuracy import RealClassifier, thumbnails

    wanted = subject.sample_set.labels[np.asarray(subject.chosen)]
    real, generated = (
        np.concatenate([thumbnails(batch) for batch in batches])
        for batches in (subject.image_batches(), subject.sample_batches())
    )
    classifier = RealClassifier.fit(real, subject.image_set.labels)
    return Measurement(
        value=classifier.accuracy(generated, wanted),
        baselines={"real": classifier.held_out_accuracy},
        protocol=classifier.protocol(),
    )
