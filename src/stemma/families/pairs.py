"""Sources and targets as encoder-decoders are trained on them: batches, and the loss of the targets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.collation import padded
from stemma.layers.cross_entropy import linear_cross_entropy

IGNORED = -100


def collate_pairs(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Stack int64 sources and targets; shorter ones are padded, targets with -100, and `source_padding`, where there
    is any, tells real source tokens."""
    batch = {"source": padded(sources), "target": padded(targets, IGNORED)}
    lengths = torch.tensor([len(source) for source in sources])
    if int(lengths.min()) < batch["source"].shape[1]:
        batch["source_padding"] = torch.arange(batch["source"].shape[1]) < lengths.unsqueeze(1)
    return batch


def count_targets(batch: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many targets the batch has: what a loss over several batches must be divided by."""
    return {"targets": int((batch["target"] != IGNORED).sum())}


def target_loss(
    model: Any, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss of the target tokens in nats, and sums to report.

    Args:
        model: with `hidden(source, target, source_padding=)` and `output_weight`.
        batch: as `collate_pairs` makes it. totals: what `count_targets` gives for the whole step; default: of it.
        label_smoothing: in training, see `layers.cross_entropy`.
    """
    divisor = max((totals or count_targets(batch))["targets"], 1)
    hidden = model.hidden(batch["source"], batch["target"], source_padding=batch.get("source_padding"))
    targets = batch["target"].flatten()
    bias = getattr(model, "output_bias", None)
    loss = linear_cross_entropy(
        hidden.flatten(0, 1), model.output_weight, targets, bias=bias, divisor=divisor, label_smoothing=label_smoothing
    )
    return loss, {"nll": loss.detach() * divisor, "targets": (targets != IGNORED).sum()}


def training_flops(model: Any, source: float, target: float) -> float:
    """Estimate the floating-point operations, forth and back, of one pair of so many tokens.

    6 for each token and parameter that it meets: the source meets the encoder and the keys and values that the decoder
    makes of it, the target the rest; and 12 * inner width for each pair of tokens that attention compares.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() >= 2}
    encoder = sum(size for name, size in sizes.items() if name.startswith("encoder."))
    decoder = sum(size for name, size in sizes.items() if name.startswith("decoder."))
    crossing = sum(size for name, size in sizes.items() if ".cross_attention.key" in name) * 2
    met = source * (encoder + crossing) + target * (decoder - crossing + model.output_weight.numel())
    config = model.config
    compared = config.layers * source**2 + len(model.decoder.blocks) * (target**2 / 2 + source * target)
    return 6 * met + 12 * config.heads * config.head_dim * compared
