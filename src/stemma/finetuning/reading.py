"""How each family reads one text or two for an output layer: what stands round them, and whose state is taken.

BERT   [CLS] a [SEP] b [SEP]        the state of [CLS]          (Devlin et al. 2018, section 3.2)
GPT    start a delimiter b classify the state of the last       (Radford et al. 2018, section 3.3)
GLM    [CLS] a end b end            the state of [CLS]
T5     a end b end                  the encoder's state of the last
LSTM   end a end b end              the state of the last; of pairs to compare each text by itself
ELMo   a mark b                     the mean of all words' mixed layers (see heads.py)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import BERTTokens
from stemma.families.dispatch import with_article
from stemma.families.elmo.model import ELMo
from stemma.families.elmo.words import PADDING
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.growth import with_vocabulary
from stemma.families.lstm.model import LSTM
from stemma.families.t5.model import T5
from stemma.finetuning.words import MARK, WordNumbers

START, DELIMITER, CLASSIFY = "_start_", "_delimiter_", "_classify_"  # as in GPT-1's code

Example = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reader:
    """The frame of a family's input.

    Args:
        before, between, after: special tokens. at: whose state stands for the whole.
        segments: whether the second text has a segment of its own. longest: most tokens, None for any number.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    at: Literal["first", "last"]
    segments: bool = False
    longest: int | None = None

    def frame(self, *texts: Sequence[int]) -> Example:
        """Return `tokens` int64 [length], with texts cut until they fit, the longest first; `segments` of a pair;
        `read` int64 [1]: the place whose state stands for the whole."""
        first, *rest = self._cut(texts)
        tokens = [*self.before, *first]
        border = len(tokens) + len(self.between)
        for text in rest:
            tokens += [*self.between, *text]
        tokens += self.after
        example = {"tokens": np.array(tokens, np.int64)}
        if self.segments and rest:
            example["segments"] = (np.arange(len(tokens)) >= border).astype(np.int64)
        example["read"] = np.array([0 if self.at == "first" else len(tokens) - 1])
        return example

    def _cut(self, texts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        lengths = [len(text) for text in texts]
        if self.longest is not None:
            frame = len(self.before) + len(self.after) + len(self.between) * (len(texts) - 1)
            excess = sum(lengths) + frame - self.longest
            for _ in range(max(excess, 0)):
                lengths[max(range(len(lengths)), key=lengths.__getitem__)] -= 1
        return [text[:length] for text, length in zip(texts, lengths, strict=True)]


@dataclass(frozen=True)
class WordReader(Reader):
    """A reader whose examples also have `characters`, int16 [length, longest_word]."""

    words: WordNumbers = field(kw_only=True)

    def frame(self, *texts: Sequence[int]) -> Example:
        """Return what `Reader.frame` does, and the characters."""
        example: dict[str, Any] = super().frame(*texts)
        return {**example, "characters": self.words.spell(example["tokens"])}


def reader_of(model: Any, tokenizer: Tokenizer, longest: int | None = None) -> Reader:
    """Return how a model reads; its tokenizer has the special tokens (see `prepared`).

    Args:
        longest: most tokens of an input, where that is less than the model's context.
    Raises:
        InputError: the model is of no family that reads texts for an output layer.
    """
    context = getattr(model.config, "context", None)
    limit = min((size for size in (context, longest) if size is not None), default=None)
    if isinstance(model, BERT):
        bert = BERTTokens.of(tokenizer)
        between = (bert.last,) * model.config.separators
        segments = model.config.second_segment > 0
        return Reader((bert.first,), between, (bert.last,), "first", segments, longest=limit)
    if isinstance(model, GPT):
        start, delimiter, classify = (tokenizer.id(name) for name in (START, DELIMITER, CLASSIFY))
        return Reader((start,), (delimiter,), (classify,), "last", longest=limit)
    if isinstance(model, GLM):
        glm = GLMTokens.of(tokenizer)
        return Reader((glm.beginning,), (glm.end,), (glm.end,), "first", longest=limit)
    if isinstance(model, T5):
        end = (tokenizer.separator,)
        return Reader((), end, end, "last", longest=limit)
    if isinstance(model, LSTM):  # a document of pretraining begins with what ends it
        end = (tokenizer.separator,)
        return Reader(end, end, end, "last", longest=limit)
    if isinstance(model, ELMo):
        return WordReader((), (MARK,), (), "first", longest=limit, words=cast(WordNumbers, tokenizer))
    raise InputError(f"{with_article(model)} cannot be fine-tuned: expected a BERT, ELMo, GLM, GPT, T5 or LSTM")


def tokenizer_of(model: Any, directory: Path) -> Tokenizer:
    """Return what a model reads with: the tokenizer of its directory; an ELMo needs none.

    Raises:
        InputError: there is none.
    """
    if isinstance(model, ELMo):
        return cast(Tokenizer, WordNumbers(model.config.longest_word))
    return load_tokenizer(directory)


def prepared(model: Any, tokenizer: Tokenizer) -> tuple[Any, Tokenizer]:
    """Return model and tokenizer with the special tokens that fine-tuning needs: a GPT has three more of them.

    An ELMo comes back without its softmax, which is the largest part of it.
    """
    if isinstance(model, ELMo):
        model.drop_softmax()
    if not isinstance(model, GPT):
        return model, tokenizer
    tokenizer = tokenizer.with_special_tokens(START, DELIMITER, CLASSIFY)
    return with_vocabulary(model, max(tokenizer.vocabulary, model.config.vocabulary)), tokenizer


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Pad texts at their ends to one length.

    Returns:
        int64 `tokens` [batch, length], `segments` where there are any, `lengths` [batch]; `read` [reads]: places
        counted through all rows; of an ELMo's words int16 `characters` [batch, length, longest_word].
    """
    lengths = [len(example["tokens"]) for example in examples]
    width = max(lengths)
    batch = {"tokens": np.zeros((len(examples), width), np.int64)}
    if any("segments" in example for example in examples):
        batch["segments"] = np.zeros((len(examples), width), np.int64)
    for name, rows in batch.items():
        for row, example in enumerate(examples):
            if name in example:
                rows[row, : lengths[row]] = example[name]
    if "characters" in examples[0]:
        batch["characters"] = np.full((*batch["tokens"].shape, examples[0]["characters"].shape[1]), PADDING, np.int16)
        for row, example in enumerate(examples):
            batch["characters"][row, : lengths[row]] = example["characters"]
    batch["lengths"] = np.array(lengths)
    batch["read"] = np.concatenate([row * width + example["read"] for row, example in enumerate(examples)])
    return {name: torch.from_numpy(array) for name, array in batch.items()}
