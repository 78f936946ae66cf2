"""Words and sentences in token streams of the tokenizers that BERT is trained with."""

import numpy as np
import pytest

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families.bert.tokens import LONGEST_SENTENCE, BERTTokens, prepare_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the text repeats too little")

TEXT = (
    'Mr Smith paid 3.14 pounds for "naïve" unbelievable self.books. He left! "Why?" she asked (twice.) And then\n'
    "def read(self): return 42nd\n"
)
KINDS = ["bpe", "wordpiece", "unigram"]


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    sizes = {"bpe": 300, "wordpiece": 120, "unigram": 420}
    return {kind: prepare_tokenizer(train_tokenizer([TEXT * 4], kind, sizes[kind])) for kind in KINDS}


def cut(tokenizer: Tokenizer, ids: list[int], starts: np.ndarray) -> list[str]:
    bounds = [*np.flatnonzero(starts).tolist(), len(ids)]
    spelled = "".join if not BERTTokens.of(tokenizer).wordpiece else " ".join
    texts = BERTTokens.of(tokenizer).texts
    return [spelled([texts[ids[i]] for i in range(a, b)]) for a, b in zip(bounds, bounds[1:], strict=False)]


def test_special_tokens_are_added_once_and_keep_their_ids(trained: dict[str, Tokenizer]) -> None:
    bpe = trained["bpe"]
    assert [bpe.token(index) for index in range(bpe.vocabulary - 4, bpe.vocabulary)] == [
        "[PAD]", "[CLS]", "[SEP]", "[MASK]",
    ]  # fmt: skip
    assert prepare_tokenizer(bpe).fingerprint == bpe.fingerprint
    tokens = BERTTokens.of(bpe)
    assert (tokens.first, tokens.last, tokens.mask) == (bpe.id("[CLS]"), bpe.id("[SEP]"), bpe.mask)
    assert tokens.separator == bpe.id("<|endoftext|>") and tokens.vocabulary == bpe.vocabulary
    plain = train_tokenizer([TEXT], "wordpiece", 120)
    assert prepare_tokenizer(plain).fingerprint == plain.fingerprint
    assert BERTTokens.of(plain).separator == BERTTokens.of(plain).last == plain.id("[SEP]")


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(InputError, match=r"no cls_token such as \[CLS\]"):
        BERTTokens.of(train_tokenizer([TEXT], "bpe", 300))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_words_of_byte_level_and_unigram_tokens(kind: str, trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained[kind]
    ids = tokenizer.encode('He paid 3.14 for "naïve" 42nd unbelievable self.books.\nDef')
    words = [word.strip() for word in cut(tokenizer, ids, BERTTokens.of(tokenizer).word_starts(np.array(ids)))]
    expected = ["He", "paid", "3", ".", "14", "for", '"', "naïve", '"', "42", "nd", "unbelievable", "self", ".",
                "books", ".", "", "Def"]  # fmt: skip
    if kind == "bpe":  # "ï" is two tokens of a byte each
        words = [word.replace("\ufffd\ufffd", "ï") for word in words]
    else:
        expected.remove("")  # the line's end is a token of "."'s kind or of its own
        words = [word for word in words if word]
    assert words == expected


def test_words_of_wordpieces(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["wordpiece"]
    ids = tokenizer.encode("He paid 3.14 for unbelievable 42nd (twice).")
    assert any(tokenizer.token(index).startswith("##") for index in ids)
    words = cut(tokenizer, ids, BERTTokens.of(tokenizer).word_starts(np.array(ids)))
    joined = [word.replace(" ##", "") for word in words]
    assert joined == ["He", "paid", "3", ".", "14", "for", "unbelievable", "42nd", "(", "twice", ")", "."]
    # Special tokens are words, whatever stands beside them.
    special = np.array([tokenizer.mask, ids[0], tokenizer.mask, tokenizer.mask])
    assert BERTTokens.of(tokenizer).word_starts(special).all()


def test_sentences_of_byte_level_tokens(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["bpe"]
    ids = tokenizer.encode(TEXT)
    sentences = cut(tokenizer, ids, BERTTokens.of(tokenizer).sentence_starts(np.array(ids)))
    assert [sentence.strip().replace("\ufffd\ufffd", "ï") for sentence in sentences] == [
        'Mr Smith paid 3.14 pounds for "naïve" unbelievable self.books.',
        "He left!",
        '"Why?"',
        "she asked (twice.)",
        "And then",
        "def read(self): return 42nd",
    ]


def test_sentences_of_wordpieces(trained: dict[str, Tokenizer]) -> None:
    """Without white space, decimals end sentences too, and a quotation mark after the end closes."""
    tokenizer = trained["wordpiece"]
    ids = tokenizer.encode("He paid 3.14 pounds. Smith (she left.) And")
    sentences = cut(tokenizer, ids, BERTTokens.of(tokenizer).sentence_starts(np.array(ids)))
    assert [sentence.replace(" ##", "") for sentence in sentences] == [
        "He paid 3 .", "14 pounds .", "Smith ( she left . )", "And",
    ]  # fmt: skip


def test_special_tokens_stand_alone_and_long_sentences_are_cut() -> None:
    tokens = BERTTokens(0, 1, 2, 1, ["", "", "", " word", " .", "。", "字"])
    stream = np.array([3, 3, 1, 3, 4, 3, 6, 5, 6])
    assert tokens.sentences(stream).tolist() == [0, 2, 3, 5, 8, 9]
    long = np.array([3] * (2 * LONGEST_SENTENCE + 5) + [4] + [3] * LONGEST_SENTENCE + [4, 3])
    first, second = 2 * LONGEST_SENTENCE + 6, 3 * LONGEST_SENTENCE + 7
    assert tokens.sentences(long).tolist() == [
        0, LONGEST_SENTENCE, 2 * LONGEST_SENTENCE, first, first + LONGEST_SENTENCE, second, second + 1,
    ]  # fmt: skip
    assert tokens.sentences(np.array([], int)).tolist() == [0]
    assert tokens.sentences(np.array([3])).tolist() == [0, 1]
