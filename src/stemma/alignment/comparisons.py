"""Comparisons of responses as files have them: pairs, and rankings of several responses to one prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from stemma.alignment.conversations import Prompt
from stemma.alignment.dialogues import checked_text, key_of, messages_of, prompt_of, read_parts
from stemma.alignment.recipe import ComparisonRecipe
from stemma.data.readers import missing_field
from stemma.data.tables import read_rows
from stemma.errors import InputError

Pair = tuple[int, int]
Ranking = tuple[Prompt, list[str], list[Pair]]


@dataclass(frozen=True)
class Comparison:
    """Responses to one prompt; of each of the `pairs` the response of the first number is better than the other."""

    prompt: Prompt
    responses: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a file, those of one prompt together.

    Args:
        ties: pairs that are left out because neither is better, or both are the same.
        apart: pairs that are left out because they are about different prompts.
    """

    prompts: list[Comparison]
    ties: int = 0
    apart: int = 0

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return sum(len(comparison.pairs) for comparison in self.prompts)


def ranked_pairs(ranks: Sequence[float]) -> list[Pair]:
    """Return (better, worse) of all pairs of different ranks; the lowest rank is the best."""
    pairs = combinations(range(len(ranks)), 2)
    return [(a, b) if ranks[a] < ranks[b] else (b, a) for a, b in pairs if ranks[a] != ranks[b]]


def read_comparisons(path: str, columns: ComparisonRecipe) -> Comparisons:
    """Read a file or data set whose rows are one of:

        {"prompt": ..., "chosen": text, "rejected": text}
        {"chosen": conversation, "rejected": conversation}      alike up to the assistant's last message
        {"prompt": ..., "responses": [text, ...], "ranks": [1, 2, 2, ...]}

    A prompt is a text or a list of messages; a conversation a list of messages or a transcript (see `messages_of`).

    Raises:
        InputError: a row that is none of these, or no row with a preference; names the place.
    """
    responses: dict[str, list[str]] = {}
    pairs: dict[str, list[Pair]] = {}
    prompts: dict[str, Prompt] = {}
    ties = apart = 0
    for row, origin in read_rows(Path(path)):
        ranking = _ranking(row, columns, origin) if columns.responses in row else _pair(row, columns, origin)
        if ranking is None:
            apart += 1
            continue
        prompt, texts, pairs_of_row = ranking
        key = key_of(prompt)
        prompts[key] = prompt
        known = responses.setdefault(key, [])
        known += [text for text in dict.fromkeys(texts) if text not in known]
        number = {text: known.index(text) for text in texts}
        different = [(number[texts[a]], number[texts[b]]) for a, b in pairs_of_row if texts[a] != texts[b]]
        ties += len(texts) * (len(texts) - 1) // 2 - len(different)
        pairs.setdefault(key, []).extend(different)
    found = [Comparison(prompts[key], tuple(responses[key]), tuple(pairs[key])) for key in prompts if pairs[key]]
    if not found:
        raise InputError(f"{path}: no row in which a response is better than another")
    return Comparisons(found, ties, apart)


def read_splits(data: ComparisonRecipe) -> tuple[Comparisons, list[Comparison]]:
    """Return the comparisons to learn from, and those that are held out.

    Raises:
        InputError: see `read_comparisons`; or nothing is left on one side.
    """
    files: list[Comparisons] = []

    def read(path: str) -> list[Comparison]:
        files.append(read_comparisons(path, data))
        return files[-1].prompts

    train, dev = read_parts(data.train, data.dev, read, lambda comparison: key_of(comparison.prompt))
    return replace(files[0], prompts=train), dev


def _pair(row: Mapping[str, Any], columns: ComparisonRecipe, origin: str) -> Ranking | None:
    """Return a row's pair; None: the two are about different prompts."""
    values = []
    for column in (columns.chosen, columns.rejected):
        if column not in row:
            raise missing_field(column, row, origin)
        values.append(row[column])
    if row.get(columns.prompt) is not None and not isinstance(values[0], list):
        texts = [checked_text(row[column], column, origin) for column in (columns.chosen, columns.rejected)]
        return prompt_of(row, columns.prompt, origin), texts, [(0, 1)]
    chosen, rejected = (messages_of(value, origin) for value in values)
    given = prompt_of(row, columns.prompt, origin) if isinstance(row.get(columns.prompt), list) else []
    prompts = [messages[:-1] for messages in (chosen, rejected)]
    last = [messages[-1] for messages in (chosen, rejected)]
    if prompts[0] != prompts[1]:
        return None
    if any(message["role"] != "assistant" for message in last):
        raise InputError(f"{origin}: the last message of a conversation is not the assistant's, expected one that is")
    prompt = [*given, *prompts[0]]
    if not prompt:
        raise InputError(f"{origin}: the assistant speaks first, expected a prompt")
    return prompt, [message["content"] for message in last], [(0, 1)]


def _ranking(row: Mapping[str, Any], columns: ComparisonRecipe, origin: str) -> Ranking:
    if columns.ranks not in row:
        raise missing_field(columns.ranks, row, origin)
    texts, ranks = row[columns.responses], row[columns.ranks]
    numbers = isinstance(ranks, list) and all(isinstance(rank, int | float) for rank in ranks)
    if not isinstance(texts, list) or not numbers or len(texts) != len(ranks) or len(texts) < 2:
        raise InputError(
            f"{origin}: expected two or more '{columns.responses}', and as many numbers as '{columns.ranks}'"
        )
    texts = [checked_text(text, columns.responses, origin) for text in texts]
    return prompt_of(row, columns.prompt, origin), texts, ranked_pairs(ranks)
