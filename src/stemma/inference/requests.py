"""What is asked of an engine, what it answers piece by piece, and the texts in between."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from stemma.inference.blocks import Content
from stemma.inference.paged_cache import Pages
from stemma.inference.sampling import Sampling, uniforms
from stemma.inference.sampling_rows import Preferences, Row
from stemma.inference.text_stream import TextStream

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer
    from stemma.inference.readers import Reader

FinishReason = Literal["end", "stop", "length", "context"]


class Constraint(Protocol):
    """What a text must look like (see `inference.constraints`); one object is for one text."""

    def allowed(self) -> np.ndarray:
        """Return bool [vocabulary]: the tokens that may come next, the end of the text among them where it may end."""
        ...

    def accept(self, token: int) -> None:
        """Take the token that came."""
        ...

    def fork(self) -> "Constraint":
        """Return an independent one in the same state."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt to go on with.

    Args:
        tokens: of the prompt, at least one. max_new_tokens: 0: the prompt is only scored.
        sampling, preferences: how tokens are chosen. stop: strings that end a text. samples: texts that are wanted.
        seed: with the number of the sample and the prompt it decides every draw.
        log_probabilities: so many likeliest tokens are reported with each token; None: no log-probabilities.
        prompt_log_probabilities: also of the prompt's tokens.
        ignore_end: go on after the token that ends a text. constraint: what the texts must look like.
    """

    tokens: Sequence[int]
    max_new_tokens: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    preferences: Preferences = field(default_factory=Preferences)
    stop: Sequence[str] = ()
    samples: int = 1
    seed: int = 0
    log_probabilities: int | None = None
    prompt_log_probabilities: bool = False
    ignore_end: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Scored:
    """A token with its natural log-probability by the model's own distribution, and the likeliest in its place."""

    token: int
    log_probability: float | None
    likeliest: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Update:
    """News of one text: a token (None: none), text that is now certain, and why it ended, if it did.

    Args:
        request, sample: which text. prompt: the scored prompt, once, if it was asked for; its first token has none.
        reused: tokens of the prompt that were not computed anew.
    """

    request: int
    sample: int
    token: Scored | None
    text: str
    finish_reason: FinishReason | None = None
    prompt: Sequence[Scored] | None = None
    reused: int = 0


class RunningText:
    """One text in the making."""

    def __init__(self, number: int, request: Request, sample: int, reader: "Reader", tokenizer: "Tokenizer") -> None:
        self.number, self.request, self.sample = number, request, sample
        self.tokens, self.whole = reader.begin(request.tokens)
        self.prompt_length = len(self.tokens)
        self.limit = min(request.max_new_tokens, reader.most_new(self.prompt_length))
        goes_on = reader.scores_prompts  # else the text stands for itself
        self.stream = TextStream(tokenizer, request.stop, before=self.tokens[-1:] if goes_on else ())
        self.constraint = request.constraint.fork() if request.constraint else None
        self.generated: Counter[int] = Counter()
        self.text = ""  # that was generated, as far as it is certain
        self.scores: list[Scored] = []  # of the tokens that were generated
        self.prompt_scores: list[Scored] = []
        self.pages: Pages | None = None
        self.chain: list[Content] = []  # of its full blocks, as far as somebody looked for them
        self.reused = 0
        self.served = 0  # the engine's count of turns when it last read something of it
        self.siblings: list[RunningText] = []  # they begin where this one has read the prompt
        self.finish_reason: FinishReason | None = None
        self._prompt_counts: Counter[int] | None = None
        greedy = request.sampling.greedy
        draws_by = () if greedy else reader.draws_by(request.tokens)
        self._uniforms = None if greedy else uniforms(request.seed, sample, draws_by, max(self.limit, 1))

    @property
    def new(self) -> list[int]:
        """Tokens that were generated."""
        return self.tokens[self.prompt_length :]

    @property
    def log_probabilities(self) -> list[float]:
        """Of the tokens that were generated, natural, by the model alone; 0 where they were not asked for."""
        return [score.log_probability or 0.0 for score in self.scores]

    @property
    def unread(self) -> int:
        """Tokens that the model has not read yet."""
        return len(self.tokens) - (self.pages.length if self.pages else 0)

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.limit - (len(self.tokens) - self.prompt_length)

    @property
    def is_plain(self) -> bool:
        """Whether the choice of a token depends on the logits and a draw only, not on what was chosen before."""
        request = self.request
        return self.constraint is None and request.preferences.none and request.sampling.repetition_penalty == 1

    def row(self, offset: int = 0) -> Row:
        """Return what the choice of the next token depends on, or of the one `offset` tokens later (see `is_plain`)."""
        request = self.request
        if self._prompt_counts is None:
            penalty = request.sampling.repetition_penalty != 1
            self._prompt_counts = Counter(self.tokens[: self.prompt_length] if penalty else ())
        uniform = (
            0.0 if self._uniforms is None else float(self._uniforms[len(self.tokens) - self.prompt_length + offset])
        )
        allowed = self.constraint.allowed() if self.constraint else None
        return Row(request.sampling, request.preferences, uniform, self._prompt_counts, self.generated, allowed)

    def accept(self, token: Scored, ends: bool) -> str:
        """Take the next token; return the text that is now certain."""
        self.tokens.append(token.token)
        self.scores.append(token)
        self.generated[token.token] += 1
        if self.constraint and not ends:
            self.constraint.accept(token.token)
        piece = "" if ends else self.stream.push(token.token)
        if ends:
            self.finish_reason = "end"
        elif self.stream.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) - self.prompt_length >= self.limit:
            self.finish_reason = "length" if self.limit == self.request.max_new_tokens else "context"
        if self.finish_reason:
            piece += self.stream.finish()
            if self.stream.stopped:  # what was held back may complete a stop string
                self.finish_reason = "stop"
        self.text += piece
        return piece
