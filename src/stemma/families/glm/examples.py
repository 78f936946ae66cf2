"""From a sample and what is taken out of it to the sequence that the model reads (Du et al. 2022, section 2.1).

An example is a dictionary: `tokens` and `targets`, int64 [length], the target being what the token's output predicts
(-100: nothing); `positions`, int64 [2, length]; `context_length`, int64 []: the length of Part A.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stemma.families.glm.spans import Span

IGNORED = -100
LAST_POSITION = -1  # stands for the last row of the model's position table

_MULTIPLES = (8, 64)  # the length of a batch is padded to one; from 256 on to the second, for few different lengths

Example = dict[str, np.ndarray]


def infilling_example(
    sample: np.ndarray,
    spans: Sequence[Span],
    masks: Sequence[int],
    starts: Sequence[int],
    end: int,
    *,
    block_positions: bool = True,
    written_at: int | None = None,
) -> Example:
    """Return the example in which `spans` are blanks of Part A and are written one after the other in Part B.

    A span is read as start token, tokens, and predicted as tokens, end token. The first position of all of it is that
    of its blank in the text with blanks; the second counts from 1 at the start token.

    Args:
        sample: int64 [length]. spans: in the order in which they are written.
        masks, starts: for each span, the token that is its blank and the one before it in Part B. end: the one after.
        block_positions: False: the second position is 1 in all of Part B.
        written_at: the first position of all of Part B, instead of the blank's.
    """
    kept = np.ones(len(sample), bool)  # a blank keeps the place of its span's first token
    with_blanks = sample.copy()
    for (start, stop), mask in zip(spans, masks, strict=True):
        kept[start + 1 : stop] = False
        with_blanks[start] = mask
    places = np.cumsum(kept) - 1
    context = with_blanks[kept]

    begin, lengths = np.array([span[0] for span in spans], np.int64), np.array([b - a + 1 for a, b in spans], np.int64)
    offsets = lengths.cumsum() - lengths
    inside = np.arange(lengths.sum()) - offsets.repeat(lengths)  # of a span with its start token: 0, 1, 2, ...
    ahead = np.append(sample, end)[begin.repeat(lengths) + inside]  # the span, and the token after it
    written, targets = np.roll(ahead, 1), ahead
    written[offsets] = starts
    targets[offsets + lengths - 1] = end
    first = places[begin].repeat(lengths) if written_at is None else np.full(len(inside), written_at)
    second = inside + 1 if block_positions else np.ones(len(inside), np.int64)
    nothing = np.zeros(len(context), np.int64)
    return {
        "tokens": np.concatenate([context, written]),
        "targets": np.concatenate([nothing + IGNORED, targets]),
        "positions": np.stack([np.append(np.arange(len(context)), first), np.append(nothing, second)]),
        "context_length": np.array(len(context)),
    }


def continuation_example(
    sample: np.ndarray, division: int, mask: int, start: int, *, block_positions: bool = True, silent: int | None = None
) -> Example:
    """Return the example in which everything from `division` on is written after a final blank, without an end token.

    Args:
        sample: int64 [length]. mask, start: the blank's token and the one that Part B begins with.
        block_positions: False: the second position is 1 in all of Part B.
        silent: a token that is not learned as a target ([CLS], which begins the further documents of a sample).
    """
    source, target = sample[:division], sample[division:]
    inputs = np.concatenate([source, [mask, start], target[:-1]])
    targets = np.concatenate([np.full(division + 1, IGNORED), np.where(target == silent, IGNORED, target)])
    written = np.arange(1, len(target) + 1) if block_positions else np.ones(len(target), np.int64)
    positions = [
        np.minimum(np.arange(len(inputs)), division),  # from the blank on they stand still
        np.concatenate([np.zeros(division + 1, np.int64), written]),
    ]
    return {
        "tokens": inputs,
        "targets": targets,
        "positions": np.stack(positions),
        "context_length": np.array(division + 1),
    }


def filled_example(
    context: Sequence[int], places: Sequence[int], pieces: Sequence[Sequence[int]], start: int, end: int
) -> Example:
    """Return the example in which given pieces are written into a context's blanks.

    Args:
        context: Part A. places: where its blanks are, in the order in which they are written. pieces: what is written.
        start, end: the tokens before and after each piece.
    """
    inputs, targets = list(context), [IGNORED] * len(context)
    first, second = list(range(len(context))), [0] * len(context)
    for place, piece in zip(places, pieces, strict=True):
        inputs += [start, *piece]
        targets += [*piece, end]
        first += [place] * (len(piece) + 1)
        second += range(1, len(piece) + 2)
    return {
        "tokens": np.array(inputs),
        "targets": np.array(targets),
        "positions": np.array([first, second]),
        "context_length": np.array(len(context)),
    }


def collate(examples: Sequence[Example], padding: int) -> dict[str, Tensor]:
    """Pad examples at their ends to one length; causality hides the padding.

    Returns:
        int64 `tokens` and `targets` [batch, length], `positions` [batch, 2, length], `context_lengths` [batch].
    """
    longest = max(len(example["tokens"]) for example in examples)
    multiple = _MULTIPLES[longest >= 256]
    length = -(-longest // multiple) * multiple
    tokens = torch.full((len(examples), length), padding)
    targets = torch.full((len(examples), length), IGNORED)
    positions = torch.zeros((len(examples), 2, length), dtype=torch.int64)
    for row, example in enumerate(examples):
        filled = len(example["tokens"])
        tokens[row, :filled] = torch.from_numpy(example["tokens"])
        targets[row, :filled] = torch.from_numpy(example["targets"])
        positions[row, :, :filled] = torch.from_numpy(example["positions"])
    context_lengths = torch.tensor([int(example["context_length"]) for example in examples])
    return {"tokens": tokens, "targets": targets, "positions": positions, "context_lengths": context_lengths}
