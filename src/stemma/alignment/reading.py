"""How each family reads a prompt and a response, and whose states stand before and behind each token of the response.

GPT, Mistral   prompt response                    read from left to right, several samples in a row
GLM            [CLS] prompt [gMASK] | start response    the response stands in the blank, in Part B
T5             prompt end -> start response       an encoder reads the prompt, the decoder the response

A response of R tokens is read at R + 1 places: the state at place t chose token t, that at the last has seen them all.
The frames are those of `inference.readers`, so that what is learned here is what is generated there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.collation import padded
from stemma.data.rows import place_in_rows
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.dispatch import with_article
from stemma.families.glm.examples import filled_example
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.inference.text_stream import end_of_text
from stemma.layers.masks import Mask

IGNORED = -100

Example = dict[str, np.ndarray]
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A prompt and a response as token ids; the response with the token that ends it, if it has ended."""

    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Reading(ABC):
    """What alignment must know of a family.

    Args:
        end: id that ends a response. longest: most tokens of a prompt with its response.
    """

    end: int
    longest: int

    @abstractmethod
    def frame(self, sample: Sample) -> Example:
        """Return int64 arrays: `tokens` [length], which decides what the example costs; `read` [R + 1], the places in
        it; `targets` [R + 1], the token of the response that each place chooses, -100 at the last; and the family's."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return what the model reads of examples; `places`, int64 [places of all examples, one behind the other],
        counted through all rows; `targets` [places]; and `reads` [examples], how many places each has."""

    @abstractmethod
    def states(self, model: Any, batch: Batch) -> Tensor:
        """Return the model's last states at a batch's places, float [places, hidden]."""

    def batch(self, samples: Sequence[Sample], device: Any = None) -> dict[str, Tensor]:
        """Return the batch of some samples, on a device."""
        collated = self.collate([self.frame(sample) for sample in samples])
        return {name: value.to(device) for name, value in collated.items()}


