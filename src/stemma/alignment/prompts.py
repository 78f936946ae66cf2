"""The prompts that a policy answers, from a file or a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.alignment.conversations import Prompt, Renderer
from stemma.alignment.dialogues import key_of, prompt_of, read_parts
from stemma.data.content_hashes import digest
from stemma.data.tables import read_rows
from stemma.errors import InputError


@dataclass(frozen=True)
class PromptRow:
    """A prompt as it stands in a file, and what else stands beside it."""

    prompt: Prompt
    row: Mapping[str, Any]


@dataclass(frozen=True)
class PolicyPrompt(PromptRow):
    """A prompt as a policy reads it. tokens: ids."""

    tokens: list[int]


def read_prompts(source: str) -> list[PromptRow]:
    """Return the prompts of a file or data set whose rows have a `prompt`: a text, or a list of messages.

    Raises:
        InputError: it cannot be read, has no rows, or a row has no prompt; names the row.
    """
    found = []
    for row, origin in read_rows(Path(source)):
        prompt = prompt_of(row, "prompt", origin)
        if not prompt:
            raise InputError(f"{origin}: the prompt is empty")
        found.append(PromptRow(prompt, {name: value for name, value in row.items() if name != "prompt"}))
    if not found:
        raise InputError(f"{source}: no rows, expected at least one prompt")
    return found


def read_both(source: str, held_out: str | float) -> tuple[list[PromptRow], list[PromptRow]]:
    """Return the prompts to train on and those that are held out: another file, or a share by a hash of the prompt.

    Raises:
        InputError: see `read_prompts` and `read_parts`.
    """
    return read_parts(source, held_out, read_prompts, lambda row: key_of(row.prompt))


def rendered(rows: Sequence[PromptRow], renderer: Renderer) -> list[PolicyPrompt]:
    """Return prompts with the token ids that a policy reads.

    Raises:
        InputError: a chat template that does not take one of them.
    """
    return [PolicyPrompt(row.prompt, row.row, renderer.prompt(row.prompt)) for row in rows]


def fingerprint_of(prompts: Sequence[PromptRow]) -> str:
    """Return a hash of the prompts and of what stands beside them."""
    return digest([f"{key_of(prompt.prompt)}\0{dict(prompt.row)!r}" for prompt in prompts])
