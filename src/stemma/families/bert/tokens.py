"""BERT's special tokens, and where words and sentences begin in a stream of token ids."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import decoders, models

from stemma.data.content_hashes import digest
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError

ROLES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
# No sentence is longer: text without punctuation (tables, some code) is cut into pieces of so many tokens.
LONGEST_SENTENCE = 64

_ENDS = (".", "!", "?", "…")
_ENDS_WITHOUT_SPACE = ("。", "！", "？", "｡")  # scripts that put no space between sentences
_CLOSES = "\"'”’»)]}"
# What a token begins or ends with; a single space, where it is a token, belongs to what follows.
_NOTHING, _LETTERS, _DIGITS, _OTHERS, _SPACE = range(5)


def prepare_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with BERT's special tokens; those that it has in their role keep spelling and id."""
    return tokenizer.with_special_tokens(**{role: tokenizer.names.get(role, name) for role, name in ROLES.items()})


def frame_and_mask(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the ids of [CLS], [SEP] and [MASK], at no cost: `BERTTokens.of` reads the whole vocabulary.

    Raises:
        InputError: it lacks one of them.
    """
    for role, name in ROLES.items():
        if role != "pad_token" and role not in tokenizer.names:
            raise InputError(f"the tokenizer has no {role} such as {name}, so that BERT cannot be trained with it")
    first, last, mask = (tokenizer.id(tokenizer.names[role]) for role in ("cls_token", "sep_token", "mask_token"))
    return first, last, mask


@dataclass(frozen=True, eq=False)
class BERTTokens:
    """What the objective needs to know of a vocabulary.

    Words: of WordPiece, a token and the "##" pieces after it. Of other tokenizers, a run of letters, of digits or of
    other characters, with the white space before it; byte-level BPE has no token across two of these.

    Sentences (Devlin et al. 2018 call any stretch of text one): a sentence ends after a token with . ! ? or … at its
    end, closing quotes and brackets after it included, if white space follows; after a line break; after 。！？; and
    after 64 tokens. WordPiece keeps no white space: there any new word will do, and line breaks are not seen.

    Args:
        first, last, mask: ids of [CLS], [SEP] and [MASK]. separator: between the documents of a tokenised corpus.
        texts: the text of each id with its white space; "" for special tokens; with "##" for WordPiece's inner pieces.
        wordpiece: whether "##" marks the pieces inside words.
    """

    first: int
    last: int
    mask: int
    separator: int
    texts: Sequence[str]
    wordpiece: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "BERTTokens":
        """Read a tokenizer.

        Raises:
            InputError: it lacks [CLS], [SEP] or [MASK].
        """
        first, last, mask = frame_and_mask(tokenizer)
        backend, ids = tokenizer.backend, range(tokenizer.vocabulary)
        if isinstance(backend.decoder, decoders.ByteLevel):
            texts = [backend.decode([index]) for index in ids]
        else:
            texts = [(backend.id_to_token(index) or "").replace("▁", " ") for index in ids]
        plain = ["" if index in tokenizer.special else text for index, text in enumerate(texts)]
        return cls(first, last, mask, tokenizer.separator, plain, isinstance(backend.model, models.WordPiece))

    @property
    def vocabulary(self) -> int:
        """The number of ids."""
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides where words and sentences begin."""
        return digest([str((self.first, self.last, self.mask, self.separator, self.wordpiece)), *self.texts])

    def word_starts(self, tokens: np.ndarray) -> np.ndarray:
        """Return bool, of the shape of int [n] tokens: whether a word begins there. A special token is a word."""
        starts = self._begins_apart[tokens]
        if not self.wordpiece:
            other_kind = self._first_kind[tokens[1:]] != self._last_kind[tokens[:-1]]
            starts[1:] |= other_kind & (self._last_kind[tokens[:-1]] != _SPACE)
        starts[:1] = True
        return starts

    def sentence_starts(self, tokens: np.ndarray) -> np.ndarray:
        """Return bool, of the shape of int [n] tokens: whether a sentence begins there; it does at 0.

        Special tokens, the separators of documents among them, are sentences of their own.
        """
        ended, closes = self._ends[tokens], self._closes[tokens]
        for _ in range(2):  # closing marks after the end, one token each
            ended[1:] |= closes[1:] & ended[:-1]
        breaks = self._breaks[tokens]
        starts = np.zeros(len(tokens), bool)
        starts[1:] = breaks[:-1] | (ended[:-1] & self._begins_apart[tokens[1:]] & ~closes[1:])
        starts |= self._special[tokens]
        starts[:1] = True
        return starts

    def sentences(self, tokens: np.ndarray) -> np.ndarray:
        """Return int64 [sentences + 1]: where each sentence of int [n] tokens begins, and n."""
        bounds = np.append(np.flatnonzero(self.sentence_starts(tokens)), len(tokens))
        parts = -(-np.diff(bounds) // LONGEST_SENTENCE)
        if (parts == 1).all():
            return bounds
        number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # of the part in its sentence
        return np.append(np.repeat(bounds[:-1], parts) + LONGEST_SENTENCE * number, len(tokens))

    @cached_property
    def _special(self) -> np.ndarray:
        return np.array([not text for text in self.texts])

    @cached_property
    def _begins_apart(self) -> np.ndarray:
        """Whether a token begins a word wherever it stands."""
        if self.wordpiece:
            return np.array([not text.startswith("##") or text == "##" for text in self.texts])
        return np.array([not text or text[0].isspace() for text in self.texts])

    @cached_property
    def _first_kind(self) -> np.ndarray:
        return np.array([_kind(text.strip()[:1]) for text in self.texts])

    @cached_property
    def _last_kind(self) -> np.ndarray:
        return np.array([_SPACE if text == " " else _kind(text.rstrip()[-1:]) for text in self.texts])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.array([text.rstrip().rstrip(_CLOSES).endswith(_ENDS) for text in self.texts])

    @cached_property
    def _closes(self) -> np.ndarray:
        return np.array([bool(text) and not text.strip(_CLOSES) for text in self.texts])

    @cached_property
    def _breaks(self) -> np.ndarray:
        """Whether a sentence ends after the token, whatever follows."""
        return np.array([not text or "\n" in text or text.endswith(_ENDS_WITHOUT_SPACE) for text in self.texts])


def _kind(character: str) -> int:
    if not character:
        return _NOTHING  # white space, special
    category = unicodedata.category(character)[0]
    # U+FFFD stands for a part of a character, which outside ASCII is most often a letter.
    if category in "LM" or character == "\ufffd":
        return _LETTERS
    return _DIGITS if category == "N" else _OTHERS
