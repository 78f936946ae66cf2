"""A small residual network for small images: the convolutional teacher of a DeiT that needs nothing else.

He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2 (the networks for CIFAR-10), with group
norms (Wu and He 2018) in place of batch norms, so that the images of a batch do not matter to each other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.linear import Linear


@dataclass(frozen=True)
class ResNetConfig:
    """What it is made of; the defaults are ResNet-20's.

    Args:
        image_size: side of the images it is trained on; it reads others too. channels: of the images.
        classes: of the output. class_names: their names; none: they have none.
        blocks: in each of the three stages; there are 6 * blocks + 2 layers. width: of the first stage; each further
            one is twice as wide, on half the side. groups: of the norms.
    """

    image_size: int = 32
    channels: int = 3
    classes: int = 10
    class_names: tuple[str, ...] = ()
    blocks: int = 3
    width: int = 16
    groups: int = 8

    def __post_init__(self) -> None:
        if self.width % self.groups:
            raise InputError(f"model: width ({self.width}) must be a multiple of groups ({self.groups})")


class Block(nn.Module):
    """Two convolutions in a residual branch; a shorter side is subsampled, new channels are zeros (option A)."""

    def __init__(self, inner: int, outer: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(groups, outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(groups, outer)
        self.stride, self.added = stride, outer - inner

    def forward(self, x: Tensor) -> Tensor:
        """Map float [batch, inner, height, width] to [batch, outer, height / stride, width / stride]."""
        branch = self.second_norm(self.second(torch.relu(self.first_norm(self.first(x)))))
        skipped = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return torch.relu(skipped + branch)


class ResNet(nn.Module):
    """A convolution, three stages of blocks, the mean over all places, and an output layer."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width, config.width, 2 * config.width, 4 * config.width]
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1, bias=False)
        self.stem_norm = nn.GroupNorm(config.groups, config.width)
        self.blocks = nn.ModuleList(
            Block(
                widths[stage] if number == 0 else widths[stage + 1],
                widths[stage + 1],
                2 if number == 0 and stage > 0 else 1,
                config.groups,
            )
            for stage in range(3)
            for number in range(config.blocks)
        )
        self.head = Linear(widths[-1], config.classes)
        self.initialize()

    def initialize(self) -> None:
        """Draw all parameters anew (He et al. 2015, "Delving Deep into Rectifiers"); the output layer is 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float [batch, classes], of float [batch, channels, height, width], normalised."""
        x = torch.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


PRESETS: dict[str, ResNetConfig] = {
    "tiny": ResNetConfig(image_size=8, channels=1, blocks=1),
    "20": ResNetConfig(),
    "56": ResNetConfig(blocks=9),
}
