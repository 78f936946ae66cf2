"""GLM's special tokens, and texts with blanks as token ids.

The published models append their special tokens to the vocabularies of BERT (uncased), GPT-2 or RoBERTa, in one order;
`prepare_tokenizer` gives these and all other tokenizers the same tokens with the same ids.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from stemma.errors import InputError

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

PIECE_START, PIECE_END = "<|startofpiece|>", "<|endofpiece|>"
MASK, SENTENCE_MASK, DOCUMENT_MASK, HIDDEN_INPUT = "[MASK]", "[sMASK]", "[gMASK]", "[dBLOCK]"

_ROLES = {"cls_token": "[CLS]", "mask_token": MASK, "sep_token": "[SEP]", "unk_token": "[UNK]"}
_SENTENCE_ENDS = frozenset(".?!;:…。？！；：\n")
_BLANK = re.compile(r"\[MASK\]|\[sMASK\]|\[gMASK\]")


def prepare_tokenizer(tokenizer: "Tokenizer", sentinels: int = 0) -> "Tokenizer":
    """Return a tokenizer with all of GLM's special tokens; those that it has, by role or by name, keep their ids.

    Args:
        sentinels: further pairs of tokens, [MASK1] and <|startofpiece1|> on, for the ablation that tells blanks apart.
    """
    roles = {role: tokenizer.names.get(role, name) for role, name in _ROLES.items()}
    pairs = [(_numbered(MASK, number), _numbered(PIECE_START, number)) for number in range(1, sentinels + 1)]
    more = [DOCUMENT_MASK, SENTENCE_MASK, HIDDEN_INPUT, *(name for pair in pairs for name in pair)]
    return tokenizer.with_special_tokens(PIECE_START, PIECE_END, *roles.values(), *more, **roles)


@dataclass(frozen=True)
class GLMTokens:
    """The ids that GLM's objective and its use speak of.

    Args:
        separator: between the documents of a tokenised corpus. beginning: [CLS], before each document.
        end: after each document, and the padding: eos, else the padding token (BERT's), else the separator.
        mask, sentence_mask, document_mask: a blank: [MASK], [sMASK], [gMASK].
        piece_start, piece_end: before and after what stands in a blank. hidden_input: [dBLOCK].
        sentence_ends: ids of all tokens that end a sentence.
        masks, piece_starts: of the numbered blanks [MASK1], [MASK2], ..., where the tokenizer has them.
    """

    separator: int
    beginning: int
    end: int
    mask: int
    sentence_mask: int
    document_mask: int
    piece_start: int
    piece_end: int
    hidden_input: int
    sentence_ends: frozenset[int] = frozenset()
    masks: tuple[int, ...] = ()
    piece_starts: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "GLMTokens":
        """Read the ids from a tokenizer.

        Raises:
            InputError: it lacks one of them.
        """
        known = tokenizer.backend.get_vocab(with_added_tokens=True)
        names = {role: tokenizer.names.get(role, name) for role, name in _ROLES.items()}
        missing = [
            name for name in (PIECE_START, PIECE_END, names["cls_token"], names["mask_token"]) if name not in known
        ]
        if missing:
            raise InputError(f"the tokenizer has no token {missing[0]}, so it is not a GLM's")
        mask = known[names["mask_token"]]
        end = next(index for index in (tokenizer.eos, tokenizer.pad, tokenizer.separator) if index is not None)
        numbers = range(1, next(n for n in range(1, len(known) + 2) if _numbered(MASK, n) not in known))
        return cls(
            separator=tokenizer.separator,
            beginning=known[names["cls_token"]],
            end=end,
            mask=mask,
            # Models without a mask of their own for sentences and documents (base, large) use the one they have.
            sentence_mask=known.get(SENTENCE_MASK, mask),
            document_mask=known.get(DOCUMENT_MASK, mask),
            piece_start=known[PIECE_START],
            piece_end=known[PIECE_END],
            hidden_input=known.get(HIDDEN_INPUT, mask),
            sentence_ends=sentence_ends(tokenizer),
            masks=tuple(known[_numbered(MASK, number)] for number in numbers),
            piece_starts=tuple(known[_numbered(PIECE_START, number)] for number in numbers),
        )

    @property
    def blanks(self) -> frozenset[int]:
        """All ids that stand for a blank."""
        return frozenset((self.mask, self.sentence_mask, self.document_mask, *self.masks))


@lru_cache(maxsize=4)  # a look at the whole vocabulary; a tokenizer does not change
def sentence_ends(tokenizer: "Tokenizer") -> frozenset[int]:
    """Return the ids of all tokens with a mark that ends a sentence or a part of it (. ? ! ; : or a line's end)."""
    plain = (index for index in range(tokenizer.vocabulary) if index not in tokenizer.special)
    return frozenset(index for index in plain if not _SENTENCE_ENDS.isdisjoint(tokenizer.decode([index])))


def encode_context(tokenizer: "Tokenizer", tokens: GLMTokens, text: str) -> list[int]:
    """Return Part A of a text with [MASK], [sMASK] or [gMASK] in it: [CLS] text end, no end after a final [gMASK].

    The blank space before a mask belongs to what stands in it.

    Raises:
        InputError: no mask in the text.
    """
    found = list(_BLANK.finditer(text))
    if not found:
        raise InputError(f"no blank in {text[:60]!r}: expected {MASK}, {SENTENCE_MASK} or {DOCUMENT_MASK} in it")
    ids = {MASK: tokens.mask, SENTENCE_MASK: tokens.sentence_mask, DOCUMENT_MASK: tokens.document_mask}
    starts = [0, *(match.end() for match in found)]
    pieces = [text[start : match.start()].rstrip() for start, match in zip(starts, found, strict=False)]
    encoded = tokenizer.encode_batch([*pieces, text[starts[-1] :]])
    context = [tokens.beginning]
    for piece, match in zip(encoded, found, strict=False):
        context += [*piece, ids[match[0]]]
    context += encoded[-1]
    return context if context[-1] == tokens.document_mask != tokens.mask else [*context, tokens.end]


def _numbered(name: str, number: int) -> str:
    return f"{name[:-1]}{number}]" if name.endswith("]") else name.replace("|>", f"{number}|>")
