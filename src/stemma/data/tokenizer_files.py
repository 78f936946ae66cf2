"""The files in which tokenizers are published, read to a `tokenizers` pipeline and the names of its special tokens.

Nothing in them is executed. Formats: `tokenizer.json`; byte-level BPE as GPT-2's `vocab.json` + `merges.txt` (OpenAI's
`encoder.json` + `vocab.bpe`); GPT-1's BPE with end-of-word marks in files of the same names; BERT's `vocab.txt`;
ELMo's, which begins with </S>, <S> and <UNK>; SentencePiece `.model`; Mistral's `tekken.json`.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stemma.data.sentencepiece_models import read_sentencepiece
from stemma.data.tekken import read_tekken
from stemma.errors import InputError

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
BPE_FILES = {
    "vocab.json": "merges.txt",
    "encoder.json": "vocab.bpe",
    "encoder_bpe_40000.json": "vocab_40000.bpe",
}
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
ELMO_NAMES = {"eos_token": "</S>", "bos_token": "<S>", "unk_token": "<UNK>"}  # as ELMo's vocabularies begin
TEKKEN_FILE = "tekken.json"
CONFIGURATION_FILES = ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")
PUBLISHED_FILES = (
    "tokenizer.json",
    *BPE_FILES,
    *BPE_FILES.values(),
    "vocab.txt",
    *SENTENCEPIECE_FILES,
    TEKKEN_FILE,
    *CONFIGURATION_FILES,
)
EXPECTED = (
    "tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe, vocab.txt, tekken.json "
    "or a SentencePiece .model"
)

# Names that the published tokenizers use, where no configuration says it.
USUAL_NAMES = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
    "unk_token": ("<unk>", "[UNK]"),
    "pad_token": ("<pad>", "[PAD]"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}


def read_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Read a file, or the best of the files in a folder, with the configuration beside it.

    Returns the pipeline and {role: token}, the roles being transformers' (`eos_token`, ...). Raises InputError naming
    the file and what was expected of it.
    """
    file = _find(path) if path.is_dir() else path
    configuration = _read_configuration(file.parent)
    backend, names = _read_file(file, configuration)
    backend.no_truncation()
    backend.no_padding()
    stated = {role: _text(configuration[role]) for role in ROLES if role in configuration}
    names = {role: text for role, text in (names | stated).items() if text}
    _add_listed(backend, names, configuration, file.parent)
    return backend, names


def _find(directory: Path) -> Path:
    preferred = ["tokenizer.json", *BPE_FILES, "vocab.txt", TEKKEN_FILE, *SENTENCEPIECE_FILES]
    for name in preferred:
        if (directory / name).is_file():
            return directory / name
    for pattern in ("*.model", "vocab*.txt"):
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
    raise InputError(f"{directory}: no tokenizer in this folder; expected {EXPECTED}")


