"""Which of two models is preferred, by rewards and by an endpoint that is asked in both orders."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from endpoints import serving
from policies import directory_of, policy_of, prompts_file, with_reading

from stemma.alignment.judges import judge_by_endpoint, judge_by_reward
from stemma.alignment.preference import judge_of, prefer, writer_of
from stemma.alignment.reward_model import RewardModel
from stemma.alignment.rewards import Episode
from stemma.errors import InputError

ONES = [Episode("?", text) for text in ("a a a", "b", "c c", "d")]
OTHERS = [Episode("?", text) for text in ("a", "b", "c", "d d d")]


def length(episodes):
    return [len(one.response) for one in episodes]


def test_win_rates_by_a_reward():
    found = prefer(ONES, OTHERS, judge_by_reward(length))
    assert (found.wins, found.ties, found.losses, found.prompts) == (2, 1, 1, 4)
    assert found.win_rate.estimate == pytest.approx(2.5 / 4)
    assert found.win_rate.low < 2.5 / 4 < found.win_rate.high
    assert found.words == (7 / 4, 6 / 4) and found.longer_wins == 1.0 and found.consistent == 1.0
    shorter = prefer(ONES, OTHERS, judge_by_reward(lambda some: [-number for number in length(some)]))
    assert shorter.longer_wins == 0.0 and shorter.win_rate.estimate == pytest.approx(1.5 / 4)


@contextmanager
def endpoint(answer) -> Iterator[tuple[str, list]]:
    """A server of chat completions that says `answer(question)`; what it was asked is kept."""

    def chat(body):
        status, said = answer(body["messages"][0]["content"])
        return status, {"choices": [{"message": {"content": said}}]}

    with serving(chat) as found:
        yield found


def longer_one(question):
    first, second = question.split("[Answer A]\n")[1].split("\n\n[Answer B]\n")
    second = second.split("\n\nReply")[0]
    return 200, "A." if len(first) > len(second) else " **B**" if len(first) < len(second) else "A tie."


def test_an_endpoint_is_asked_in_both_orders():
    with endpoint(longer_one) as (url, asked):
        judge = judge_by_endpoint(url, "judge-1", key="secret")
        found = prefer(ONES, OTHERS, judge)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1) and found.consistent == 1.0
    assert len(asked) == 8
    assert {(one["path"], one["key"], one["model"], one["temperature"]) for one in asked} == {
        ("/v1/chat/completions", "Bearer secret", "judge-1", 0)
    }


def test_a_judge_who_likes_the_first_one_says_nothing():
    with endpoint(lambda question: (200, "A")) as (url, _):
        found = prefer(ONES, OTHERS, judge_by_endpoint(url, "judge-1"))
    assert found.ties == 4 and found.consistent == 0.0 and found.win_rate.estimate == 0.5


def test_answers_that_are_none():
    for answer, message in (
        (lambda question: (200, "I cannot say"), "the judge said 'I cannot say', expected A, B or tie"),
        (lambda question: (401, "who?"), "the judge answered 401"),
    ):
        with endpoint(answer) as (url, _), pytest.raises(InputError, match=message):
            judge_by_endpoint(url, "judge-1")([(ONES[0], OTHERS[0])])
    with pytest.raises(InputError, match="no answer of a judge .* expected an OpenAI-compatible endpoint"):
        judge_by_endpoint("http://127.0.0.1:9/v1", "judge-1")([(ONES[0], OTHERS[0])])
    with pytest.raises(InputError, match="which model of the endpoint"):
        judge_of("http://127.0.0.1:9/v1", None)


def test_models_and_demonstrations_write(tmp_path):
    directory, prompts = directory_of("gpt", tmp_path), prompts_file(tmp_path)
    how = {"longest": 6, "temperature": 1.0, "most": 5}
    first, second = writer_of(str(directory), str(prompts), **how)(), writer_of(str(directory), str(prompts), **how)()
    assert first == second and len(first) == 5
    assert first != writer_of(str(directory), str(prompts), seed=2, **how)()
    with pytest.raises(InputError, match="row 1 has no 'response' to compare with; name another model"):
        writer_of("response", str(prompts), **how)
    rows = [{"prompt": "the quick", "response": "brown fox"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one.response for one in writer_of("response", str(prompts), **how)()] == ["brown fox"]


def test_a_reward_model_judges_texts_of_any_tokenizer(tmp_path):
    model, tokenizer = policy_of("gpt")
    RewardModel(model, with_reading(model, tokenizer).reading).save(tokenizer, tmp_path / "reward")
    judge = judge_of(str(tmp_path / "reward"), None)
    pairs = list(zip(ONES, OTHERS, strict=True))
    verdicts = judge(pairs)
    assert verdicts.wins[1] == 0.5  # the same text
    assert (judge([(b, a) for a, b in pairs]).wins == 1 - verdicts.wins).all()
    assert set(verdicts.wins) > {0.5}
