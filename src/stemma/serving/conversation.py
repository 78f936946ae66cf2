"""A conversation with a model in the same process, for the terminal."""

from collections.abc import Generator
from dataclasses import dataclass, field

from stemma.errors import InputError
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling
from stemma.serving.served import Served

# How a conversation is written for a model without a chat template: as a transcript that it goes on with.
_SPEAKERS = {"system": "", "user": "User: ", "assistant": "Assistant: "}


@dataclass
class Conversation:
    """What was said so far; `answer` adds a turn of each side.

    Args:
        system: what the model is told before all else. sampling, max_new_tokens, seed: of the answers.
    Raises:
        InputError: the model writes no text.
    """

    served: Served
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.served.engine is None:
            raise InputError(f"{self.served.name}: a {self.served.family} model writes no text")
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.messages: list[dict[str, str]] = (
            [] if self.system is None else [{"role": "system", "content": self.system}]
        )
        self.forgotten = 0

    def answer(self, text: str) -> Generator[str]:
        """Yield the answer to a text in pieces. Closed early, the conversation goes on from what was said.

        The oldest turns are dropped (and counted in `forgotten`) when less than a quarter of the context would be left.

        Raises:
            InputError: a text that is too long for the model, or that its template does not take.
        """
        engine = self.served.engine
        assert engine is not None
        self.messages.append({"role": "user", "content": text})
        try:
            tokens = self._fitted()
            stop = () if self.served.template else ("\n" + _SPEAKERS["user"].strip(),)
            number = engine.submit(Request(tokens, self.max_new_tokens, self.sampling, stop=stop, seed=self.seed))
        except InputError:
            self.messages.pop()
            raise
        said = ""
        try:
            while engine.busy:
                for update in engine.step():
                    said += update.text
                    if update.text:
                        yield update.text
        finally:
            engine.cancel(number)
            self.messages.append({"role": "assistant", "content": said.strip()})

    def _fitted(self) -> list[int]:
        """Return the conversation as tokens, without the oldest turns if it is too long."""
        most = self.served.longest * 3 // 4
        first = 0 if self.system is None else 1
        while len(tokens := self._encoded()) > most and len(self.messages) > first + 2:
            del self.messages[first : first + 2]
            self.forgotten += 1
        return tokens

    def _encoded(self) -> list[int]:
        served = self.served
        if served.template is not None:
            written = served.template.write(self.messages, served.tokenizer)
            return list(served.finder.encode(written, add_special_tokens=False).ids)
        lines = [_SPEAKERS[message["role"]] + message["content"] for message in self.messages]
        return [*served.prefix, *served.tokenizer.encode("\n".join([*lines, _SPEAKERS["assistant"].rstrip()]))]
