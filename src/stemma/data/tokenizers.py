"""Tokenizers: text to ids and back, one thin class over the `tokenizers` library, whatever the family's algorithm."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from stemma.data import tokenizer_training
from stemma.data.stream_decoding import StreamDecoder, stream_decoder
from stemma.data.tokenizer_files import PUBLISHED_FILES, ROLES, read_tokenizer
from stemma.errors import InputError, closest
from stemma.files import write_whole

_ANCHOR = "a"  # what stands before a word


class Tokenizer:
    """A `tokenizers.Tokenizer` that knows which of its tokens are special and never finds those in a user's text.

    `backend` is the pipeline; `names` says which token has which of transformers' roles ({"eos_token": "</s>", ...}).
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: dict[str, str]) -> None:
        self.backend = backend
        self.names = {role: names[role] for role in ROLES if role in names}
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        backend.add_special_tokens([token for token in dict.fromkeys(self.names.values()) if token not in special])

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no special token is added, and the text of one is read like any other text.

        Raises InputError if the text holds half of a surrogate pair, which is not valid Unicode.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text, on all cores (the environment variable TOKENIZERS_PARALLELISM=false: on one)."""
        try:
            encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise _invalid_text(texts) from None
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Encode each text as `encode_batch` does; return with the ids where in the text each token begins and ends, in
        code points. The blank before a word may be inside or outside of its token."""
        try:
            encodings = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise _invalid_text(texts) from None
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids. Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary are passed over."""
        return self.backend.decode([int(index) for index in ids], skip_special_tokens=skip_special)

    def stream_decoder(self, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one at a time, with the same text as `decode` of all of them."""
        return stream_decoder(self.backend, self.special if skip_special else frozenset())

    @cached_property
    def vocabulary(self) -> int:
        """Number of ids: the highest id + 1."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def has_whole_words(self) -> bool:
        """Whether it knows words only: a likelihood of tokens, one of which stands for all other words, is then none of
        the text."""
        return isinstance(self.backend.model, tokenizers.models.WordLevel)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of all special tokens."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @property
    def separator(self) -> int:
        """Id of the token that ends a document: eos, else sep, bos or cls. InputError if there is none of these."""
        for role in ("eos_token", "sep_token", "bos_token", "cls_token"):
            if role in self.names:
                return self.id(self.names[role])
        raise InputError(
            "this tokenizer has no token that separates documents; add one: with_special_tokens(eos_token=...)"
        )

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text, None if there is none; likewise below."""
        return self._role("eos_token")

    @property
    def bos(self) -> int | None:
        return self._role("bos_token")

    @property
    def unknown(self) -> int | None:
        return self._role("unk_token")

    @property
    def pad(self) -> int | None:
        return self._role("pad_token")

    @property
    def mask(self) -> int | None:
        return self._role("mask_token")

    def id(self, token: str) -> int:
        """Id of a token by its exact name; InputError naming the closest if there is none."""
        index = self.backend.token_to_id(token)
        if index is None:
            vocabulary = self.backend.get_vocab(with_added_tokens=True)
            raise InputError(f"no token {token!r} in the vocabulary{closest(token, vocabulary)}")
        return index

    def token(self, index: int) -> str:
        """The vocabulary's own spelling of an id ("Ġthe", "##ing"); IndexError beyond the vocabulary."""
        token = self.backend.id_to_token(index)
        if token is None:
            raise IndexError(f"no token has id {index}; ids are below {self.vocabulary}")
        return token

    def with_special_tokens(self, *tokens: str, **names: str) -> "Tokenizer":
        """A copy with more special tokens, which get the next free ids in this order; those present keep theirs.

        `names` gives roles: `with_special_tokens("_delimiter_", eos_token="<|endoftext|>")`.
        """
        unknown = sorted(set(names) - set(ROLES))
        if unknown:
            raise InputError(f"{unknown[0]}: not the role of a special token{closest(unknown[0], ROLES)}")
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        wanted = [*tokens, *names.values()]
        special = {self.token(index) for index in self.special}
        backend.add_special_tokens([token for token in dict.fromkeys(wanted) if token not in special])
        return Tokenizer(backend, {**self.names, **names})

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids: the content of tokenizer.json and the roles of its tokens.

        Scores count to six digits: `tokenizers` does not read the last ones back as it wrote them.
        """
        content = json.loads(self.backend.to_str(), parse_float=lambda digits: f"{float(digits):.6g}")
        return hashlib.sha256(json.dumps([content, self.names], sort_keys=True).encode()).hexdigest()

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads as they are.

        There, unlike here, special tokens are found in text and added round it by default.
        """
        directory = Path(directory)
        inputs = ["input_ids", "attention_mask"]
        if isinstance(self.backend.model, tokenizers.models.WordPiece):
            inputs.insert(1, "token_type_ids")
        configuration = {
            **self.names,
            "clean_up_tokenization_spaces": False,
            "model_input_names": inputs,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        contents = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(configuration, indent=2, ensure_ascii=False) + "\n",
        }
        for name, content in contents.items():
            with write_whole(directory / name) as temporary:
                temporary.write_text(content, encoding="utf-8")

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """The pipeline that encodes: one in which no text leads to a special token."""
        if isinstance(self.backend.model, tokenizers.models.BPE):
            self.backend.encode_special_tokens = True  # no merge leads to one either
            return self.backend
        return _without_special_names(self.backend)

    def _role(self, role: str) -> int | None:
        return self.id(self.names[role]) if role in self.names else None


