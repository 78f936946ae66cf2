"""Calls of tools as Mistral's models write them, old and new."""

import json

import pytest

from stemma.serving.tool_calls import parse_tool_calls, writes_calls


def tokens_of(tokenizer, text):
    """Encode with [TOOL_CALLS] as the special token that it is."""
    first, mark, rest = text.partition("[TOOL_CALLS]")
    return [*tokenizer.encode(first), *([tokenizer.id("[TOOL_CALLS]")] if mark else []), *tokenizer.encode(rest)]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "", [("add", {"a": 1})]),
        ('[TOOL_CALLS][{"name": "a", "arguments": {}}, {"name": "b"}]', "", [("a", {}), ("b", {})]),
        ('the fox [TOOL_CALLS]add[ARGS]{"a": [1]}', "the fox", [("add", {"a": [1]})]),
        ('[TOOL_CALLS]add[CALL_ID]123[ARGS]{"a": 1}[TOOL_CALLS]sub[ARGS]{}', "", [("add", {"a": 1}), ("sub", {})]),
        ("the lazy dog", "the lazy dog", []),
        ("[TOOL_CALLS] [{", " [{", []),
        ('[TOOL_CALLS] {"arguments": 3}', ' {"arguments": 3}', []),
        ("[TOOL_CALLS]add", "add", []),
    ],
)
def test_calls(tokenizer, text, content, calls):
    tokens = [*tokens_of(tokenizer, text), tokenizer.separator]
    said, found = parse_tool_calls(tokens, tokenizer)
    assert said == content
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found] == calls
    assert len({call["id"] for call in found}) == len(calls)


def test_the_beginning_decides_whether_calls_may_come(tokenizer):
    assert writes_calls([], tokenizer) and writes_calls(tokens_of(tokenizer, "[TOOL_CALLS] [{"), tokenizer)
    assert writes_calls(tokenizer.encode(" [TOOL"), tokenizer) and not writes_calls(tokenizer.encode("fox"), tokenizer)
