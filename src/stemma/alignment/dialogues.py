"""Demonstrations as files have them: a prompt with its response, or whole conversations."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from stemma.alignment.conversations import Message, Prompt, checked_messages
from stemma.alignment.recipe import DialogueRecipe
from stemma.data.content_hashes import digest
from stemma.data.dataset_rows import is_dataset, needs_split
from stemma.data.labelled import LabelledData, split_by_hash
from stemma.data.readers import check_unicode, missing_field
from stemma.data.tables import read_rows
from stemma.errors import InputError

_TURN = re.compile(r"\n\n(Human|Assistant):")  # of Anthropic's transcripts
_ROLES = {"Human": "user", "Assistant": "assistant"}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Dialogue:
    """A response that is learned behind its prompt; or, of `messages`, everything that the assistant says."""

    prompt: Prompt = ""
    response: str = ""
    messages: Sequence[Message] | None = None


def read_dialogues(path: str, columns: DialogueRecipe) -> list[Dialogue]:
    """Read a file or data set: a row has either the column with messages or those of prompt and response.

    Messages are a list of {"role", "content"}, or a transcript as Anthropic's data sets have them ("\\n\\nHuman: ...").

    Raises:
        InputError: a row that is neither, or no rows; names the place.
    """
    dialogues = []
    for row, origin in read_rows(Path(path)):
        if row.get(columns.messages) is not None:
            messages = messages_of(row[columns.messages], origin)
            if all(message["role"] != "assistant" for message in messages):
                raise InputError(f"{origin}: the assistant says nothing in these messages")
            dialogues.append(Dialogue(messages=messages))
        else:
            prompt = prompt_of(row, columns.prompt, origin)
            dialogues.append(Dialogue(prompt, text_of(row, columns.response, origin)))
    if not dialogues:
        raise InputError(f"{path}: no rows; expected at least one demonstration")
    return dialogues


def read_parts(
    path: str, dev: str | float, read: Callable[[str], list[Item]], key: Callable[[Item], str]
) -> tuple[list[Item], list[Item]]:
    """Return what `read(path)` gives to train on and to measure on.

    Args:
        dev: another path; or the share of the first that is held out, by a hash of `key(item)`.
    Raises:
        InputError: data that cannot be read or divided.
    """
    train = read(path)
    if isinstance(dev, str):
        if is_dataset(dev) and needs_split(dev):
            raise InputError(f"{dev}: which of its splits? Expected one behind it, such as {dev}:validation")
        return train, read(dev)
    numbers: list[Any] = list(range(len(train)))
    rest, held_out = split_by_hash(LabelledData([(key(item),) for item in train], numbers, ()), dev, seed=0)
    return [train[int(number)] for number in rest.labels], [train[int(number)] for number in held_out.labels]


def key_of(prompt: Prompt) -> str:
    """Return a prompt as one string, by which prompts are told apart."""
    return json.dumps(prompt)


def fingerprint_of(rows: Sequence[Any]) -> str:
    """Return a hash of dialogues, comparisons or other data classes of what JSON can hold."""
    return digest([json.dumps([asdict(row) for row in rows])])


def prompt_of(row: Mapping[str, Any], column: str, origin: str) -> Prompt:
    """Return a row's prompt: a text, or messages.

    Raises:
        InputError: it has none.
    """
    return checked_messages(row[column], origin) if isinstance(row.get(column), list) else text_of(row, column, origin)


def text_of(row: Mapping[str, Any], column: str, origin: str) -> str:
    """Return a row's text in a column, which may be empty.

    Raises:
        InputError: no such column, or no text in it.
    """
    if column not in row:
        raise missing_field(column, row, origin)
    return checked_text(row[column], column, origin)


def checked_text(value: Any, column: str, origin: str) -> str:
    """Return a value that is a text.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, str):
        raise InputError(f"{origin}: field '{column}' is {str(value)[:40]!r}; expected a text in every row")
    check_unicode(value, origin)
    return value


def messages_of(value: Any, origin: str) -> list[Message]:
    """Return a conversation: a list of messages, or a transcript.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, str):
        return checked_messages(value, origin)
    check_unicode(value, origin)
    begin, *parts = _TURN.split(value)
    if begin.strip() or not parts:
        raise InputError(
            f"{origin}: {value[:40]!r} is neither messages nor a transcript, expected one that begins with "
            "'\\n\\nHuman:'"
        )
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[name], "content": text.strip()} for name, text in turns]
