"""Scoring responses with a reward model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.alignment.conversations import Prompt, Renderer
from stemma.alignment.dialogues import checked_text, messages_of, prompt_of, text_of
from stemma.alignment.reading import Sample
from stemma.alignment.reward_model import RewardModel, load_reward_model
from stemma.data.tables import read_rows
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.inference.chat_template import ChatTemplate


@dataclass(frozen=True)
class Responses:
    """A row to score: responses to a prompt, and the row as it was read."""

    prompt: Prompt
    responses: Sequence[str]
    row: Mapping[str, Any]


class Scorer:
    """A reward model with what it needs to read prompts and responses.

    Args:
        path_or_hub_id: what `stemma align reward` wrote, or a sequence classifier of transformers with one label.
    Raises:
        InputError: no such directory, or no reward model in it.
    """

    def __init__(self, path_or_hub_id: str | Path, *, device: Any = None) -> None:
        self.model: RewardModel
        self.tokenizer: Tokenizer
        self.model, self.tokenizer = load_reward_model(path_or_hub_id, device=device)
        template = ChatTemplate.read(resolve(path_or_hub_id))
        self.renderer = Renderer(self.model.trunk, self.tokenizer, self.model.reading.end, template)

    def score(self, rows: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Return the reward of each response to its prompt; the larger, the better.

        Raises:
            InputError: a response that is too long for the model.
        """
        samples: list[Sample] = []
        for prompt, response in rows:
            sample = self.renderer.sample(prompt, response)
            if len(sample) > self.model.reading.longest:
                raise InputError(
                    f"response {len(samples) + 1} has {len(sample):,} tokens with its prompt, and the model reads "
                    f"{self.model.reading.longest:,}"
                )
            samples.append(sample)
        return self.model.score(samples).tolist()


def read_responses(path: str, *, prompt: str, response: str, responses: str, messages: str) -> Iterator[Responses]:
    """Yield the rows of a file: with one response or several to a prompt, or a conversation that the assistant ends.

    Args:
        prompt, response, responses, messages: columns.
    Raises:
        InputError: a row that is none of these; names the place.
    """
    for row, origin in read_rows(Path(path)):
        if row.get(messages) is not None:
            said = messages_of(row[messages], origin)
            if said[-1]["role"] != "assistant" or len(said) < 2:
                raise InputError(f"{origin}: the last message is not an answer of the assistant, expected one that is")
            yield Responses(said[:-1], [said[-1]["content"]], row)
        elif row.get(responses) is not None:
            if not isinstance(row[responses], list):
                raise InputError(f"{origin}: field '{responses}' is no list; expected one of texts")
            texts = [checked_text(text, responses, origin) for text in row[responses]]
            yield Responses(prompt_of(row, prompt, origin), texts, row)
        else:
            yield Responses(prompt_of(row, prompt, origin), [text_of(row, response, origin)], row)


def scored(scorer: Scorer, rows: Sequence[Responses]) -> list[list[float]]:
    """Return the rewards of each row's responses.

    Raises:
        InputError: see `Scorer.score`.
    """
    flat = iter(scorer.score([(row.prompt, text) for row in rows for text in row.responses]))
    return [[next(flat) for _ in row.responses] for row in rows]
