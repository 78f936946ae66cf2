"""A batch of continuations in the making, from prompts to finished texts; `inference.generate` is the way in."""

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.dispatch import with_article
from stemma.families.t5.tokens import encode_source
from stemma.inference.beam import beam_search
from stemma.inference.decoder import Decoder
from stemma.inference.decoders import decoder_of
from stemma.inference.encoder_decoder import most_new, reads_source
from stemma.inference.prepacked import prepacked
from stemma.inference.rolling_decoder import RollingDecoder
from stemma.inference.sampling import Sampling, log_probabilities_of, uniforms
from stemma.inference.text_stream import TextStream, end_of_text

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

FinishReason = Literal["end", "stop", "length", "context"]

_MOST_ROWS = 64  # more texts, or more than fit into so large a cache, are generated one batch after another
_CACHE_BYTES = 2**30
PACK_FROM = 16  # new tokens from which packing the weights pays


@dataclass(frozen=True)
class Generation:
    """One continuation of one prompt.

    Args:
        text: the continuation without the prompt, a stop string or special tokens.
        tokens: all ids generated, with the one that ended the text and those of a stop string.
        finish_reason: "end" (the model ended the text), "stop" (a stop string), "length" (`max_new_tokens`), "context"
            (the model's context is full).
        prompt, sample: number of the prompt, and of this continuation of it. seed: what gives the same text again.
        log_probabilities: of each token given all before it, natural, by the model's own distribution (temperature 1,
            no filter); None if not asked for.
        score: beam search only (see `generate`).
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt: int
    sample: int
    seed: int
    log_probabilities: list[float] | None = None
    score: float | None = None


class Text:
    """One continuation in the making."""

    def __init__(self, prompt: int, sample: int, tokens: list[int], limit: int, stream: TextStream) -> None:
        self.prompt, self.sample, self.tokens, self.limit, self.stream = prompt, sample, tokens, limit, stream
        self.new: list[int] = []
        self.log_probabilities: list[float] = []
        self.ended = False
        self.score: float | None = None

    @property
    def finished(self) -> bool:
        return self.ended or self.stream.stopped or len(self.new) >= self.limit

    def accept(self, token: int, log_probability: float | None, end: int | None) -> str:
        """Take the next token; return the text that is now certain."""
        self.new.append(token)
        if log_probability is not None:
            self.log_probabilities.append(log_probability)
        self.ended = token == end
        piece = "" if self.ended else self.stream.push(token)
        return piece + self.stream.finish() if self.finished else piece


class Job:
    """What `generate` was asked for, checked; `run` does it."""

    def __init__(
        self,
        model: Any,
        tokenizer: "Tokenizer",
        prompts: Sequence[str],
        *,
        sampling: Sampling,
        max_new_tokens: int,
        stop: Sequence[str],
        seed: int | None,
        samples: int = 1,
        log_probabilities: bool = False,
        truncate: bool = False,
        compiled: bool = False,
    ) -> None:
        _check(model, tokenizer, max_new_tokens, stop, seed, samples)
        self.model, self.tokenizer, self.sampling, self.samples = model, tokenizer, sampling, samples
        self.max_new_tokens, self.stop, self.log_probabilities = max_new_tokens, stop, log_probabilities
        self.seed = secrets.randbits(32) if seed is None else seed
        self.end = end_of_text(tokenizer)
        self.context: float = getattr(model.config, "context", math.inf)
        self.about = reads_source(model)  # the texts are written about their prompts; else they go on with them
        self._kind = decoder_of(model)
        if compiled and self._kind not in (Decoder, RollingDecoder):
            raise InputError(
                f"compiled decoding is for models that attend to their prompt, not for {with_article(model)}"
            )
        self.compiled = compiled
        if self.about:
            self.prompts = [encode_source(tokenizer, prompt) for prompt in prompts]
        else:
            encoded = tokenizer.encode_batch(list(prompts))
            self.prompts = [self._fitted(tokens, number, truncate) for number, tokens in enumerate(encoded)]
        self.texts = [
            Text(
                number,
                sample,
                tokens,
                limit=most_new(model, len(tokens), max_new_tokens)
                if self.about
                else int(min(max_new_tokens, self.context - len(tokens) + 1)),
                stream=TextStream(tokenizer, stop, before=() if self.about else tokens[-1:]),
            )
            for number, tokens in enumerate(self.prompts)
            for sample in range(samples)
        ]

    def run(self) -> Iterator[tuple[Text, str]]:
        """Generate all texts; yield pieces of them as they become certain."""
        size = self._rows_at_once()
        with self._fast_products(size):
            for first in range(0, len(self.texts), size):
                yield from self._run_batch(self.texts[first : first + size])

    def results(self) -> list[Generation]:
        """Return the finished texts."""
        return [
            Generation(
                text=text.stream.text,
                tokens=text.new,
                finish_reason=self._reason(text),
                prompt=text.prompt,
                sample=text.sample,
                seed=self.seed,
                log_probabilities=text.log_probabilities if self.log_probabilities else None,
                score=text.score,
            )
            for text in self.texts
        ]

    def search(self, beams: int, length_penalty: float) -> None:
        """Find all texts by beam search."""
        if beams < self.samples:
            raise InputError(f"beams is {beams}, expected 1 or more, and at least samples ({self.samples})")
        if replace(self.sampling, temperature=1.0) != Sampling() or self.sampling.temperature not in (0.0, 1.0):
            raise InputError("beams search the likeliest text: temperature, filters and penalty do not apply")
        if self.stop:
            raise InputError("beams cannot be combined with stop strings")
        size = max(1, self._rows_at_once() // beams)
        with self._fast_products(size * beams):
            for first in range(0, len(self.prompts), size):
                self._search_batch(range(first, min(first + size, len(self.prompts))), beams, length_penalty)

    def _run_batch(self, texts: list[Text]) -> Iterator[tuple[Text, str]]:
        prompts, copies = _grouped(texts)
        steps = max(text.limit for text in texts)
        decoder = self._decoder(prompts, copies, steps)
        uniform = self._uniform(texts, steps)
        seen = self._seen(texts)
        logits = decoder.read_prompts()
        for step in range(steps):
            chosen, scores = self._choose(logits, uniform[:, step] if uniform is not None else None, seen)
            for text, token, score in zip(texts, chosen.tolist(), scores, strict=True):
                piece = text.accept(token, score, self.end)
                if piece:
                    yield text, piece
            order = _without_finished(texts)
            if not order:
                return
            if len(order) < len(texts):
                decoder.keep(order)
                texts, chosen = [texts[row] for row in order], chosen[order]
                uniform, seen = (None if rows is None else rows[order] for rows in (uniform, seen))
            logits = decoder.step(chosen)

    @torch.inference_mode()
    def _choose(
        self, logits: Tensor, uniform: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, Sequence[float | None]]:
        """Return the next tokens, int64 [rows], and their log-probabilities if these are asked for."""
        chosen = self.sampling.choose(logits, uniform, seen)
        if seen is not None:
            seen.scatter_(1, chosen.unsqueeze(1), True)
        if not self.log_probabilities:
            return chosen, [None] * len(chosen)
        return chosen, log_probabilities_of(chosen, logits).tolist()

    def _search_batch(self, numbers: range, beams: int, length_penalty: float) -> None:
        prompts = [self.prompts[number] for number in numbers]
        texts = [self.texts[number * self.samples : (number + 1) * self.samples] for number in numbers]
        limits = [group[0].limit for group in texts]
        decoder = self._decoder(prompts, [beams] * len(prompts), max(limits))
        found = beam_search(
            decoder,
            beams=beams,
            limits=limits,
            end=self.end,
            length_penalty=length_penalty,
            length_offset=getattr(self.model, "length_offset", 0),
        )
        for group, hypotheses in zip(texts, found, strict=True):
            for text, hypothesis in zip(group, hypotheses, strict=False):
                text.score = hypothesis.score
                for token, score in zip(hypothesis.tokens, hypothesis.log_probabilities, strict=True):
                    text.accept(token, score, self.end)

    def _decoder(self, prompts: list[list[int]], copies: list[int], new_tokens: int) -> Decoder:
        options = {"compiled": True} if self.compiled else {}
        return self._kind(self.model, prompts, copies=copies, new_tokens=new_tokens, **options)

    def _uniform(self, texts: list[Text], steps: int) -> Tensor | None:
        """The draws, float64 [rows, steps]."""
        if self.sampling.greedy:
            return None
        draws = [uniforms(self.seed, text.sample, text.tokens, steps) for text in texts]
        return torch.from_numpy(np.stack(draws)).to(self.model.output_weight.device)

    def _seen(self, texts: list[Text]) -> Tensor | None:
        """Which tokens each text contains, bool [rows, vocabulary], if a penalty needs it."""
        if self.sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(texts), self.model.config.vocabulary, dtype=torch.bool)
        for row, text in zip(seen, texts, strict=True):
            row[[self.model.config.start] if self.about else text.tokens] = True
        return seen.to(self.model.output_weight.device)

    def _rows_at_once(self) -> int:
        longest = max(len(tokens) for tokens in self.prompts) + self.max_new_tokens
        weight, layers = self.model.output_weight, self.model.config.layers
        row_bytes = 2 * layers * weight.shape[1] * longest * weight.itemsize
        return max(1, min(_MOST_ROWS, _CACHE_BYTES // row_bytes, len(self.texts)))

    def _fast_products(self, rows: int) -> AbstractContextManager[None]:
        pays = self.max_new_tokens >= PACK_FROM and not self.compiled
        return prepacked(self.model, rows) if pays else nullcontext()

    def _fitted(self, tokens: list[int], number: int, truncate: bool) -> list[int]:
        """Return a prompt's tokens as the model will read them."""
        context = self.context
        if not tokens:
            if self.end is None:
                raise InputError("the prompt is empty, and the tokenizer has no token that begins a text")
            return [self.end]
        if truncate and context < math.inf:
            return tokens[-int(max(context - self.max_new_tokens, context // 2, 1)) :]
        if len(tokens) > context:
            raise InputError(
                f"prompt {number + 1} has {len(tokens)} tokens, the model's context {context}: "
                "shorten it, or keep only its end (truncate)"
            )
        return tokens

    def _reason(self, text: Text) -> FinishReason:
        if text.stream.stopped:
            return "stop"
        if text.ended:
            return "end"
        return "length" if self.about or len(text.new) >= self.max_new_tokens else "context"


def _grouped(texts: list[Text]) -> tuple[list[list[int]], list[int]]:
    """Return the prompts of consecutive texts, each once, and how many texts each has."""
    groups = [list(group) for _, group in groupby(texts, key=lambda text: text.prompt)]
    return [group[0].tokens for group in groups], [len(group) for group in groups]


def _without_finished(texts: list[Text]) -> list[int]:
    """Return which rows to keep, in an order that fills the places of finished ones from the end."""
    kept = [row for row, text in enumerate(texts) if not text.finished]
    order = []
    for place in range(len(kept)):
        order.append(place if not texts[place].finished else kept.pop())
    return order


def _check(
    model: Any, tokenizer: "Tokenizer", max_new_tokens: int, stop: Sequence[str], seed: int | None, samples: int
) -> None:
    if model.training:
        raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
    if tokenizer.vocabulary > model.config.vocabulary:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary} ids, the model only {model.config.vocabulary}: not its tokenizer"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    if samples < 1:
        raise InputError(f"samples is {samples}, expected 1 or more")
    if seed is not None and seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more")
    if "" in stop:
        raise InputError("a stop string is empty")
