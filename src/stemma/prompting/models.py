"""Models that are asked: one from here, or one behind an OpenAI-compatible endpoint."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.evaluation.left_to_right import likelihood_of
from stemma.families.dispatch import with_article
from stemma.families.gpt.model import GPT
from stemma.families.mistral.model import Mistral
from stemma.families.weight_hash import hash_of_weights
from stemma.inference.endpoint import ask_endpoint
from stemma.inference.engine import Engine
from stemma.inference.requests import Request, RunningText
from stemma.inference.sampling import Sampling
from stemma.inference.scoring import encode_pairs, score_continuations
from stemma.inference.text_stream import beginning_of_text

_AT_ONCE = 8  # requests


@dataclass(frozen=True)
class Score:
    """A continuation after its context.

    Args:
        log_probability: of all its tokens, natural. is_greedy: each is the likeliest; None: nobody knows.
        merged: see `scoring.EncodedPair`. read: tokens of both.
    """

    log_probability: float
    tokens: int
    is_greedy: bool | None
    merged: bool
    read: int


@dataclass(frozen=True)
class Writing:
    """How texts are written: at most so many tokens, up to one of `stop`; `samples` of each prompt."""

    most: int = 256
    stop: Sequence[str] = ()
    sampling: Sampling = Sampling(0.0)
    samples: int = 1
    seed: int = 1


@dataclass(frozen=True)
class Written:
    """A text that a model wrote.

    Args:
        tokens: how many it wrote. read: those of the prompt. log_probability: of all, by the model's own distribution.
        cut: it was ended by the limit of its length.
    """

    text: str
    tokens: int
    read: int
    log_probability: float
    cut: bool


class Asked(Protocol):
    """A model that is asked.

    Attributes:
        fingerprint: the same for the same model.
    """

    fingerprint: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Score continuations after contexts."""
        ...

    def write(self, prompts: Sequence[str], how: Writing) -> list[list[Written]]:
        """Go on with prompts; return the samples of each."""
        ...

    def fits(self, text: str, more: int) -> bool:
        """Return whether a text is read whole with so many tokens behind it, as far as is known."""
        ...


