"""Calls of tools as Mistral's models write them.

    [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, ...]      (tokenizers v2, v3)
    [TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]...                    (tokenizers from v11 on)

[TOOL_CALLS] and [ARGS] are special tokens; where a tokenizer does not know them they are plain text.
"""

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any

from stemma.data.tokenizers import Tokenizer

CALLS, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_ANY_OBJECT = {"type": "object"}


def parse_tool_calls(
    tokens: Sequence[int], tokenizer: Tokenizer, *, begun: bool = False
) -> tuple[str, list[dict[str, Any]]]:
    """Return what an answer says, and the calls that it makes, in OpenAI's form; what cannot be read stays text.

    Args:
        begun: the mark of the calls stands before the tokens already.
    """
    ended = [token for token in tokens if tokenizer.eos is None or token != tokenizer.eos]
    written = CALLS * begun + tokenizer.decode(ended, skip_special=False)
    content, mark, rest = written.partition(CALLS)
    calls = _listed(rest) if rest.lstrip().startswith(("[", "{")) else _named(rest)
    if not mark or not calls:
        return tokenizer.decode(tokens), []
    return content.strip(), [_call(name, arguments) for name, arguments in calls]


def writes_calls(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Return whether an answer may turn out to be calls of tools by its beginning."""
    begin = tokenizer.decode(tokens[:32], skip_special=False).lstrip()[: len(CALLS)]
    return CALLS.startswith(begin)


def calls_schema(tools: Sequence[Mapping[str, Any]], several: bool) -> dict[str, Any]:
    """Return the JSON schema of a list of calls of these tools, at least one."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": function.get("parameters", _ANY_OBJECT)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        for function in [tool["function"]]
    ]
    return {"type": "array", "minItems": 1, "items": {"anyOf": calls}} | ({} if several else {"maxItems": 1})


def _listed(text: str) -> list[tuple[str, Any]]:
    try:
        found, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return []
    entries = found if isinstance(found, list) else [found]
    if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries):
        return []
    return [(entry["name"], entry.get("arguments", {})) for entry in entries]


def _named(text: str) -> list[tuple[str, Any]]:
    calls = []
    for part in text.split(CALLS):
        name, mark, arguments = part.partition(ARGUMENTS)
        name = re.sub(r"\[CALL_ID\].*", "", name.strip())
        try:
            calls.append((name, json.loads(arguments)))
        except (ValueError, RecursionError):
            return []
        if not mark or not name:
            return []
    return calls


def _call(name: str, arguments: Any) -> dict[str, Any]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    # Mistral's templates take identities of nine letters and digits only.
    identity = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": written}}
