"""A teacher behind an OpenAI-compatible endpoint: what it thinks of each token of a text, of the likeliest ones.

It is asked for completions of no tokens that echo their prompt with log-probabilities, and to name tokens by their ids
(`return_tokens_as_token_ids`, as vLLM and `stemma serve` do), because two tokens may read alike.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stemma.data.tokenizers import Tokenizer
from stemma.distillation.material import Item
from stemma.distillation.records import record_of_likeliest
from stemma.errors import InputError
from stemma.inference.endpoint import EndpointError, ask_endpoint
from stemma.training.objective import Display

_TEXTS, _AT_ONCE = 8, 4  # of a request; requests
_ATTEMPTS = 5
_TOKENS = 256  # that a request asks the text of
_ENOUGH = 0.9
_NAMED = "token_id:"


def is_served(name: str) -> bool:
    """Return whether a teacher's name is the address of an endpoint."""
    return name.startswith(("http://", "https://"))


class ServedTeacher:
    """A model at an endpoint.

    Args:
        address: of the server, with or without "/v1"; "#NAME" behind it, where several models are served.
        tokenizer: of the student. kept: how many of the likeliest tokens are asked for.
    """

    def __init__(self, address: str, tokenizer: Tokenizer, kept: int) -> None:
        root, _, self.name = address.partition("#")
        self.root = root.rstrip("/").removesuffix("/v1")
        self.url, self.tokenizer = f"{self.root}/v1", tokenizer
        self.kept = min(kept, tokenizer.vocabulary)
        self.covered, self.tokens = 0.0, 0
        self._connected = False

    def connect(self, shown: Display) -> None:
        """Find out the model's name, and whether its tokens are the student's; once.

        Raises:
            InputError: no such endpoint, several models, or another tokenizer.
        """
        if self._connected:
            return
        try:
            served = [str(one["id"]) for one in self._ask(self.url, "models", None)["data"]]
        except (LookupError, TypeError) as error:
            raise InputError(f"{self.url}/models: no list of models, expected an OpenAI-compatible endpoint") from error
        if not self.name and len(served) > 1:
            raise InputError(f"{self.root} serves {', '.join(served)}; expected --teacher {self.root}#NAME")
        self.name = self.name or served[0]
        if self.name not in served:
            raise InputError(f"{self.root} serves {', '.join(served)}, and not {self.name}")
        self._compare(shown)
        self._connected = True

    def think(self, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """Return the records of what it thinks of items' tokens behind their prompts (see `records.record_of`).

        Raises:
            InputError: the endpoint does not answer, or gives no log-probabilities of prompts by the ids of tokens.
        """
        found = self.log_probabilities(items)
        for _, likeliest in found:
            self.covered += float(likeliest.exp().sum())
            self.tokens += len(likeliest)
        return [record_of_likeliest(ids, likeliest) for ids, likeliest in found]

    def warn(self, shown: Display) -> None:
        """Say so if the likeliest tokens are too few to say much."""
        if self.tokens and (share := self.covered / self.tokens) < _ENOUGH:
            shown.say(
                f"teachers   the {self.kept} likeliest tokens have {100 * share:.0f} % of the probability; with less "
                f"than {100 * _ENOUGH:.0f} % much of what {self.name} knows is not told"
            )

    def log_probabilities(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        """Return for each item the ids of the likeliest tokens, int64 [tokens, kept], and their log-probabilities,
        float32 [tokens, kept]; raises as `think`."""
        parts = [items[start : start + _TEXTS] for start in range(0, len(items), _TEXTS)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [found for part in pool.map(self._read, parts) for found in part]

    def _read(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        prompts = [item["tokens"].tolist() for item in items]
        options = {"max_tokens": 0, "echo": True, "logprobs": self.kept, "temperature": 1.0}
        body = {"model": self.name, "prompt": prompts, **options, "return_tokens_as_token_ids": True}
        choices = self._ask(self.url, "completions", body)
        try:
            ordered = sorted(choices["choices"], key=lambda choice: choice["index"])
            told = [choice["logprobs"]["top_logprobs"] for choice in ordered]
            if [len(one) for one in told] != [len(prompt) for prompt in prompts]:
                raise LookupError
            return [self._likeliest(one[item["prompt"] :]) for one, item in zip(told, items, strict=True)]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.url}: expected the {self.kept} likeliest tokens at each place of a prompt, by their ids "
                "(echo, logprobs, return_tokens_as_token_ids), and the answer has not got them"
            ) from error

    def _likeliest(self, places: Sequence[dict[str, float]]) -> tuple[Tensor, Tensor]:
        ids = torch.empty(len(places), self.kept, dtype=torch.int64)
        values = torch.empty(len(places), self.kept)
        for row, place in enumerate(places):
            # The prompt's own token is told, too, be it among the likeliest or not.
            best = sorted(((v, n) for n, v in place.items() if v is not None), reverse=True)[: self.kept]
            ids[row] = torch.tensor([int(name.removeprefix(_NAMED)) for _, name in best])
            values[row] = torch.tensor([value for value, _ in best])
        if len(places) and int(ids.max()) >= self.tokenizer.vocabulary:
            raise InputError(f"{self.url}: {self.name} names the token {int(ids.max())}, which the student has not")
        return ids, values

    def _compare(self, shown: Display) -> None:
        """Compare what the ids read as, all of them, some at a time."""
        size = self.tokenizer.vocabulary
        stretches = [list(range(start, min(start + _TOKENS, size))) for start in range(0, size, _TOKENS)]

        def different(ids: list[int]) -> bool:
            answer = self._ask(self.root, "detokenize", {"model": self.name, "tokens": ids})
            return not isinstance(answer, dict) or answer.get("prompt") != self.tokenizer.decode(ids, False)

        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                wrong = [ids for ids, found in zip(stretches, pool.map(different, stretches), strict=True) if found]
            token = next((one for one in wrong[0] if different([one])), wrong[0][0]) if wrong else None
        except EndpointError as error:
            if error.status not in (404, 405, 501):
                raise
            shown.say(f"teachers   {self.root} does not say how it tokenises: {self.name} is taken at its word that it")
            shown.say("           has the student's tokens")
            return
        if token is not None:
            raise InputError(
                f"objective.teachers: {self.name} at {self.root} reads token {token} otherwise than the student "
                f"({self.tokenizer.token(token)!r}); expected the student's vocabulary"
            )

    def _ask(self, url: str, path: str, body: dict[str, Any] | None) -> Any:
        return ask_endpoint(url, path, body, who="teacher", attempts=_ATTEMPTS)