class LocalModel:
    """A model of `stemma.load` with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._context: int | None = getattr(model.config, "context", None)
        self.fingerprint = f"{type(model).__name__} {hash_of_weights(model)[:16]} {tokenizer.fingerprint[:16]}"
        self._engine: Engine | None = None

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Asked`; by a GPT or Mistral what texts have in common is read once, by others each text as a whole."""
        encoded = encode_pairs(self.tokenizer, pairs)
        rows: list[tuple[Sequence[float], bool | None]]
        if isinstance(self.model, GPT | Mistral):
            found = score_continuations(self.model, [(pair.context, pair.continuation) for pair in encoded])
            rows = [(one.log_probabilities, one.is_greedy) for one in found]
        else:
            way = likelihood_of(self.model, self.tokenizer)
            if not way.exact:
                raise InputError(f"{with_article(self.model)} gives no probability of a text: {way.note}")
            texts = way.log_probabilities([[*pair.context, *pair.continuation] for pair in encoded])
            rows = [(row[-len(pair.continuation) :].tolist(), None) for row, pair in zip(texts, encoded, strict=True)]
        return [
            Score(float(sum(row)), len(row), greedy, pair.merged, len(pair.context) + len(row))
            for (row, greedy), pair in zip(rows, encoded, strict=True)
        ]

    def write(self, prompts: Sequence[str], how: Writing) -> list[list[Written]]:
        """See `Asked`; of a prompt that does not fit with what may be written, the end is read.

        Raises:
            InputError: the model writes no text.
        """
        if self._engine is None:
            self._engine = Engine(self.model, self.tokenizer)
        engine = self._engine
        encoded = [self._fitting(tokens, how.most) for tokens in self.tokenizer.encode_batch(list(prompts))]
        texts = engine.run(
            Request(
                tokens, how.most, how.sampling, stop=how.stop, samples=how.samples, seed=how.seed, log_probabilities=0
            )
            for tokens in encoded
        )
        return [[_written(text) for text in group] for group in texts]

    def fits(self, text: str, more: int) -> bool:
        """See `Asked`."""
        return self._context is None or len(self.tokenizer.encode(text)) + more <= self._context

    def _fitting(self, tokens: list[int], most: int) -> list[int]:
        kept = tokens if self._context is None else tokens[-max(self._context - most, self._context // 2) :]
        return kept or [beginning_of_text(self.tokenizer)]


def _written(text: RunningText) -> Written:
    read, cut = len(text.request.tokens), text.finish_reason in ("length", "context")
    return Written(text.text, len(text.new), read, sum(text.log_probabilities), cut)


class Endpoint:
    """A model behind an OpenAI-compatible endpoint of completions.

    Args:
        url: up to "/v1". name: of the model there.
    """

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.fingerprint = f"{name} at {url}"

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Asked`; the texts are sent as text, and its tokens divided where they begin in it.

        Raises:
            InputError: a context is empty, or the endpoint does not echo prompts with their log-probabilities.
        """
        distinct = list(dict.fromkeys(pairs))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = dict(zip(distinct, pool.map(lambda pair: self._score(*pair), distinct), strict=True))
        return [found[pair] for pair in pairs]

    def _score(self, context: str, continuation: str) -> Score:
        begin, text = len(context.rstrip()), context + continuation
        if not begin:
            raise InputError(f"{self.url}: no endpoint says how likely the first token of a text is; empty context")
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        (choice,) = self._choices(body)
        try:
            scores, offsets = choice["logprobs"]["token_logprobs"], choice["logprobs"]["text_offset"]
            likeliest = choice["logprobs"]["top_logprobs"]
            if not choice["text"].startswith(text):
                raise LookupError
            places = [place for place, offset in enumerate(offsets) if begin <= offset < len(text)]
            own = [float(scores[place]) for place in places]
            greedy = all(max(likeliest[place].values()) == scores[place] for place in places)
            merged = not places or offsets[places[0]] != begin
            read = sum(offset < len(text) for offset in offsets)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{self.url}: the endpoint does not score prompts; expected /completions with echo and logprobs"
            ) from error
        return Score(sum(own), len(own), greedy, merged, read)

    def write(self, prompts: Sequence[str], how: Writing) -> list[list[Written]]:
        """See `Asked`."""
        body: dict[str, Any] = {"max_tokens": how.most, "temperature": how.sampling.temperature, "seed": how.seed}
        body |= {"n": how.samples, "logprobs": 0}
        body |= {"stop": list(how.stop)} if how.stop else {}
        body |= {} if how.sampling.top_p is None else {"top_p": how.sampling.top_p}
        body |= {} if how.sampling.top_k is None else {"top_k": how.sampling.top_k}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda prompt: self._write({"prompt": prompt, **body}), prompts))

    def _write(self, body: dict[str, Any]) -> list[Written]:
        answer = self._ask(body)
        found = []
        try:
            read = int((answer.get("usage") or {}).get("prompt_tokens", 0))
            for choice in answer["choices"]:
                scores = [score or 0.0 for score in ((choice.get("logprobs") or {}).get("token_logprobs") or [])]
                cut = choice.get("finish_reason") == "length"
                found.append(Written(str(choice["text"]), len(scores), read, sum(scores), cut))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{self.url}: an answer without texts ({error}), expected OpenAI's completions") from error
        return found

    def fits(self, text: str, more: int) -> bool:
        """See `Asked`: the endpoint refuses what is too long."""
        return True

    def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self._ask(body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{self.url}: an answer without choices, expected OpenAI's completions")
        return choices

    def _ask(self, body: dict[str, Any]) -> Any:
        return ask_endpoint(self.url, "completions", {"model": self.name, **body})
