"""A tokenizer of whole words: the frequent ones, line ends, and one unknown word for the rest."""

import pytest
import transformers

from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.errors import InputError

TEXT = "the dog sees the cat\n\n  the dog </S> sleeps\t. \n"


def test_words_by_falling_frequency_between_the_special_ones_and_the_line_end():
    tokenizer = train_tokenizer([TEXT], "elmo", 100)
    tokens = [tokenizer.token(index) for index in range(tokenizer.vocabulary)]
    assert tokens == ["</S>", "<S>", "<UNK>", "the", "dog", ".", "cat", "sees", "sleeps", "\n"]
    assert tokenizer.separator == tokenizer.eos == 0 and tokenizer.bos == 1 and tokenizer.unknown == 2


def test_white_space_divides_and_a_line_end_is_one_token_however_much_of_it_there_is():
    tokenizer = train_tokenizer([TEXT], "elmo", 100)
    tokens = [tokenizer.token(index) for index in tokenizer.encode(TEXT)]
    # "</S>" in a text is a word like others, and unknown: it may not end a sentence.
    assert tokens == ["the", "dog", "sees", "the", "cat", "\n", "the", "dog", "<UNK>", "sleeps", ".", "\n"]
    assert tokenizer.encode("the unheard dog") == [3, 2, 4]
    assert tokenizer.encode("") == []


def test_no_more_words_than_asked_for():
    tokenizer = train_tokenizer([TEXT], "elmo", 6)
    assert [tokenizer.token(index) for index in range(6)] == ["</S>", "<S>", "<UNK>", "the", "dog", "\n"]
    with pytest.raises(InputError, match=r"vocabulary: 4 tokens do not hold .* at least 5 \(2 a word and the line end"):
        train_tokenizer([TEXT], "elmo", 4)


def test_lower_case():
    tokenizer = train_tokenizer(["The DOG\nthe Dog"], "elmo", 100, lowercase=True)
    assert tokenizer.encode("THE dog") == [4, 3]  # of equally frequent words the first by spelling is first


def test_a_text_that_repeats_little_is_no_reason_for_a_warning(recwarn):
    train_tokenizer([TEXT], "elmo", 100)
    assert not recwarn.list


def test_saved_and_loaded_it_is_the_same_here_and_in_transformers(tmp_path):
    tokenizer = train_tokenizer([TEXT], "elmo", 100)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.encode(TEXT) == tokenizer.encode(TEXT)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the dog\nsees")["input_ids"] == tokenizer.encode("the dog\nsees")


@pytest.mark.parametrize("cut", [3, 8, 21, 27])  # at white space: words are not to be divided
def test_the_vocabulary_does_not_depend_on_how_the_text_arrives(cut):
    assert (
        train_tokenizer([TEXT[:cut], TEXT[cut:]], "elmo", 100).fingerprint
        == train_tokenizer([TEXT], "elmo", 100).fingerprint
    )
