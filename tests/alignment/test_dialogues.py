"""Demonstrations and comparisons from files, and one line for what is wrong with them."""

import json

import pytest

from stemma.alignment.comparisons import Comparison, ranked_pairs, read_comparisons
from stemma.alignment.dialogues import Dialogue, key_of, read_dialogues, read_parts
from stemma.alignment.recipe import ComparisonRecipe, DialogueRecipe
from stemma.alignment.score import read_responses
from stemma.errors import InputError

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def write(tmp_path):
    def call(*rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return call


def dialogues(path, **columns):
    return read_dialogues(path, DialogueRecipe(train=path, **columns))


def comparisons(path, **columns):
    return read_comparisons(path, ComparisonRecipe(train=path, **columns))


def test_demonstrations_in_every_shape(write):
    path = write(
        {"prompt": "a", "response": ""},
        {"messages": MESSAGES, "prompt": None},
        {"messages": "\n\nHuman: a \n\nAssistant: b"},
        {"prompt": MESSAGES[:1], "response": "b"},
    )
    assert dialogues(path) == [
        Dialogue("a", ""),
        Dialogue(messages=MESSAGES),
        Dialogue(messages=MESSAGES),
        Dialogue(MESSAGES[:1], "b"),
    ]
    assert dialogues(write({"asked": "a", "said": "b"}), prompt="asked", response="said") == [Dialogue("a", "b")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "line 1: .*'response'"),
        ({"prompt": "a", "response": 3}, "line 1: field 'response' is '3'"),
        ({"prompt": None, "response": "b"}, "line 1: field 'prompt' is 'None'"),
        ({"messages": MESSAGES[:1]}, "line 1: the assistant says nothing"),
        ({"messages": "Human: a"}, "line 1: 'Human: a' is neither messages nor a transcript"),
        ({"messages": [3]}, "line 1: a message is '3'"),
    ],
)
def test_what_is_no_demonstration(write, row, message):
    with pytest.raises(InputError, match=message):
        dialogues(write(row))


def test_no_demonstrations(write):
    with pytest.raises(InputError, match="no rows"):
        dialogues(write())


def test_a_pair_in_every_shape_and_the_pairs_of_one_prompt_together(write):
    path = write(
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "p", "chosen": "c", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: b"},
        {
            "prompt": MESSAGES,
            "chosen": [*MESSAGES[:1], MESSAGES[1]],
            "rejected": [MESSAGES[0], MESSAGES[1] | {"content": "c"}],
        },
        {"prompt": MESSAGES[:1], "chosen": "b", "rejected": "c"},
    )
    found = comparisons(path)
    assert (found.ties, found.apart, found.pairs) == (1, 1, 5)
    assert found.prompts == [
        Comparison("p", ("a", "b", "c"), ((0, 1), (2, 1))),
        Comparison([{"role": "user", "content": "q"}], ("a", "b"), ((0, 1),)),
        Comparison([*MESSAGES, MESSAGES[0]], ("b", "c"), ((0, 1),)),
        Comparison(MESSAGES[:1], ("b", "c"), ((0, 1),)),
    ]


def test_a_ranking_gives_all_pairs_of_different_ranks(write):
    path = write({"prompt": "p", "responses": ["a", "b", "c", "b"], "ranks": [2, 1, 2, 3]})
    found = comparisons(path)
    # a and c are of the same rank, b stands twice
    assert found.prompts[0].pairs == ((1, 0), (0, 1), (1, 2), (2, 1)) and found.ties == 2
    assert ranked_pairs([1, 1, 1]) == [] and ranked_pairs([3, 1, 2]) == [(1, 0), (2, 0), (1, 2)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "line 1: .*'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "line 1: field 'rejected' is '3'"),
        ({"chosen": "a", "rejected": "b"}, "line 1: 'a' is neither messages nor a transcript"),
        ({"chosen": MESSAGES[:1], "rejected": MESSAGES[:1]}, "line 1: the last message .* is not the assistant's"),
        ({"chosen": MESSAGES[1:], "rejected": MESSAGES[1:]}, "line 1: the assistant speaks first"),
        ({"prompt": "p", "responses": ["a", "b"]}, "line 1: .*'ranks'"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "line 1: expected two or more 'responses'"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}, "no row in which a response is better"),
    ],
)
def test_what_is_no_comparison(write, row, message):
    with pytest.raises(InputError, match=message):
        comparisons(write(row))


def test_a_share_is_held_out_by_prompt(write):
    rows = [{"prompt": f"p{number // 2}", "chosen": f"a{number}", "rejected": "b"} for number in range(80)]
    path = write(*rows)

    def read(name):
        return comparisons(name).prompts

    train, dev = read_parts(path, 0.2, read, lambda one: key_of(one.prompt))
    assert len(train) + len(dev) == 40 and 2 < len(dev) < 16
    assert not {one.prompt for one in train} & {one.prompt for one in dev}
    other = write(rows[0], name="dev.jsonl")
    assert read_parts(path, other, read, None) == (read(path), read(other))


def test_responses_to_score_in_every_shape(write):
    path = write({"prompt": "a", "response": "b"}, {"prompt": "a", "responses": ["b", "c"]}, {"messages": MESSAGES})
    names = {"prompt": "prompt", "response": "response", "responses": "responses", "messages": "messages"}
    found = list(read_responses(path, **names))
    assert [(one.prompt, one.responses) for one in found] == [("a", ["b"]), ("a", ["b", "c"]), (MESSAGES[:1], ["b"])]
    for row, message in (
        ({"messages": MESSAGES[:1]}, "line 1: the last message is not an answer"),
        ({"prompt": "a", "responses": "b"}, "line 1: field 'responses' is no list"),
        ({"prompt": "a"}, "line 1: .*'response'"),
    ):
        with pytest.raises(InputError, match=message):
            list(read_responses(write(row), **names))
