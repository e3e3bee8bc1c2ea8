"""What the configurations of all methods have in common."""

from selfdistill.base_config import Config


class Objective(Config):
    """What the pipelines ask of every method's configuration."""

    @property
    def frozen_weights(self) -> tuple[str, ...]:
        """Names of the files of frozen networks that the loss needs: `weights.<name>`."""
        return ()

    @property
    def needs_features(self) -> bool:
        """Whether the loss needs a teacher's features of the images."""
        return False

    @property
    def needs_start(self) -> bool:
        """Whether the network has to be trained already."""
        return False

    @property
    def takes_teacher(self) -> bool:
        """Whether it may learn from another network than the one that it starts as."""
        return False

    @property
    def turns(self) -> tuple[str, ...]:
        """Names of the networks that are trained, in turn."""
        return ("network",)

    @property
    def depends_on_micro_batches(self) -> bool:
        """Whether an image's loss depends on those that a rank holds with it."""
        return False

    @property
    def trains_sampling(self) -> bool:
        """Whether the loss trains all that sampling needs."""
        return True

    @property
    def trains_decoding(self) -> bool:
        """Whether the loss trains what turns latents into images."""
        return True
