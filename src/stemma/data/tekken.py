"""Mistral's Tekken tokenizers (`tekken.json`), read to a byte-level BPE pipeline of `tokenizers`.

The file lists the tokens' bytes in the order in which they were learned. Its own reader (tiktoken's) joins, of all
neighbours that together are a token, those that were learned first; the merges below say the same.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from stemma.data.stream_decoding import byte_of_character
from stemma.errors import InputError

# What the first special tokens are called where the file does not say (versions before 7).
_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
            "[SUFFIX]")  # fmt: skip
_ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def read_tekken(content: Any, file: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return the pipeline and {role: token} of a `tekken.json`, given its parsed content.

    Special tokens have the first ids, the others those after them.

    Raises:
        InputError: a part is missing or is not what it should be.
    """
    config, special = _config(content, file), _special_names(content, file)
    kept = config["default_vocab_size"] - len(special)
    tokens = _tokens(content["vocab"][:kept], file)
    characters = {byte: character for character, byte in byte_of_character().items()}
    names = ["".join(characters[byte] for byte in token) for token in tokens]
    vocabulary = {name: index for index, name in enumerate(special)}
    vocabulary |= {name: index for index, name in enumerate(names, start=len(special))}
    backend = Tokenizer(models.BPE(vocabulary, _merges(tokens, names), ignore_merges=True))
    split = pre_tokenizers.Split(Regex(config["pattern"]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return backend, {role: name for role, name in _ROLES.items() if name in special}


def _config(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict) or "vocab" not in content:
        raise InputError(f'{file}: no "config" and "vocab", expected a Tekken tokenizer')
    config: dict[str, Any] = content["config"]
    for key, kind in (("pattern", str), ("default_vocab_size", int), ("default_num_special_tokens", int)):
        if not isinstance(config.get(key), kind):
            raise InputError(f"{file}: config.{key} is {config.get(key)!r}, expected {kind.__name__}")
    return config


def _special_names(content: dict[str, Any], file: Path) -> list[str]:
    count = content["config"]["default_num_special_tokens"]
    listed = content.get("special_tokens")
    try:
        names = {entry["rank"]: entry["token_str"] for entry in listed} if listed else dict(enumerate(_SPECIAL))
    except (TypeError, KeyError) as error:
        raise InputError(f'{file}: special_tokens lack {error}, expected "rank" and "token_str" of each') from None
    return [names.get(index, f"<SPECIAL_{index}>") for index in range(count)]


def _tokens(entries: list[Any], file: Path) -> list[bytes]:
    tokens = []
    for index, entry in enumerate(entries):
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (TypeError, KeyError, binascii.Error):
            raise InputError(f"{file}: vocab[{index}] has no base64 token_bytes") from None
        if entry.get("rank") != index:
            raise InputError(f"{file}: vocab[{index}] has the rank {entry.get('rank')!r}, expected {index}")
        tokens.append(token)
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{file}: a token is listed twice")
    return tokens


def _merges(tokens: list[bytes], names: list[str]) -> list[tuple[str, str]]:
    """Return every pair of tokens that together are a token, in the order in which those were learned."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(ranks[left], ranks[right]) for left, right in cuts if left in ranks and right in ranks]
        merges += [(names[left], names[right]) for left, right in sorted(pairs)]
    return merges
