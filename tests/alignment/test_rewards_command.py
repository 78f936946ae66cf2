"""`stemma align ppo`, `grpo` and `docstrings`, and `stemma evaluate --task preference`, as a person types them."""

import json

import pytest
from policies import directory_of, prompts_file
from typer.testing import CliRunner

from stemma.alignment.rails import RunAway
from stemma.cli import build
from stemma.errors import InputError


@pytest.fixture
def setup(tmp_path):
    return str(directory_of("gpt", tmp_path)), str(prompts_file(tmp_path))


def stemma(*arguments):
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


SHORT = ("training.batch=4", "rollout.longest=4", "evaluation.prompts=2")


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_run_and_what_it_prints(method, setup, tmp_path):
    model, prompts = setup
    common = ("align", method, model, *SHORT, "--prompts", prompts, "--out", tmp_path / "out")
    reward = ("--reward", "stemma.alignment.rewards:exact_answer")
    found = stemma(*common, *reward, "training.steps=2")
    assert found.exit_code == 0, found.output
    assert "prompts" in found.output and "held-out reward" in found.output and "KL" in found.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = stemma(*common, *reward, "training.steps=2", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["steps"] == 2
    other = stemma(*common, *reward, "training.steps=2", "update.clip=0.1")
    assert isinstance(other.exception, InputError) and "update.clip: 0.1, 0.2" in str(other.exception)


def test_a_run_that_ran_away_says_where(setup, tmp_path):
    model, prompts = setup
    found = stemma(
        *("align", "ppo", model, *SHORT, "training.steps=20", "training.lr=0.03", "rails.kl=0.01"),
        *("--prompts", prompts, "--reward", "policies:vowels", "--out", tmp_path / "out"),
    )
    assert isinstance(found.exception, RunAway)
    assert str(found.exception).startswith("stopped at step") and "rails.kl" in str(found.exception)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rollout.longset=4", r"rollout.longset: unknown key \(did you mean 'longest'\?\)"),
        ("update.epochs=0", "update.epochs: input should be greater than 0, got 0"),
        ("rollout.longest=64", "are more than the model's context of 64"),
        ("prompts.held_out=0.00001", "nothing would be held out"),
    ],
)
def test_mistakes_are_one_line(change, message, setup, tmp_path):
    model, prompts = setup
    found = stemma(
        *("align", "ppo", model, change, "--prompts", prompts, "--reward", "policies:vowels", "--out", tmp_path / "out")
    )
    assert isinstance(found.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise found.exception


def test_preference(setup):
    model, prompts = setup
    common = ("evaluate", model, prompts, "--task", "preference", "--longest", 4, "--most", 6)
    found = stemma(*common, "--against", model, "--judge", "policies:vowels", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert (result["prompts"], result["ties"], result["win_rate"]) == (6, 6, 0.5)  # it writes the same twice
    assert "win rate 50.0%" in stemma(*common, "--against", model, "--judge", "policies:vowels").output
    assert "who judges" in str(stemma(*common, "--against", model).exception)
    wrong = stemma("evaluate", model, prompts, "--task", "preferense", "--judge", "policies:vowels")
    assert "did you mean 'preference'" in str(wrong.exception)


def test_the_docstring_task(setup, tmp_path, monkeypatch):
    from stemma.alignment import docstring_task
    from stemma.alignment.docstring_task import Item

    items = tuple(Item(f"m{number}", f"m{number}.f(x)", f"Return number {number} of them.") for number in range(30))
    monkeypatch.setattr(docstring_task, "_library", lambda: (items, frozenset(["return"])))
    found = stemma("align", "docstrings", tmp_path / "task", "--sampled-from", setup[0])
    assert found.exit_code == 0, found.output
    rows = [json.loads(line) for line in (tmp_path / "task" / "comparisons.jsonl").read_text().splitlines()]
    assert rows and all(sorted(row["ranks"]) == [1, 2, 3, 4] and len(row["responses"]) == 4 for row in rows)
    assert "comparisons.jsonl" in found.output.replace("\n", "")