@dataclass(frozen=True)
class CausalReading(Reading):
    """GPT, Mistral, Mixtral.

    Args:
        first: what a text begins with that has no prompt. packing: whether several samples may share a row; they see
            nothing of each other, and positions restart with each.
    """

    first: int
    packing: bool = True

    def frame(self, sample: Sample) -> Example:
        """See `Reading`."""
        prompt = list(sample.prompt) or [self.first]
        return self.learned([*prompt, *sample.response], range(len(prompt), len(prompt) + len(sample.response)), True)

    def learned(self, tokens: Sequence[int], chosen: Sequence[int], behind: bool = False) -> Example:
        """Return the example of a text of which the tokens at the places `chosen` are targets.

        Args:
            behind: the last token's own state is read too.
        """
        ids = np.array(tokens, np.int64)
        places = np.array(chosen, np.int64)
        read, targets = places - 1, ids[places]
        if behind:
            read, targets = np.append(read, len(ids) - 1), np.append(targets, IGNORED)
        return {"tokens": ids, "read": read, "targets": targets}

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `Reading`; `document_ids` where examples share rows."""
        lengths = [len(example["tokens"]) for example in examples]
        width = max(lengths)
        places = place_in_rows(lengths, width) if self.packing else [(row, 0) for row in range(len(examples))]
        rows = 1 + max(row for row, _ in places)
        tokens, documents = np.zeros((rows, width), np.int64), np.full((rows, width), -1, np.int64)
        read = []
        for number, ((row, start), example) in enumerate(zip(places, examples, strict=True)):
            stop = start + lengths[number]
            tokens[row, start:stop], documents[row, start:stop] = example["tokens"], number
            read.append(row * width + start + example["read"])
        batch = {"tokens": torch.from_numpy(tokens), **_places(read, examples)}
        if rows < len(examples):  # otherwise causality hides the padding
            batch["document_ids"] = torch.from_numpy(documents)
        return batch

    def states(self, model: Any, batch: Batch) -> Tensor:
        """See `Reading`."""
        mask = Mask(causal=True, document_ids=batch.get("document_ids"))
        return model.hidden(batch["tokens"], mask=mask).flatten(0, 1)[batch["places"]]


@dataclass(frozen=True)
class GLMReading(Reading):
    """GLM: the response stands in a final [gMASK] (in models without one in [MASK], an end behind it)."""

    ids: GLMTokens

    def frame(self, sample: Sample) -> Example:
        """See `Reading`; also GLM's `positions` [2, length] and `context_length`."""
        ids = self.ids
        behind = [ids.end] if ids.document_mask == ids.mask else []
        context = [ids.beginning, *sample.prompt, ids.document_mask, *behind]
        blank = len(sample.prompt) + 1
        example = filled_example(context, [blank], [list(sample.response)], ids.piece_start, IGNORED)
        read = np.arange(len(context), len(example["tokens"]))
        return {**example, "targets": example["targets"][read], "read": read}

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `Reading`."""
        width = max(len(example["tokens"]) for example in examples)
        tokens = np.full((len(examples), width), self.ids.end, np.int64)
        positions = np.zeros((len(examples), 2, width), np.int64)
        read = []
        for row, example in enumerate(examples):
            length = len(example["tokens"])
            tokens[row, :length], positions[row, :, :length] = example["tokens"], example["positions"]
            read.append(row * width + example["read"])
        return {
            "tokens": torch.from_numpy(tokens),
            "positions": torch.from_numpy(positions),
            "context_lengths": torch.tensor([int(example["context_length"]) for example in examples]),
            **_places(read, examples),
        }

    def states(self, model: Any, batch: Batch) -> Tensor:
        """See `Reading`; of the last layer no other states are computed."""
        mask = Mask(causal=True, prefix_lengths=batch["context_lengths"])
        return model.hidden(batch["tokens"], batch["positions"], mask, places=batch["places"])


@dataclass(frozen=True)
class T5Reading(Reading):
    """T5. start: what the decoder begins with."""

    start: int

    def frame(self, sample: Sample) -> Example:
        """See `Reading`; the source as `tokens`, and `written`, int64 [R + 1], what the decoder reads."""
        prompt = list(sample.prompt)
        source = prompt if prompt and prompt[-1] == self.end else [*prompt, self.end]
        return {
            "tokens": np.array(source, np.int64),
            "written": np.array([self.start, *sample.response], np.int64),
            "targets": np.array([*sample.response, IGNORED], np.int64),
            "read": np.arange(len(sample.response) + 1),
        }

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `Reading`; the source's `key_padding`, True where a token is real."""
        source, written = (padded([example[name] for example in examples]) for name in ("tokens", "written"))
        lengths = torch.tensor([len(example["tokens"]) for example in examples])
        read = [row * written.shape[1] + example["read"] for row, example in enumerate(examples)]
        key_padding = torch.arange(source.shape[1]) < lengths.unsqueeze(1)
        return {"tokens": source, "written": written, "key_padding": key_padding, **_places(read, examples)}

    def states(self, model: Any, batch: Batch) -> Tensor:
        """See `Reading`."""
        padding = batch["key_padding"]
        encoded = model.encode(batch["tokens"], Mask(key_padding=padding))
        return model.decode(batch["written"], encoded, source_padding=padding).flatten(0, 1)[batch["places"]]


def reading_of(model: Any, tokenizer: Tokenizer, longest: int | None = None, *, packing: bool = True) -> Reading:
    """Return how a model of a family that writes texts reads them.

    Args:
        longest: most tokens of a prompt with its response; at most what the model's context leaves.
        packing: see `CausalReading`.
    Raises:
        InputError: a family that writes no text from a prompt, or a tokenizer without a token that ends a text.
    """
    end = end_of_text(tokenizer)
    if not isinstance(model, GPT | Mistral | GLM | T5):
        raise InputError(f"{with_article(model)} cannot be aligned: expected a GPT, Mistral, Mixtral, GLM or T5")
    if end is None:
        raise InputError("the tokenizer has no token that ends a text; expected one with an eos_token")
    if isinstance(model, GLM):
        ids = GLMTokens.of(tokenizer)
        frame = 4  # [CLS], the blank, an end behind it, and the start of the piece
        return GLMReading(ids.piece_end, min(longest or 1 << 30, model.config.context - frame), ids)
    if isinstance(model, T5):
        return T5Reading(end, longest or 1 << 30, model.config.start)
    first = end if tokenizer.bos is None else tokenizer.bos
    return CausalReading(end, min(longest or 1 << 30, model.config.context), first, packing)


def _places(read: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, Tensor]:
    return {
        "places": torch.from_numpy(np.concatenate(read)),
        "targets": torch.from_numpy(np.concatenate([example["targets"] for example in examples])),
        "reads": torch.tensor([len(places) for places in read]),
    }
