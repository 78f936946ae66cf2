"""The prompts that a policy answers, from a file or a data set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.alignment.conversations import Prompt, Renderer, checked_messages
from stemma.data.content_hashes import digest
from stemma.data.readers import missing_field
from stemma.data.tables import read_rows
from stemma.errors import InputError


@dataclass(frozen=True)
class PromptRow:
    """A prompt as it stands in a file, and what else stands beside it."""

    prompt: Prompt
    row: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The prompt as one string, by which prompts are told apart."""
        return json.dumps(self.prompt)


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
        prompt = row.get("prompt")
        if prompt is None:
            raise missing_field("prompt", row, origin)
        if not isinstance(prompt, str):
            prompt = checked_messages(prompt, origin)
        elif not prompt:
            raise InputError(f"{origin}: the prompt is empty")
        found.append(PromptRow(prompt, {name: value for name, value in row.items() if name != "prompt"}))
    if not found:
        raise InputError(f"{source}: no rows, expected at least one prompt")
    return found


def rendered(rows: Sequence[PromptRow], renderer: Renderer) -> list[PolicyPrompt]:
    """Return prompts with the token ids that a policy reads.

    Raises:
        InputError: a chat template that does not take one of them.
    """
    return [PolicyPrompt(row.prompt, row.row, renderer.prompt(row.prompt)) for row in rows]


def hold_out(prompts: Sequence[PromptRow], share: float) -> tuple[list[PromptRow], list[PromptRow]]:
    """Return the prompts to train on and those that are held out, by a hash of the text; at least one of each.

    Raises:
        InputError: there is one prompt only, or the share leaves nothing of one kind.
    """
    held = [int(digest([prompt.key])[:8], 16) / 2**32 < share for prompt in prompts]
    kept = [prompt for prompt, out in zip(prompts, held, strict=True) if not out]
    out = [prompt for prompt, out in zip(prompts, held, strict=True) if out]
    if not kept or not out:
        raise InputError(
            f"prompts.held_out: a share of {share:g} of {len(prompts):,} prompts leaves {len(kept):,} to train on and "
            f"{len(out):,} to evaluate on; expected some of each"
        )
    return kept, out


def fingerprint_of(prompts: Sequence[PromptRow]) -> str:
    """Return a hash of the prompts and of what stands beside them."""
    return digest([f"{prompt.key}\0{dict(prompt.row)!r}" for prompt in prompts])
