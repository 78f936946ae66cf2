"""A model behind an endpoint: what it is sent, what is read from its answers, and what is wrong with them."""

from contextlib import contextmanager

import pytest
from endpoints import serving

from stemma.errors import InputError
from stemma.inference.endpoint import ask_endpoint
from stemma.inference.sampling import Sampling
from stemma.prompting.models import Endpoint, Score, Writing, Written


@contextmanager
def endpoint(answer, status=200):
    """A model at an endpoint that answers `answer(body)`, and what it was asked."""
    with serving(lambda body: (status, answer(body))) as (url, asked):
        yield Endpoint(f"{url}/", "small"), asked


def echo(text, offsets, scores, likeliest):
    logprobs = {"text_offset": offsets, "token_logprobs": scores, "top_logprobs": likeliest}
    return {"choices": [{"text": text, "logprobs": logprobs}]}


def test_continuations_are_the_tokens_that_begin_in_them(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    likeliest = [None, {"c": -1.0}, {" d": -0.5}, {"e": -0.1}, {"!": -0.2}]
    whole = echo("ab c d e!", [0, 2, 4, 6, 8], [None, -1.0, -0.5, -2.0, -0.2], likeliest)
    with endpoint(lambda body: whole) as (model, asked):
        found = model.score([("ab c", " d e"), ("ab c", " d"), ("ab c ", "d"), ("ab c d", " e"), ("ab c", " d e")])
    assert found == [
        Score(-2.5, 2, False, False, 4), Score(-0.5, 1, True, False, 3), Score(-0.5, 1, True, False, 3),
        Score(-2.0, 1, False, False, 4), Score(-2.5, 2, False, False, 4),
    ]  # fmt: skip
    assert len(asked) == 4  # equal pairs once
    assert {(one["path"], one["key"]) for one in asked} == {("/v1/completions", "Bearer secret")}
    assert all(one["echo"] and one["model"] == "small" and one["temperature"] == 0 for one in asked)


def test_a_token_across_the_boundary_is_told():
    across = echo("ab cd", [0, 1, 4], [None, -1.0, -2.0], [None, {"b c": -1.0}, {"d": -2.0}])
    with endpoint(lambda body: across) as (model, _):
        assert model.score([("ab", " cd")]) == [Score(-2.0, 1, True, True, 3)]


def test_texts_and_what_they_cost():
    said = {
        "usage": {"prompt_tokens": 7},
        "choices": [
            {"text": " 5", "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0, -0.5]}},
            {"text": " 6 and", "finish_reason": "length"},
        ],
    }
    with endpoint(lambda body: said) as (model, asked):
        how = Writing(9, ["Q:"], Sampling(0.7, 40, 0.9), 2, 5)
        assert (
            model.write(["a", "b"], how) == [[Written(" 5", 2, 7, -1.5, False), Written(" 6 and", 0, 7, 0, True)]] * 2
        )
        model.write(["c"], Writing(3))
    sent = sorted(asked, key=lambda one: one["prompt"])
    wanted = {"max_tokens": 9, "temperature": 0.7, "seed": 5, "n": 2, "stop": ["Q:"], "top_p": 0.9, "top_k": 40}
    assert wanted.items() <= sent[0].items() and sent[0]["prompt"] == "a"
    assert not {"stop", "top_p", "top_k"} & set(sent[2])
    assert model.fits("x" * 10**6, 10**6)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": []}, "an answer without choices"),
        ([], "an answer without choices"),
        ({"choices": [{"text": "ab cd"}]}, "does not score prompts; expected /completions with echo and logprobs"),
        ({"choices": [{"text": " e", "logprobs": {"token_logprobs": [-1.0], "text_offset": [0],
                       "top_logprobs": [{}]}}]}, "does not score prompts"),
        (echo("ab cd", [0, 2], [None, None], [None, {"x": -1.0}]), "does not score prompts"),
        (b"<html>", "no answer of a model .* expected an OpenAI-compatible endpoint"),
    ],
    ids=["no choice", "no object", "no scores", "no echo", "scores of nothing", "no JSON"],
)  # fmt: skip
def test_answers_that_are_no_scores(answer, message):
    with endpoint(lambda body: answer) as (model, _), pytest.raises(InputError, match=message):
        model.score([("ab", " cd")])


@pytest.mark.parametrize(
    "answer", [{}, [], {"choices": [{}]}, {"choices": None}, {"choices": [{"text": "a", "logprobs": 3}]}]
)
def test_answers_that_are_no_texts(answer):
    message = "an answer without texts .*, expected OpenAI's completions"
    with endpoint(lambda body: answer) as (model, _), pytest.raises(InputError, match=message):
        model.write(["a"], Writing())


def test_what_is_told_before_and_instead_of_an_answer():
    with endpoint(lambda body: {"error": "too long"}, status=400) as (model, asked):
        with pytest.raises(InputError, match='the model answered 400: {"error": "too long"}'):
            model.write(["a"], Writing())
        with pytest.raises(InputError, match="empty context"):
            model.score([(" ", "a")])
    assert len(asked) == 1
    with pytest.raises(InputError, match="no answer of a model"):
        Endpoint("http://127.0.0.1:9/v1", "small").write(["a"], Writing())
    with pytest.raises(InputError, match="no answer of a judge"):
        ask_endpoint("nowhere", "completions", {}, who="judge")
