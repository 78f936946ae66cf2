"""The texts of a request as they grow, and what is said about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stemma.inference.requests import FinishReason, Request, Scored, Update
from stemma.serving.engine_thread import Ticket

REASONS: dict[FinishReason, str] = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
}
LEAST = -9999.0  # stands for minus infinity, which JSON does not know


@dataclass
class Text:
    """One text: its tokens and what is known of it so far."""

    pieces: list[str] = field(default_factory=list)
    tokens: list[Scored] = field(default_factory=list)
    prompt: Sequence[Scored] = ()
    reused: int = 0
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.pieces)

    @property
    def mean_log_probability(self) -> float:
        """Of its tokens."""
        return sum(token.log_probability or 0.0 for token in self.tokens) / max(len(self.tokens), 1)

    def add(self, update: Update) -> None:
        """Take news."""
        if update.text:
            self.pieces.append(update.text)
        if update.token is not None:
            self.tokens.append(update.token)
        self.prompt = update.prompt or self.prompt
        self.reused += update.reused
        if update.finish_reason:
            self.finish_reason = REASONS[update.finish_reason]


async def collect(ticket: Ticket) -> list[list[Text]]:
    """Return the texts of each request when all have ended.

    Raises:
        APIError: they are not served.
    """
    await ticket.accepted
    texts = [[Text() for _ in range(request.samples)] for request in ticket.requests]
    async for number, update in ticket.updates():
        texts[number][update.sample].add(update)
    return texts


def usage(requests: Sequence[Request], generated: int, reused: int) -> dict[str, object]:
    """Return the counts of tokens as OpenAI writes them."""
    read = sum(len(request.tokens) for request in requests)
    return {
        "prompt_tokens": read,
        "completion_tokens": generated,
        "total_tokens": read + generated,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def finite(value: float | None) -> float | None:
    """Return a log-probability as JSON can hold it."""
    return value if value is None else max(value, LEAST)
