"""The task's true reward: what it gives to good and bad responses, and to what would fool a simpler one."""

import json

import numpy as np
import pytest

from stemma.alignment import docstring_task
from stemma.alignment.docstring_data import write_task
from stemma.alignment.docstring_task import (
    LABELLERS_AGREE,
    rank_by_labeller,
    read_library,
    split_by_module,
    true_reward,
    worth,
)
from stemma.alignment.rewards import Episode
from stemma.data.python_corpus import python_files

PROMPT = "pathlib.PurePath.with_suffix(suffix)"
KNOWN = frozenset(["return", "a", "new", "path", "with", "the", "file", "suffix", "changed"])


@pytest.mark.parametrize(
    ("response", "ended", "expected"),
    [
        # 9 words, all known, no trigram twice; "path", "suffix", "with" are in the name; return, a, new, the, file ...
        ("Return a new path with the file suffix changed.", True, 0.2 + 0.15 * 0.9 + 0.15 + 0.15 + 0.35),
        ("Return a new path with the file suffix changed.", False, 0.1 + 0.15 * 0.9 + 0.15 + 0.15 + 0.35),
        ("Return a new path with the file suffix changed", True, 0.1 + 0.15 * 0.9 + 0.15 + 0.15 + 0.35),
        # 4 of 6 words are known, and enough; nothing is about the name.
        ("Return a new foo bar file.", True, 0.2 + 0.15 * 0.6 + 0.15 * (4 / 6) ** 2 + 0.15),
        # Three words: half of what is for known and distinct words; one word of two about the name, two of four new.
        ("Return a path.", True, 0.2 + 0.15 * 0.3 + 0.3 * 0.5 + 0.35 * 0.5 * 0.5),
        ("", True, 0.1),
        ("", False, 0.0),
    ],
)
def test_the_reward_by_hand(response, ended, expected):
    assert worth(PROMPT, response, ended, KNOWN) == pytest.approx(expected)


@pytest.fixture(scope="module")
def library():
    """An eighth of the library, with what a whole word of it needs to be known."""
    return read_library(python_files()[::8])


@pytest.fixture(scope="module")
def items(library):
    return library[0]


@pytest.fixture
def part_of_it(library, monkeypatch):
    """The task without the rest of the library, which takes seconds to read."""
    monkeypatch.setattr(docstring_task, "_library", lambda: library)


def mean(items, respond, ended=True):
    return np.mean(true_reward([Episode(one.prompt, respond(one, items), ended) for one in items]))


def test_references_are_worth_more_than_what_would_fool_it(items, part_of_it):
    """Every cheap way to earn is worth less than to do the task."""
    reference = mean(items, lambda one, _: one.response)
    cheats = {
        "no end": (lambda one, _: one.response, False),
        "a stranger's": (lambda one, every: every[every.index(one) - 7].response, True),
        "cut": (lambda one, _: " ".join(one.response.split()[:6]), True),
        "three times": (lambda one, _: " ".join([one.response] * 3), True),
        "the name": (lambda one, _: f"The {one.prompt.replace('.', ' ').replace('_', ' ')}.", True),
        "one word": (lambda one, _: " ".join(["the"] * 20), True),
        "letters": (lambda one, _: "qx wv zzk jq xv kq pf zx wq jv.", True),
    }
    assert 0.7 < reference < 0.9
    for name, (respond, ended) in cheats.items():
        assert mean(items, respond, ended) < reference - 0.07, name


def test_the_items_are_sentences_of_public_names(library):
    items, known = library
    assert len(items) > 100
    assert len({one.response for one in items}) == len(items)
    for one in items:
        assert one.response.endswith(".") and one.response.isascii() and "\n" not in one.response
        assert one.prompt.startswith(one.module) and "._" not in one.prompt
    assert {"return", "the", "object"} <= known and "zzk" not in known


def test_items_of_one_file():
    (path,) = (path for path in python_files() if path.parts[-2:] == ("json", "decoder.py"))
    found = {item.prompt: item.response for item in read_library([path])[0]}
    assert found["json.decoder.JSONDecoder.decode(s, _w)"] == (
        "Return the Python representation of ``s`` (a ``str`` instance containing a JSON document)."
    )
    assert "json.decoder.JSONArray" not in " ".join(found)  # it has no docstring


def test_no_module_is_on_both_sides(items):
    train, held_out = split_by_module(items)
    assert not {one.module for one in train} & {one.module for one in held_out}
    assert 0.05 < len(held_out) / len(items) < 0.3


def test_labellers_agree_as_often_as_people_do_and_like_length():
    rng = np.random.default_rng(0)
    rewards, lengths = rng.random((4000, 4)), rng.integers(4, 20, (4000, 4))
    ranks = rank_by_labeller(rewards, lengths, rng)
    assert np.sort(ranks, axis=1).tolist() == [[1, 2, 3, 4]] * 4000
    one, other = np.triu_indices(4, 1)
    agree = ((rewards[:, one] > rewards[:, other]) == (ranks[:, one] < ranks[:, other])).mean()
    assert agree == pytest.approx(0.85 * LABELLERS_AGREE + 0.15 * 0.5, abs=0.01)
    longer = (lengths[:, one] > lengths[:, other]) == (ranks[:, one] < ranks[:, other])
    assert longer[lengths[:, one] != lengths[:, other]].mean() == pytest.approx(0.85 * 0.5 + 0.15, abs=0.01)


def test_the_task_as_files(items, part_of_it, tmp_path):
    written = write_task(tmp_path)
    assert sum(written.values()) == len(items)
    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"prompt", "response"} and row["prompt"].endswith("\n")
