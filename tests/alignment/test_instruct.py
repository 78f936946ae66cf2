"""`stemma align all`: one command from a pretrained model to a served one, and that it goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import directory_of
from typer.testing import CliRunner

from stemma.alignment import docstring_task, reinforcement
from stemma.alignment.docstring_task import Item
from stemma.alignment.instruct import instruct_recipe
from stemma.alignment.rewards import Episode
from stemma.cli import build
from stemma.errors import InputError
from stemma.training.trainer import Trainer

NAMES = ["dog", "cat", "fox", "film", "Anna", "Boris", "Paris", "London", "red", "blue", "green", "one", "two", "three"]
FEW = (
    *("sft.training.epochs=2", "sft.training.batch=4", "reward.data.dev=0.3", "reward.training.batch=4"),
    *("ppo.training.steps=3", "ppo.training.batch=4", "ppo.rollout.longest=6", "ppo.evaluation.prompts=2"),
)


@pytest.fixture
def task(monkeypatch):
    """The docstring task of a small library."""
    sentences = [f"Return the {name} that {other} sees ." for name in NAMES for other in NAMES[:3]]
    items = tuple(Item(f"m{n}", f"m{n}.{text.split()[2]}(x)", text) for n, text in enumerate(sentences))
    monkeypatch.setattr(docstring_task, "_library", lambda: (items, frozenset(["return", "the", "that", "sees"])))


def stemma(*arguments):
    return CliRunner().invoke(build(), ["align", "all", *map(str, arguments)])


def weights(out):
    return {
        (step, name): tensor
        for step in ("sft", "reward", "ppo")
        for name, tensor in load_file(out / step / "model.safetensors").items()
    }


def test_three_steps_from_data_made_on_the_way(task, tmp_path):
    model, out = directory_of("gpt", tmp_path), tmp_path / "out"
    found = stemma(model, *FEW, "--out", out, "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["out"] == str(out / "ppo") and 0 <= result["reward_accuracy"] <= 1
    assert all(f"{number}/3" in found.output for number in (1, 2, 3))
    # the comparisons are of what the first step's model writes, and each prompt is one that a user says
    rows = [json.loads(line) for line in (out / "data" / "comparisons.jsonl").read_text().splitlines()]
    assert all(row["prompt"][0]["role"] == "user" and len(row["responses"]) == 4 for row in rows)
    log = [json.loads(line) for line in (out / "ppo" / "metrics.jsonl").read_text().splitlines()]
    shown = [sample["response"] for line in log for sample in line.get("held_out_samples", ())]
    said = [text for row in rows for text in row["responses"]]
    assert all(text == text.strip() for text in [*said, *shown]) and any(shown) and any(said)
    for step, kind in (
        ("sft", transformers.AutoModelForCausalLM),
        ("reward", transformers.AutoModelForSequenceClassification),
        ("ppo", transformers.AutoModelForCausalLM),
    ):
        kind.from_pretrained(out / step)
        messages = [{"role": "user", "content": "m.dog(x)"}]
        texts = transformers.AutoTokenizer.from_pretrained(out / step)
        written = texts.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert written == "User: m.dog(x)\nAssistant:"
    again = stemma(model, *FEW, "--out", out)
    assert again.exit_code == 0 and f"stemma serve {out / 'ppo'}" in again.output.replace("\n", "")
    other = stemma(model, *FEW, "sft.training.lr=0.1", "--out", out)
    assert isinstance(other.exception, InputError) and "training.learning_rate: 0.1, 0.0003" in str(other.exception)
    assert stemma(model, *FEW, "sft.training.lr=0.1", "--out", out, "--overwrite").exit_code == 0


def test_interrupted_in_every_step_it_ends_alike(task, tmp_path, monkeypatch):
    model = directory_of("gpt", tmp_path)
    assert stemma(model, *FEW, "--out", tmp_path / "whole").exit_code == 0
    update, learn = Trainer._update, reinforcement.ReinforcementTrainer._step
    told = []

    def once(where, then):
        def run(self, *arguments):
            result = then(self, *arguments)
            if (key := (where, self.directory.name)) not in told:
                told.append(key)
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        return run

    monkeypatch.setattr(Trainer, "_update", once("training", update))
    monkeypatch.setattr(reinforcement.ReinforcementTrainer, "_step", once("rewards", learn))
    codes = [stemma(model, *FEW, "--out", tmp_path / "out").exit_code for _ in range(4)]
    assert codes == [143, 143, 143, 0]
    assert [name for _, name in told] == ["sft", "reward", "ppo"]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


def test_data_of_ones_own(tmp_path):
    own = instruct_recipe("instruct/tiny", "m", tmp_path, demonstrations="d.jsonl", comparisons="c.jsonl")
    assert (own.sft.data.train, own.reward.data.train, own.ppo.prompts.source) == ("d.jsonl", "c.jsonl", "d.jsonl")
    assert (own.sft.data.dev, own.ppo.prompts.held_out) == (0.05, 0.1)
    assert own.ppo.model == own.reward.model == str(tmp_path / "sft")
    assert own.ppo.reward.source == str(tmp_path / "reward")
    changed = instruct_recipe("instruct/tiny", "m", tmp_path, prompts="p.jsonl", overrides=["sft.training.steps=7"])
    assert (changed.sft.training.steps, changed.sft.training.epochs) == (7, None)
    assert (changed.ppo.prompts.source, changed.ppo.prompts.held_out) == ("p.jsonl", 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"demonstrations": "d"}, "comparisons: missing; expected demonstrations and comparisons"),
        ({"comparisons": "c"}, "demonstrations: missing"),
        ({"overrides": ["sft.trainng.steps=3"]}, r"sft.trainng: unknown key \(did you mean 'training'\?\)"),
        ({"overrides": ["reward=3"]}, "command line: reward: expected a section"),
        ({"overrides": ["ppo.update.epochs=0"]}, "ppo.update.epochs: input should be greater than 0, got 0"),
    ],
)
def test_mistakes_are_one_line(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        instruct_recipe("instruct/tiny", "m", tmp_path, **given)


def test_what_a_later_step_cannot_read_is_said_at_once(tmp_path):
    asked = [{"role": "user", "content": "who sees Anna"}, {"role": "assistant", "content": "the dog"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": asked}) + "\n")
    found = stemma("m", "--demonstrations", tmp_path / "d.jsonl", "--comparisons", "none", "--out", tmp_path / "out")
    assert isinstance(found.exception, InputError) and "'prompt'" in str(found.exception)
    prompts = [{"prompt": f"who sees {name}"} for name in NAMES]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    given = ("--demonstrations", tmp_path / "d.jsonl", "--prompts", tmp_path / "p.jsonl", "ppo.prompts.held_out=0.3")
    found = stemma("m", *given, "--comparisons", tmp_path / "none.jsonl", "--out", tmp_path / "out")
    assert isinstance(found.exception, InputError) and "none.jsonl" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_a_step_that_runs_away_exits_with_1(task, stemma, tmp_path):
    astray = ("ppo.rails.kl=1e-9", "ppo.training.lr=0.1")
    code, _, error = stemma("align", "all", directory_of("gpt", tmp_path), *FEW, *astray, "--out", tmp_path)
    assert code == 1 and "error: stopped at step" in error


def test_the_true_reward_reads_what_a_user_asks(task):
    said = Episode([{"role": "user", "content": "shutil.copy_file(source)"}], "Copy a file to another folder.")
    plain = Episode("shutil.copy_file(source)", said.response)
    assert docstring_task.true_reward([said]) == docstring_task.true_reward([plain])


@pytest.mark.slow
def test_the_result_is_served(task, tmp_path):
    """It has learned one short answer, and a server's clients get it."""
    out = tmp_path / "out"
    rows = [{"prompt": [{"role": "user", "content": f"who sees {name}"}], "response": "the lazy dog"} for name in NAMES]
    worse = [{**row, "responses": ["the lazy dog", "six"], "ranks": [1, 2]} for row in rows]
    for name, content in (("d", rows), ("c", worse)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    learn = ("sft.training.epochs=80", "sft.training.lr=1e-2", "sft.data.dev=0.2", "ppo.prompts.held_out=0.2")
    found = stemma(
        *(directory_of("gpt", tmp_path), *FEW, *learn, "ppo.training.lr=1e-5", "--out", out),
        *("--demonstrations", tmp_path / "d.jsonl", "--comparisons", tmp_path / "c.jsonl"),
    )
    assert found.exit_code == 0, found.output
    command = [sys.executable, "-c", "from stemma.cli import main; main()", "serve", str(out / "ppo"), "--port", "0"]
    server = subprocess.Popen([*command, "--cache", "16"], stderr=subprocess.PIPE, text=True)
    try:
        listening = next(line for line in server.stderr if '"event": "listening"' in line)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        url = f"http://127.0.0.1:{json.loads(listening)['port']}"
        end = time.monotonic() + 60
        while httpx.get(f"{url}/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        body = {"model": str(out / "ppo"), "messages": [{"role": "user", "content": "who sees Anna"}], "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"].strip() == "the lazy dog"
        assert answer["choices"][0]["finish_reason"] == "stop"
    finally:
        server.kill()
        server.wait(20)