def _read_file(file: Path, configuration: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    by_merges = {merges: vocabulary for vocabulary, merges in BPE_FILES.items()}
    if file.name in BPE_FILES:
        return _read_bpe(file, file.with_name(BPE_FILES[file.name]), configuration)
    if file.name in by_merges:
        return _read_bpe(file.with_name(by_merges[file.name]), file, configuration)
    if file.name.startswith("tekken"):
        return read_tekken(read_json(file), file)
    if file.suffix == ".json":
        return _read_tokenizer_json(file)
    if file.suffix == ".model":
        return read_sentencepiece(file)
    if file.suffix == ".txt":
        return _read_vocabulary(file, configuration)
    raise InputError(f"{file}: not the name of a tokenizer file; expected {EXPECTED}")


def _read_tokenizer_json(file: Path) -> tuple[Tokenizer, dict[str, str]]:
    content = read_text(file)
    try:
        backend = Tokenizer.from_str(content)
    except BaseException as error:  # the library raises plain Exception, and for some files its PanicException
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(f"{file}: not a tokenizer.json that `tokenizers` reads ({_first_line(error)})") from None
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return backend, _usual_names(special)


def _read_bpe(vocabulary: Path, merges: Path, configuration: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    ids = read_json(vocabulary)
    if not ids or not all(isinstance(index, int) for index in ids.values()):
        raise InputError(f'{vocabulary}: expected a JSON object of tokens and their ids, such as {{"the": 0}}')
    pairs = _read_merges(merges, ids)
    with_word_ends = any(token.endswith("</w>") for token in ids)
    marks = {"end_of_word_suffix": "</w>", "unk_token": "<unk>"} if with_word_ends else {}
    backend = Tokenizer(models.BPE(ids, pairs, **marks))
    if with_word_ends:
        # GPT-1 as transformers reads it: spaCy and ftfy, which OpenAI used, give other ids on rare text.
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.BPEDecoder(suffix="</w>")
        return backend, _usual_names({"<unk>"} & ids.keys())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(configuration.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    special = {"<|endoftext|>"} | ({"<s>", "<pad>", "</s>", "<unk>", "<mask>"} if "<mask>" in ids else set())
    return backend, _usual_names(special & ids.keys())


def _read_merges(file: Path, ids: dict[str, int]) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise InputError(f"{file}, line {number}: expected two tokens with a space between, got {line[:60]!r}")
        for token in (*pair, "".join(pair)):
            if token not in ids:
                raise InputError(f"{file}, line {number}: {token!r} is not in the vocabulary file beside it")
        pairs.append((pair[0], pair[1]))
    return pairs


def _read_vocabulary(file: Path, configuration: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    tokens = read_text(file).removesuffix("\n").split("\n")
    ids = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
    if set(ELMO_NAMES.values()) == set(list(ids)[:3]):
        backend = Tokenizer(models.WordLevel(ids, unk_token=ELMO_NAMES["unk_token"]))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return backend, dict(ELMO_NAMES)
    if "[UNK]" not in ids:
        raise InputError(f"{file}: expected a WordPiece vocabulary, a token a line, with [UNK] among them")
    names = _usual_names({token for token in ids if token.startswith("[") and token.endswith("]")})
    # The configuration says whether text is lower-cased; without one, a vocabulary with capitals is a cased one.
    cased = any(token != token.lower() for token in ids if token not in names.values() and not token.startswith("["))
    backend = wordpiece_pipeline(
        ids,
        names,
        lowercase=configuration.get("do_lower_case", not cased),
        strip_accents=configuration.get("strip_accents"),
        split_chinese=configuration.get("tokenize_chinese_chars", True),
    )
    return backend, names


def wordpiece_pipeline(
    ids: dict[str, int],
    names: dict[str, str],
    lowercase: bool,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
) -> Tokenizer:
    """BERT's pipeline (Devlin et al. 2018; google-research/bert tokenization.py) over a vocabulary.

    `strip_accents` None: where text is lower-cased, as BERT does.
    """
    backend = Tokenizer(models.WordPiece(ids, unk_token=names["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    if {"cls_token", "sep_token"} <= names.keys():
        first, last = names["cls_token"], names["sep_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first}:0 $A:0 {last}:0",
            pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
            special_tokens=[(first, ids[first]), (last, ids[last])],
        )
    return backend


def _read_configuration(directory: Path) -> dict[str, Any]:
    """What transformers writes beside a tokenizer, the newer file over the older."""
    files = [directory / name for name in CONFIGURATION_FILES[:2]]
    return {key: value for file in files if file.is_file() for key, value in read_json(file).items()}


def _add_listed(backend: Tokenizer, names: dict[str, str], configuration: dict[str, Any], directory: Path) -> None:
    """Give ids to the tokens that the configuration adds to a vocabulary file (a tokenizer.json holds its own)."""
    listed: list[tuple[str, int | None, bool]] = []  # text, id if stated, whether special
    if isinstance(sentinels := configuration.get("extra_ids"), int):  # T5: <extra_id_0> has the highest id
        listed += [(f"<extra_id_{index}>", None, True) for index in reversed(range(sentinels))]
    stated = configuration.get("added_tokens_decoder") or {}
    for index, token in sorted(stated.items(), key=lambda item: int(item[0])):
        listed.append((_text(token) or "", int(index), bool(token.get("special"))))
    if (file := directory / "added_tokens.json").is_file():
        listed += [(text, index, False) for text, index in sorted(read_json(file).items(), key=lambda item: item[1])]
    listed += [(text, None, True) for text in names.values()]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = configuration.get(key) or []
        listed += [(_text(token) or "", None, True) for token in (extra.values() if isinstance(extra, dict) else extra)]
    present = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for text, expected, special in listed:
        if special and text and text not in present:
            backend.add_special_tokens([text])
        elif backend.token_to_id(text) is None:
            backend.add_tokens([text])
        if expected is not None and backend.token_to_id(text) != expected:
            received = backend.token_to_id(text)
            raise InputError(f"{directory}: added token {text!r} should have id {expected}, but would get {received}")


def _usual_names(special: set[str]) -> dict[str, str]:
    usual = {role: next((name for name in names if name in special), None) for role, names in USUAL_NAMES.items()}
    names = {role: name for role, name in usual.items() if name}
    if usual["mask_token"] == "<mask>" and {"<s>", "</s>"} <= special:  # RoBERTa's
        names = {"cls_token": "<s>", "sep_token": "</s>"} | names
    return names


def _text(token: Any) -> str | None:
    """A special token is written as its text or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; InputError with the place where it is broken."""
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


def read_text(file: Path) -> str:
    """Read a UTF-8 file; InputError if it is missing, unreadable or not UTF-8. Line ends stay as they are."""
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; a tokenizer is {EXPECTED}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
