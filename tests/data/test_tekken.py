"""Tekken files against the algorithm of their own reader: of all neighbours, join those that were learned first."""

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError

TEXT = "the lazy dog and the quick fox: naïve 你好 🙂, the dogs' foxes laze; quickly\n\n  then 1234! "
PATTERN = r" ?[^\s]+|\s+"
SPECIAL = 20


def learned(text: str, merges: int) -> list[bytes]:
    """The 256 bytes and `merges` tokens, by plain byte pair encoding."""
    tokens = [bytes([byte]) for byte in range(256)]
    words = [[bytes([byte]) for byte in word.encode()] for word in re.findall(PATTERN, text)]
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        tokens.append(b"".join(best))
        words = [joined(word, best) for word in words]
    return tokens


def joined(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def reference_encode(text: str, tokens: list[bytes]) -> list[int]:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ids = []
    for word in re.findall(PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            joins = [
                (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
            ]
            if word.encode() in ranks:
                parts = [word.encode()]
                break
            if not joins:
                break
            _, i = min(joins)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [SPECIAL + ranks[part] for part in parts]
    return ids


def content(tokens: list[bytes], **changes: Any) -> dict[str, Any]:
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(tokens)]
    config = {
        "pattern": PATTERN, "num_vocab_tokens": len(vocab), "default_vocab_size": SPECIAL + 300,
        "default_num_special_tokens": SPECIAL, "version": "v3", **changes,
    }  # fmt: skip
    return {"config": config, "vocab": vocab}


@pytest.fixture(scope="module")
def tokens() -> list[bytes]:
    return learned(
        TEXT + "every branch of the family tree of language models runs, and each is short enough to read", 60
    )


def test_ids_are_those_of_the_files_own_reader(tokens: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(content(tokens)))
    tokenizer = load_tokenizer(tmp_path)
    kept = tokens[:300]  # config.default_vocab_size cuts the list
    assert tokenizer.vocabulary == SPECIAL + 300
    for text in (TEXT, "then the the  fox🙂 dogdogs\n", "", " ", "</s><s>", "theQuick naïve"):
        ids = tokenizer.encode(text)
        assert ids == reference_encode(text, kept), text
        assert tokenizer.decode(ids) == text
    assert max(len(kept[i - SPECIAL]) for i in tokenizer.encode(TEXT)) > 3
    assert (tokenizer.id("<unk>"), tokenizer.id("<s>"), tokenizer.separator) == (0, 1, 2)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode(TEXT) == tokenizer.encode(TEXT) and again.separator == 2


def test_special_tokens_that_the_file_names(tokens: list[bytes], tmp_path: Path) -> None:
    named = [{"rank": 0, "token_str": "<unk>"}, {"rank": 1, "token_str": "<s>"}, {"rank": 2, "token_str": "</s>"}]
    named.append({"rank": 5, "token_str": "[THINK]"})
    (tmp_path / "tekken.json").write_text(json.dumps({**content(tokens), "special_tokens": named}))
    tokenizer = load_tokenizer(tmp_path / "tekken.json")
    assert tokenizer.id("[THINK]") == 5 and tokenizer.id("<SPECIAL_4>") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("vocab"), 'no "config" and "vocab"'),
        (lambda file: file["config"].pop("pattern"), "config.pattern is None, expected str"),
        (lambda file: file["vocab"][7].update(token_bytes="?"), r"vocab\[7\] has no base64"),
        (lambda file: file["vocab"][7].update(rank=9), r"vocab\[7\] has the rank 9, expected 7"),
        (lambda file: file["vocab"][7].update(token_bytes="AA=="), "listed twice"),
        (lambda file: file.update(special_tokens=[{"rank": 0}]), "special_tokens lack 'token_str'"),
    ],
)
def test_what_is_no_tekken_file(change: Any, message: str, tokens: list[bytes], tmp_path: Path) -> None:
    file = content(tokens)
    change(file)
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
