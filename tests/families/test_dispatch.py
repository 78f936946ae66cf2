"""Choices by a model's class, and what is said where there is none."""

import pytest

from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.dispatch import by_family, with_article
from stemma.families.gpt.model import GPT
from stemma.families.t5.model import T5


def kind(name: str, *bases: type) -> type:
    return type(name, bases, {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GPT", "a GPT"), ("LSTM", "an LSTM"), ("ELMo", "an ELMo"), ("T5", "a T5"), ("Mistral", "a Mistral"),
        ("Linear", "a Linear"), ("Encoder", "an Encoder"), ("BERT", "a BERT"), ("Transformer", "a Transformer"),
    ],
)  # fmt: skip
def test_articles_are_as_spoken(name: str, said: str) -> None:
    assert with_article(kind(name)()) == said


def test_a_choice_is_that_of_the_class_or_one_above_it() -> None:
    below = kind("Below", list)()
    assert by_family(below, {dict: "dict", list: "list"}, "is none") == "list"


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ((GPT,), "a GPT"), ((GPT, BERT), "a GPT or BERT"), ((BERT, GPT, T5), "a BERT, GPT or T5"),
        ((kind("LSTM"), GPT), "an LSTM or GPT"),
    ],
)  # fmt: skip
def test_where_there_is_none_all_are_named(choices: tuple[type, ...], expected: str) -> None:
    with pytest.raises(InputError, match=f"^an ELMo cannot fill blanks: expected {expected}$"):
        by_family(kind("ELMo")(), dict.fromkeys(choices), "cannot fill blanks")
