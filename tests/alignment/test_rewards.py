"""Rewards by the names of functions, and what they may return."""

import re

import pytest
from policies import prompts_file

from stemma.alignment.prompts import read_both, read_prompts
from stemma.alignment.rewards import Episode, exact_answer, is_function, load_function, scores_of
from stemma.errors import InputError

EPISODES = [Episode("2 + 2 =", " 4\n", row={"answer": 4}), Episode("2 + 3 =", "6", row={"answer": "5"})]


def test_functions_have_names(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def judge(episodes):\n    return [len(one.response) for one in episodes]\n")
    assert scores_of(load_function(f"{tmp_path}/mine.py:judge"), EPISODES).tolist() == [3, 1]
    monkeypatch.chdir(tmp_path)
    assert scores_of(load_function("mine:judge"), EPISODES).tolist() == [3, 1]
    assert is_function("mine:judge") and is_function("runs/a.py:judge")
    assert not is_function("runs/reward") and not is_function("hf:owner") and not is_function("C:\\reward")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:judge", "reward: no module 'nowhere'; expected module:function or file.py:function"),
        ("nowhere.py:judge", "reward nowhere.py: no such file"),
        (
            "stemma.alignment.rewards:exact_answers",
            "reward stemma.alignment.rewards:exact_answers: no function 'exact_answers' in stemma.alignment.rewards "
            "(did you mean 'exact_answer'?)",
        ),
    ],
)
def test_a_function_that_is_not_there(name, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_function(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "the reward function returned 1 numbers for 2 episodes"),
        ("not_numbers", "the reward of episode 1 is nan, expected a finite number"),
    ],
)
def test_a_function_must_return_a_number_for_each(name, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        scores_of(load_function(f"policies:{name}"), EPISODES)
    with pytest.raises(InputError, match="something that is no number"):
        scores_of(lambda episodes: ["good", "bad"], EPISODES)


def test_exact_answers():
    assert exact_answer(EPISODES) == [1.0, 0.0]
    with pytest.raises(InputError, match="a row without an 'answer'"):
        exact_answer([Episode("?", "!")])


def test_prompts_keep_what_stands_beside_them(tmp_path):
    path = prompts_file(tmp_path)
    rows = read_prompts(str(path))
    assert rows[0].prompt == "the the" and rows[0].row == {"answer": "the"}
    train, held_out = read_both(str(path), 0.2)
    assert len(train) + len(held_out) == len(rows) and len(held_out) > 2
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert [row.prompt for row in read_both(str(path), str(path))[1]] == [row.prompt for row in rows]


def test_prompts_that_cannot_be_used(tmp_path):
    path = tmp_path / "prompts.jsonl"
    for content, message in (
        ('{"question": "?"}\n', "prompt"),
        ('{"prompt": ""}\n', "line 1: the prompt is empty"),
        ("\n", "no rows, expected at least one prompt"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_prompts(str(path))
