"""Texts in which the names of special tokens are meant as such, and texts in which they never are."""

import json

import tokenizers

from stemma.data.tokenizers import Tokenizer

# Written into what users say where it spells a special token; dropped before the text is encoded. A code point that
# Unicode keeps free for a program's own use and out of exchanged text.
BREAK = "\U0010fffe"


def special_finder(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return a pipeline with the same ids that reads the names of special tokens as these tokens, but for `unspecial`.

    For texts that a program has put together: chat templates, and what comes to `/tokenize`.
    """
    content = json.loads(tokenizer.backend.to_str())
    for token in content["added_tokens"]:
        if token["special"]:
            token["normalized"] = False  # found before the breaks are dropped
    drop = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
    steps = [drop] if content["normalizer"] is None else [drop, content["normalizer"]]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def unspecial(text: str, tokenizer: Tokenizer) -> str:
    """Return a text that `special_finder` reads as plain text throughout, whatever a user has written in it."""
    text = text.replace(BREAK, "")
    for token in sorted(tokenizer.special):
        name = tokenizer.token(token)
        if name in text:
            text = text.replace(name, name[:1] + BREAK + name[1:] if len(name) > 1 else BREAK)
    return text
