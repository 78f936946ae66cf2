"""ViT and DeiT: an image as a sequence of patches, read by a Transformer encoder.

- Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", section 3.
- Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", section 4: the
  distillation token, which stands beside the class token and has an output layer of its own.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families.vit.positions import resize_positions
from stemma.layers.attention import MultiHeadAttention
from stemma.layers.feed_forward import FeedForward
from stemma.layers.linear import Linear, linear
from stemma.layers.stochastic_depth import StochasticDepth


@dataclass(frozen=True)
class ViTConfig:
    """What a ViT is made of; the defaults are ViT-B/16's.

    Args:
        image_size: side of the images, in pixels, that the positions are of. patch_size: side of a patch.
        channels: of the images. classes: of the output. class_names: their names; none: they have none.
        layers, hidden, heads: of the stack. feed_forward: inner width, default 4 * hidden.
        activation: "gelu" (error function: DeiT's, and what the published weights are usually run with) or "gelu_tanh"
            (the authors' code of ViT; logits differ by about 1e-3).
        dropout: after the embeddings and in each residual branch. stochastic_depth: how likely the last block's
            branches are left out in training; linear from 0 over the depth.
        distilled: whether there is a distillation token with its output layer.
        initial_std: of the initial weights.
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    classes: int = 1000
    class_names: tuple[str, ...] = ()
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    feed_forward: int | None = None
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    distilled: bool = False
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise InputError(f"model: hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.image_size % self.patch_size:
            raise InputError(
                f"model: image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})"
            )
        if self.class_names and len(self.class_names) != self.classes:
            raise InputError(f"model: {len(self.class_names)} class_names for {self.classes} classes")

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches."""
        return 2 if self.distilled else 1

    @property
    def tokens(self) -> int:
        """The number of tokens of an image."""
        return self.prefix + (self.image_size // self.patch_size) ** 2


class Embeddings(nn.Module):
    """Patches as vectors, with the class token (and the distillation token) before them, and their positions."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden, patch = config.hidden, config.patch_size
        self.patch = nn.Conv2d(config.channels, hidden, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, hidden)) if config.distilled else None
        self.position = nn.Parameter(torch.zeros(1, config.tokens, hidden))
        self.dropout = nn.Dropout(config.dropout)
        self.prefix, self.grid = config.prefix, config.image_size // patch

    def forward(self, images: Tensor) -> Tensor:
        """Return float [batch, tokens, hidden] for float [batch, channels, height, width].

        Images of another size than the configuration's have the positions interpolated to their grid.

        Raises:
            InputError: sides that are no multiple of a patch's, or another number of channels.
        """
        size = self.patch.kernel_size[0]
        _, channels, height, width = images.shape
        if channels != self.patch.in_channels or height % size or width % size:
            raise InputError(
                f"images of {channels} x {height} x {width}; the model takes {self.patch.in_channels} channels and "
                f"sides that are multiples of {size}"
            )
        # The convolution's kernels do not overlap: it is one product with the patches, [batch, rows, columns, ...].
        patches = images.unflatten(2, (-1, size)).unflatten(4, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        grid = (patches.shape[1], patches.shape[2])
        x = linear(patches.flatten(1, 2), self.patch.weight.flatten(1), self.patch.bias)
        tokens = [self.class_token, *([] if self.distillation_token is None else [self.distillation_token])]
        x = torch.cat([*(token.to(x.dtype).expand(len(x), -1, -1) for token in tokens), x], dim=1)
        return self.dropout(x + resize_positions(self.position, grid, self.prefix, (self.grid, self.grid)))


class Block(nn.Module):
    """Attention and feed-forward network, each in a residual branch with the norm before it."""

    def __init__(self, config: ViTConfig, layer: int) -> None:
        super().__init__()
        hidden, epsilon = config.hidden, config.norm_epsilon
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.attention = MultiHeadAttention(hidden, config.heads, layer=layer)
        self.feed_forward_norm = nn.LayerNorm(hidden, epsilon)
        self.feed_forward = FeedForward(hidden, config.feed_forward or 4 * hidden, activation=config.activation)
        self.dropout = nn.Dropout(config.dropout)
        self.depth = StochasticDepth(config.stochastic_depth * layer / max(config.layers - 1, 1))

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Map float [batch, length, hidden] to the same shape, or to that of the `first` tokens only."""
        places = None if first is None else _first_places(x, first)
        mixed = self.attention(self.attention_norm(x), places=places)
        if first is not None:
            x, mixed = x[:, :first], mixed.unflatten(0, (-1, first))
        x = x + self.depth(self.dropout(mixed))
        return x + self.depth(self.dropout(self.feed_forward(self.feed_forward_norm(x))))


class ViT(nn.Module):
    """The encoder with an output layer on the class token, and, of a DeiT, another on the distillation token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden, config.norm_epsilon)
        self.head = Linear(config.hidden, config.classes)
        self.distillation_head = Linear(config.hidden, config.classes) if config.distilled else None
        self.initialize()

    @property
    def undecayed(self) -> list[str]:
        """The parameters that weight decay spares beside biases and norms: tokens and positions, as in DeiT's code."""
        return [f"embeddings.{name}" for name, _ in self.embeddings.named_parameters(recurse=False)]

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew: N(0, std) cut at two standard deviations, biases 0, norms 1 (DeiT's code).

        The patches' map is a LeCun normal one, as in ViT's code.
        """
        std = self.config.initial_std
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        patch = self.embeddings.patch
        nn.init.trunc_normal_(patch.weight, std=patch.weight[0].numel() ** -0.5)
        if patch.bias is not None:
            nn.init.zeros_(patch.bias)
        for parameter in (self.embeddings.class_token, self.embeddings.distillation_token, self.embeddings.position):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits, float [batch, classes]; of a DeiT in training those of both heads, else their mean.

        The paper adds the heads' probabilities instead (section 5.3); the authors' code, timm and transformers take the
        mean of the logits, and so does this.
        """
        ours, distilled = self.heads(images)
        if distilled is None:
            return ours
        return (ours, distilled) if self.training else (ours + distilled) / 2

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the class token's head and of the distillation token's, float [batch, classes] each.

        Args:
            images: float [batch, channels, height, width], normalised.
        """
        first = self.config.prefix
        x = self.embeddings(images)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.final_norm(self.blocks[-1](x, first))  # of the last block only what the heads read
        return self.head(x[:, 0]), None if self.distillation_head is None else self.distillation_head(x[:, 1])

    def hidden_states(self, images: Tensor) -> list[Tensor]:
        """Return the embeddings and the states after each block, float [batch, tokens, hidden] each; the last normed.

        Args:
            images: float [batch, channels, height, width], normalised.
        """
        states = [self.embeddings(images)]
        for block in self.blocks:
            states.append(block(states[-1]))
        states[-1] = self.final_norm(states[-1])
        return states

    def attention_weights(self, images: Tensor) -> list[Tensor]:
        """Return what each token looks at in each block, float [batch, heads, tokens, tokens] with rows that sum to 1.

        Args:
            images: float [batch, channels, height, width], normalised.
        """
        weights, x = [], self.embeddings(images)
        block: Any
        for block in self.blocks:
            query, key, _ = block.attention.project(block.attention_norm(x))
            weights.append(torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1))
            x = block(x)
        return weights


def _first_places(x: Tensor, first: int) -> Tensor:
    """Return the places of each row's first tokens, int64 [batch * first], counted through all rows."""
    batch, length = x.shape[:2]
    starts = torch.arange(0, batch * length, length, device=x.device)
    return (starts[:, None] + torch.arange(first, device=x.device)).flatten()


_BASE = ViTConfig()

PRESETS: dict[str, ViTConfig] = {
    # For scikit-learn's digits of 8 x 8 pixels.
    "tiny": ViTConfig(image_size=8, patch_size=2, channels=1, classes=10, layers=4, hidden=64, heads=4),
    "ti": replace(_BASE, hidden=192, heads=3),  # Ti and S are DeiT's, table 1 there
    "s": replace(_BASE, hidden=384, heads=6),
    "b": _BASE,
    "l": replace(_BASE, layers=24, hidden=1024, heads=16),
    "h": replace(_BASE, patch_size=14, layers=32, hidden=1280, heads=16),
}
