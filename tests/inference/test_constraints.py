"""Whatever a model would write, what comes out is what the grammar allows."""

import json
import re

import pytest

from stemma.errors import InputError
from stemma.inference.constraints import json_object, json_schema, one_of, regular_expression
from stemma.inference.engine import Engine
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(make_model, tokenizer):
    return Engine(make_model(scale=2, context=256), tokenizer)


def texts(engine, constraint, samples=8, length=120):
    request = Request(
        engine.tokenizer.encode("lazy"), length, Sampling(), samples=samples, seed=3, constraint=constraint
    )
    (found,) = engine.run([request])
    return found


def test_a_schema_is_obeyed(engine, tokenizer):
    found = texts(engine, json_schema(tokenizer, SCHEMA))
    for text in found:
        assert text.finish_reason == "end"
        value = json.loads(text.stream.text)
        assert set(value) == {"name", "age"} and len(value["name"]) <= 5 and 0 <= value["age"] <= 99
    assert len({text.stream.text for text in found}) > 4  # and it is the model that chooses


def test_an_expression_and_choices(engine, tokenizer):
    found = texts(engine, regular_expression(tokenizer, r"[a-c]{2,4}-\d{3}"))
    assert all(re.fullmatch(r"[a-c]{2,4}-\d{3}", text.stream.text) for text in found)
    found = texts(engine, one_of(tokenizer, ["lazy dog", "lazy", 'quick "fox"']), samples=30)
    assert {text.stream.text for text in found} == {"lazy dog", "lazy", 'quick "fox"'}
    assert all(text.finish_reason == "end" for text in found)


def test_a_json_object(engine, tokenizer):
    for text in texts(engine, json_object(tokenizer), length=200):
        if text.finish_reason == "end":
            assert isinstance(json.loads(text.stream.text), dict)
        else:
            assert text.stream.text.lstrip().startswith("{")


def test_others_in_the_batch_are_free(engine, tokenizer):
    free = Request(tokenizer.encode("lazy"), 20, Sampling(temperature=0))
    bound = Request(tokenizer.encode("lazy"), 20, Sampling(), constraint=one_of(tokenizer, ["dog"]))
    ((alone,),) = engine.run([free])
    (together,), (other,) = engine.run([free, bound])
    assert together.new == alone.new and other.stream.text == "dog"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tokenizer: json_schema(tokenizer, {"type": "number?"}), "json schema: "),
        (lambda tokenizer: regular_expression(tokenizer, "(a"), "regex: "),
    ],
)
def test_what_cannot_be_used_is_one_line(tokenizer, make, message):
    with pytest.raises(InputError, match=message) as error:
        make(tokenizer)
    assert "\n" not in str(error.value)