def load_tokenizer(path_or_hub_id: str | Path) -> Tokenizer:
    """Load a tokenizer from a folder, a file or the Hugging Face hub.

    Reads tokenizer.json; GPT-2's vocab.json + merges.txt or encoder.json + vocab.bpe; GPT-1's files; BERT's vocab.txt;
    SentencePiece .model files of Unigram (T5) and BPE (Llama, Mistral) models; Mistral's tekken.json. Raises InputError
    naming the file and what was expected of it, or why the hub could not give it.
    """
    path = Path(path_or_hub_id).expanduser()
    if not path.exists():
        path = _from_hub(str(path_or_hub_id))
    return Tokenizer(*read_tokenizer(path))


def train_tokenizer(
    texts: Iterable[str],
    kind: str = "bpe",
    vocabulary: int = 8192,
    *,
    special: Sequence[str] = (),
    lowercase: bool = False,
    byte_fallback: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Learn a tokenizer of `vocabulary` tokens from a stream of texts; the same texts give the same tokenizer.

    kind: "bpe" (byte-level, any text comes back unchanged), "wordpiece" (BERT's), "unigram" (SentencePiece-like) or
        "word" (whole words; those that are not in the vocabulary are all one token), "elmo" (at most `vocabulary` words
        between white space, the frequent ones, and line ends).
    special: further special tokens, after those of the kind ("<|endoftext|>" | "[PAD]" "[UNK]" "[CLS]" "[SEP]"
        "[MASK]" | "<pad>" "</s>" "<unk>", of words too | "</S>" "<S>" "<UNK>").
    lowercase: lower-case the text (and strip accents: WordPiece), which then does not come back as it was.
    byte_fallback: let Unigram write characters that it does not know as bytes, 256 further tokens, not as "<unk>".
    progress: called with the UTF-8 bytes of each text read.

    Warns (UserWarning) if the texts have too few repetitions for `vocabulary` tokens. Raises InputError for an empty
    stream of texts or a vocabulary that does not hold the alphabet.
    """
    return Tokenizer(
        *tokenizer_training.learn(texts, kind, vocabulary, tuple(special), lowercase, byte_fallback, progress)
    )


def pieces_in_text(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Return each word's token ids where it stands in a text, behind another word and a blank ("ĠParis", "▁Paris",
    "paris"), whether the tokenizer takes the blank from the text or puts one before every word itself; no ids of ""."""
    anchor, *encoded = tokenizer.encode_batch([_ANCHOR, *(f"{_ANCHOR} {word}" for word in words)])
    return [ids[len(anchor) :] if word else [] for ids, word in zip(encoded, words, strict=True)]


def _without_special_names(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy with the same ids whose special tokens are called what no text contains.

    WordPiece and Unigram look up whatever stretch of text is in their vocabulary, special tokens included.
    """
    content = json.loads(backend.to_str())
    unreachable = {}
    for token in content["added_tokens"]:
        if token["special"]:
            unreachable[token["content"]] = token["content"] = f"\uffff\U0010ffff{token['id']}\U0010ffff\uffff"
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {unreachable.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [(unreachable.get(token, token), score) for token, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = unreachable.get(model["unk_token"], model["unk_token"])
    content["post_processor"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _invalid_text(texts: Sequence[str]) -> InputError:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"expected texts, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InputError(f"the text has half of a surrogate pair at character {error.start}; not valid Unicode")
    raise TypeError("expected texts")


def _from_hub(name: str) -> Path:
    """The folder with the tokenizer files of a hub id such as `gpt2` or `google/t5-v1_1-base`."""
    parent = Path(name).expanduser().parent
    is_file_name = name.endswith((".json", ".txt", ".model", ".bpe"))
    if is_file_name or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        near = closest(Path(name).name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
        raise InputError(f"{name}: no such file or folder{near}")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(PUBLISHED_FILES)))
    except Exception as error:  # the client's network errors have no common base class
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{name}: no such file or folder, and the Hugging Face hub does not give it: {reason}"
        ) from None
