"""How each family reads a cloze question, and what it makes of one token in the blank (Petroni et al. 2019, section 4).

BERT    log p(token | both sides) at [MASK]; a sentence before or after the question's own is a second text
GPT     log p(token | what is before the blank), behind the token that ends a text; likewise Mistral, LSTM
T5      log p(token | both sides), the first of what stands for <extra_id_0>
GLM     log p(token | both sides), the first of what is written in the blank
ELMo    (log p(word | what is before the blank) + log p(word | what is behind it)) / 2, as LAMA's code has it

Questions of equal length are read together: no token is padding, and only the states of the blanks go through the last
layer (BERT, GLM) and the output matrix.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families import load
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import frame_and_mask
from stemma.families.dispatch import by_family
from stemma.families.elmo.model import ELMo
from stemma.families.elmo.words import UNKNOWN
from stemma.families.glm.examples import filled_example
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.families.t5.tokens import sentinel_ids
from stemma.inference.text_stream import end_of_text
from stemma.inference.word_states import SpelledWords
from stemma.layers.masks import Mask
from stemma.probing.facts import Query

_BATCH_TOKENS = 4096
_LOGITS = 1 << 27  # computed at once
# What ends and begins a sentence, among an ELMo's numbers of words; and what LAMA's code sets apart in its texts.
_BEGIN, _END = -1, -2
_NO_SOFTMAX = (
    "an ELMo without a softmax predicts no words: expected one from stemma pretrain, or *softmax_weights.hdf5 and its "
    "vocab.txt beside the published weights"
)
_PUNCTUATION = re.compile(r"[(),]|--")


@dataclass(frozen=True)
class Row:
    """A question as a model reads it. place: of the blank. second: where the second of two texts begins."""

    tokens: list[int]
    place: int
    second: int


@dataclass(frozen=True)
class Reading:
    """How a model reads questions.

    Args:
        rows: of questions. logits: of rows of equal length, float [rows, answers], of what stands in their blanks; of
            a model that predicts it in two ways [2, rows, answers].
        answers: the tokens with smaller numbers can be an answer.
        limit: the longest row that the model reads, in tokens. both_sides: whether it sees what is behind the blank.
    """

    rows: Callable[[Sequence[Query]], list[Row]]
    logits: Callable[[Sequence[Row]], Tensor]
    answers: int
    limit: int | None = None
    both_sides: bool = True

    def fits(self, row: Row) -> bool:
        """Return whether the model can read a question."""
        return self.limit is None or len(row.tokens) <= self.limit

    def log_probabilities(
        self, queries: Sequence[Query], tokens: Sequence[int], report: Callable[[int], None] = lambda done: None
    ) -> Tensor:
        """Return float32 [queries, tokens], on the CPU: how likely each token is in a blank, of the whole vocabulary;
        of a model that predicts in two ways the mean of both.

        Raises:
            InputError: a question that is longer than the model reads, or empty.
        """
        return self.of_rows(self.rows(queries), tokens, report)

    @torch.inference_mode()
    def of_rows(
        self, rows: Sequence[Row], tokens: Sequence[int], report: Callable[[int], None] = lambda done: None
    ) -> Tensor:
        """As `log_probabilities`, of rows."""
        for number, row in enumerate(rows, 1):
            if not row.tokens or not self.fits(row):
                raise InputError(f"question {number} has {len(row.tokens)} tokens, the model reads 1 to {self.limit}")
        found = torch.empty(len(rows), len(tokens))
        columns = torch.tensor(tokens)
        for numbers in equal_lengths([row.tokens for row in rows], max(1, _LOGITS // self.answers)):
            logits = self.logits([rows[number] for number in numbers]).float()
            chosen = logits[..., columns.to(logits.device)] - logits.logsumexp(-1, keepdim=True)
            found[numbers] = (chosen.mean(0) if chosen.dim() == 3 else chosen).cpu()
            report(len(numbers))
        return found


def reading_of(model: Any, tokenizer: Tokenizer) -> Reading:
    """Return how a model in eval mode reads cloze questions.

    Raises:
        InputError: it is of no family that can, or lacks a special token or a softmax for it.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
    if tokenizer.vocabulary > model.config.vocabulary:
        raise InputError(f"the tokenizer has more ids than the model's {model.config.vocabulary}: not its tokenizer")
    kinds: dict[type, Callable[[Any, Tokenizer], Reading]] = {
        BERT: _masked, GPT: _causal, Mistral: _causal, LSTM: _causal, T5: _t5, GLM: _glm, ELMo: _elmo
    }  # fmt: skip
    return by_family(model, kinds, "answers no questions")(model, tokenizer)


