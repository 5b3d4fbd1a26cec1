"""The discriminator of a run, and all that learns or is remembered with it."""

from __future__ import annotations

from torch import Tensor, nn

from wetok.config import GanConfig, WetokError
from wetok.losses.adversarial import LeCam
from wetok.losses.discriminator import BlurDiscriminator, PatchDiscriminator


class Adversary(nn.Module):
    """The discriminator and LeCam's averages; parameters and buffers are all in its state dict.

    Args:
        config: kind and size of the discriminator.
        parts: micro-batches of a step, each of which moves LeCam's averages by as much less.
    """

    def __init__(self, config: GanConfig, parts: int = 1) -> None:
        super().__init__()
        self.discriminator: PatchDiscriminator | BlurDiscriminator
        if config.discriminator == "patch":
            self.discriminator = PatchDiscriminator(
                filters=config.width or 64, layers=config.depth or 3
            )
        else:
            self.discriminator = BlurDiscriminator(
                hidden=config.width or 128, stages=config.depth or 4
            )
        self.lecam = LeCam(config.lecam_decay ** (1 / parts))

    def check_crop(self, crop: int) -> None:
        """Raises WetokError where crops of this side are too small for the discriminator."""
        if crop < self.discriminator.smallest:
            raise WetokError(
                f"data.crop={crop}: the discriminator needs at least "
                f"{self.discriminator.smallest} pixels; enlarge it, or set a smaller gan.depth"
            )

    def remembered(self) -> list[Tensor]:
        """Copies of all buffers, for `recall`."""
        return [buffer.clone() for buffer in self.buffers()]

    def recall(self, remembered: list[Tensor]) -> None:
        """Puts the buffers back: a step that is not taken leaves nothing behind."""
        for buffer, value in zip(self.buffers(), remembered, strict=True):
            buffer.copy_(value)
