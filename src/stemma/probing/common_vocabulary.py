"""The answers that every compared model can give in one token (Petroni et al. 2019, section 4.4)."""

from collections.abc import Sequence
from pathlib import Path

from stemma.data.byte_streams import text_chunks
from stemma.data.documents import lines
from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.errors import InputError

# Words that say nothing by themselves; LAMA's list lacks them too.
_STOP_WORDS = """
    a about above after again against all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each few for from further had has have having he her here
    hers herself him himself his how i if in into is it its itself just me more most my myself no nor not now of off
    on once only or other our ours ourselves out over own same she should so some such than that the their theirs
    them themselves then there these they this those through to too under until up very was we were what when where
    which while who whom why will with would you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def common_vocabulary(tokenizers: Sequence[Tokenizer], words: Sequence[str] | None = None) -> list[str]:
    """Return the words that are one known token after a blank space in every tokenizer, in their order.

    Args:
        words: to choose from; default: those that the first tokenizer can write in one token, without stop words and
            whatever has other characters than letters and digits.
    Raises:
        InputError: there is no such word.
    """
    chosen = list(dict.fromkeys(_words_of(tokenizers[0]) if words is None else words))
    for tokenizer in tokenizers:
        hidden = tokenizer.special | {tokenizer.unknown}
        pieces = pieces_in_text(tokenizer, chosen)
        chosen = [
            word for word, ids in zip(chosen, pieces, strict=True) if len(ids) == 1 and not hidden.intersection(ids)
        ]
    if not chosen:
        raise InputError("no word is one token in all of these models; expected a common vocabulary")
    return chosen


def read_vocabulary(path: Path) -> list[str]:
    """Read a word a line, as LAMA's common_vocab_cased.txt.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    words = [line.strip() for line in lines(text_chunks(path, lambda read: None)) if line.strip()]
    if not words:
        raise InputError(f"{path}: no words in it, expected one a line")
    return words


def _words_of(tokenizer: Tokenizer) -> list[str]:
    texts = (tokenizer.decode([index]).strip() for index in range(tokenizer.vocabulary))
    return [text for text in texts if text.isalnum() and text.lower() not in STOP_WORDS]