def load_to_ask(path_or_hub_id: str, device: torch.device | str | None = None) -> tuple[Any, Tokenizer]:
    """Load a model that is to be asked, and its tokenizer.

    Raises:
        InputError: as `families.load` and `load_tokenizer`; an ELMo without a softmax, which may have no vocabulary.
    """
    model: Any = load(path_or_hub_id, device=device)
    if isinstance(model, ELMo) and model.output is None:
        raise InputError(f"{path_or_hub_id}: {_NO_SOFTMAX}")
    return model, load_tokenizer(path_or_hub_id)


def equal_lengths(rows: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Yield the numbers of rows of one length, about `_BATCH_TOKENS` tokens and at most `most` rows at once."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for length, group in groupby(order, key=lambda number: len(rows[number])):
        numbers, size = list(group), min(most, max(1, _BATCH_TOKENS // length))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def encoded(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Encode the parts of some texts, each by itself."""
    ids = iter(tokenizer.encode_batch([part for parts in texts for part in parts]))
    return [[next(ids) for _ in parts] for parts in texts]


def _tokens(rows: Sequence[Row], device: torch.device) -> Tensor:
    return torch.tensor([row.tokens for row in rows], device=device)


def _masked(model: BERT, tokenizer: Tokenizer) -> Reading:
    first, last, mask = frame_and_mask(tokenizer)

    def rows(queries: Sequence[Query]) -> list[Row]:
        parts = [(query.earlier, query.before, query.after, query.later) for query in queries]
        return [framed(*ids) for ids in encoded(tokenizer, parts)]

    def framed(earlier: list[int], before: list[int], after: list[int], later: list[int]) -> Row:
        more = [last] * (model.config.separators - 1)
        tokens = [first, *earlier, *([last, *more] if earlier else []), *before]
        # The second text begins with the question's sentence, or behind it.
        second, place = len(tokens) - len(before), len(tokens)
        tokens += [mask, *after, last, *(more if later else [])]
        return Row([*tokens, *later, *([last] if later else [])], place, second if earlier else len(tokens))

    def logits(rows: Sequence[Row]) -> Tensor:
        tokens = _tokens(rows, model.masked_weight.device)
        length = tokens.shape[1]
        second = torch.stack([torch.arange(length) >= row.second for row in rows]).to(tokens.device)
        segments = second * model.config.second_segment
        places = torch.tensor([number * length + row.place for number, row in enumerate(rows)], device=tokens.device)
        return model.logits(model.hidden(tokens, segments, places=places))

    return Reading(rows, logits, model.config.vocabulary, model.config.context)


def _causal(model: GPT | Mistral | LSTM, tokenizer: Tokenizer) -> Reading:
    end = end_of_text(tokenizer)
    start = [] if end is None else [end]

    def rows(queries: Sequence[Query]) -> list[Row]:
        texts = [[*start, *ids] for ids in tokenizer.encode_batch([query.left for query in queries])]
        return [Row(ids, len(ids), len(ids)) for ids in texts]

    def logits(rows: Sequence[Row]) -> Tensor:
        return model.logits(model.hidden(_tokens(rows, model.output_weight.device))[:, -1])

    limit = getattr(model.config, "context", None)
    return Reading(rows, logits, model.config.vocabulary, limit, both_sides=False)


def _t5(model: T5, tokenizer: Tokenizer) -> Reading:
    sentinels = sentinel_ids(tokenizer)
    if not sentinels:
        raise InputError("the tokenizer has no <extra_id_0>, so that this T5 knows no blanks")

    def rows(queries: Sequence[Query]) -> list[Row]:
        found = []
        for before, after in encoded(tokenizer, [(query.left, query.right) for query in queries]):
            tokens = [*before, sentinels[0], *after, tokenizer.separator]
            found.append(Row(tokens, len(before), len(tokens)))
        return found

    def logits(rows: Sequence[Row]) -> Tensor:
        source = _tokens(rows, model.output_weight.device)
        # Read: the start token and the blank's name; the last target is what is asked for.
        target = torch.tensor([[sentinels[0], 0]], device=source.device).expand(len(rows), -1)
        return model.logits(model.hidden(source, target)[:, -1])

    return Reading(rows, logits, model.config.vocabulary)


def _glm(model: GLM, tokenizer: Tokenizer) -> Reading:
    ids = GLMTokens.of(tokenizer)

    def rows(queries: Sequence[Query]) -> list[Row]:
        found = []
        for before, after in encoded(tokenizer, [(query.left, query.right) for query in queries]):
            tokens = [ids.beginning, *before, ids.mask, *after, ids.end]
            found.append(Row(tokens, len(before) + 1, len(tokens)))
        return found

    def logits(rows: Sequence[Row]) -> Tensor:
        examples = [filled_example(row.tokens, [row.place], [()], ids.piece_start, ids.piece_end) for row in rows]
        device = model.output_weight.device
        tokens, positions = (
            torch.from_numpy(np.stack([example[name] for example in examples])).to(device)
            for name in ("tokens", "positions")
        )
        length = tokens.shape[1]
        seen = Mask(causal=True, prefix_lengths=torch.full((len(rows),), length - 1, device=device))
        last = torch.arange(1, len(rows) + 1, device=device) * length - 1
        return model.logits(model.hidden(tokens, positions, seen, places=last))

    return Reading(rows, logits, model.config.vocabulary, model.config.position_rows)


def _elmo(model: ELMo, tokenizer: Tokenizer) -> Reading:
    if model.output is None:
        raise InputError(_NO_SOFTMAX)
    output, vectors, marks = model.output, SpelledWords(model), model.boundaries().detach()
    words = [tokenizer.token(number) for number in range(tokenizer.vocabulary)]
    numbers = {word: number for number, word in enumerate(words) if number not in tokenizer.special}
    normalizer = tokenizer.backend.normalizer

    def numbered(text: str) -> list[int]:
        """Return the numbers of a text's words: words that have none get the next ones, to be read all the same."""
        spaced = _PUNCTUATION.sub(r" \g<0> ", text if normalizer is None else normalizer.normalize_str(text))
        found = []
        for word in spaced.split():
            if word not in numbers:
                numbers[word] = len(words)
                words.append(word)
            found.append(numbers[word])
        return found

    (blank,) = numbered(UNKNOWN)  # on which nothing depends: no direction reads what it predicts

    def rows(queries: Sequence[Query]) -> list[Row]:
        found = []
        for query in queries:
            earlier, later = numbered(query.earlier), numbered(query.later)
            tokens = [*earlier, *([_END, _BEGIN] if earlier else []), *numbered(query.before)]
            place = len(tokens)
            tokens += [blank, *numbered(query.after), *([_END, _BEGIN] if later else []), *later]
            found.append(Row(tokens, place, len(tokens)))
        return found

    def logits(rows: Sequence[Row]) -> Tensor:
        tokens = torch.tensor([row.tokens for row in rows], device=marks.device)
        read = marks.new_empty(*tokens.shape, marks.shape[1])
        read[tokens == _BEGIN], read[tokens == _END] = marks
        read[tokens >= 0] = vectors([words[number] for row in rows for number in row.tokens if number >= 0])
        lengths = torch.full((len(rows),), tokens.shape[1], device=tokens.device)
        ahead, behind = model.directions(read, lengths, boundaries=marks)[0][-1]
        row, place = torch.arange(len(rows)), torch.tensor([one.place for one in rows])
        return output(torch.stack([ahead[row, place], behind[row, place + 2]]))

    return Reading(rows, logits, model.config.outputs)
