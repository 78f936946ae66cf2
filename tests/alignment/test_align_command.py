"""`stemma align` through the real entry point: what it prints and writes, and one line for what is wrong."""

import json
import re
import signal
from functools import partial

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from tiny_models import directory_of, model_of

from stemma import families
from stemma.alignment import stage
from stemma.alignment.conversations import DEFAULT_TEMPLATE
from stemma.alignment.recipe import DPORecipe, RewardRecipe, SFTRecipe, build_recipe
from stemma.alignment.reinforcement_recipe import GRPORecipe, PPORecipe, ReinforcementRecipe
from stemma.alignment.reward_model import load_reward_model
from stemma.errors import InputError
from stemma.training.recipe_source import shipped_recipes
from stemma.training.trainer import Trainer

NAMES = ["dog", "cat", "fox", "Anna", "Boris", "red", "blue", "green", "one", "two", "three", "four"]
FEW = ("training.steps=2", "training.epochs=null", "training.batch=4")


@pytest.fixture
def run(stemma):
    """run(*arguments) -> (exit code, standard output, standard error)."""
    return partial(stemma, "align")


@pytest.fixture
def data(tmp_path):
    """data(kind) -> the path of a file of that kind."""

    def write(kind):
        rows = []
        for name in NAMES:
            asked = {"role": "user", "content": f"who sees {name}"}
            if kind == "pairs":
                rows.append({"prompt": f"who sees {name}", "chosen": f" the {name}", "rejected": " a film question"})
            elif kind == "rankings":
                texts = [f" the {name}", " a lazy film", " context", " six"]
                rows.append({"prompt": f"who sees {name}", "responses": texts, "ranks": [1, 2, 2, 4]})
            elif kind == "messages":
                rows.append({"messages": [asked, {"role": "assistant", "content": f"the {name}"}]})
            else:
                rows.append({"prompt": f"who sees {name}", "response": f" the {name}"})
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize("family", ["gpt", "mistral", "mixtral", "glm", "t5"])
def test_demonstrations_teach_every_family(run, data, tmp_path, family):
    model, out = directory_of(family, tmp_path), tmp_path / "out"
    kind = "messages" if family in ("gpt", "t5") else "demonstrations"
    settings = ("training.epochs=25", "training.batch=6", "training.learning_rate=1e-2", "evaluation.every=1000")
    code, printed, error = run(
        "sft", model, *settings, "--train", data(kind), "--dev", data(kind), "--out", out, "--json"
    )
    assert code == 0, error
    results = json.loads(printed)
    assert results["reason"] == "finished" and results["steps"] == 50 and results["examples"] == 12
    assert results["held_out"]["loss"] < 2.5 and results["dropped"] == 0
    assert "tokens are learned (response)" in error
    assert (out / "chat_template.jinja").exists() == (kind == "messages")
    # transformers loads what was learned
    if family in ("gpt", "mistral", "mixtral"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
        ours = families.load(out)
        tokens = torch.arange(5, 15)[None]
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-4, rtol=1e-4)
    elif family == "t5":
        transformers.AutoModelForSeq2SeqLM.from_pretrained(out)
    if kind == "messages":
        texts = transformers.AutoTokenizer.from_pretrained(out)
        messages = [{"role": "user", "content": "a"}]
        assert texts.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "User: a\nAssistant:"
        assert (out / "chat_template.jinja").read_text() == DEFAULT_TEMPLATE


def test_a_template_that_is_given_goes_with_the_model(run, data, tmp_path):
    model, out = directory_of("gpt", tmp_path), tmp_path / "out"
    template = "{% for message in messages %}[{{ message.content }}]{{ eos_token }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    arguments = ("--train", data("messages"), "--dev", 0.3, "--template", tmp_path / "own.jinja")
    code, _, error = run("sft", model, *FEW, *arguments, "--out", out)
    assert code == 0, error
    assert (out / "chat_template.jinja").read_text() == template
    (tmp_path / "own.jinja").write_text("{% if %}")
    code, _, error = run("sft", model, *FEW, *arguments, "--out", tmp_path / "other")
    assert code == 2 and "own.jinja" in error


def test_adapters_are_merged_and_nothing_else_is_trained(run, data, tmp_path):
    model, out = directory_of("gpt", tmp_path), tmp_path / "out"
    code, printed, error = run(
        "sft", model, *FEW, "lora.rank=2", "lora.targets=[query]", "--train", data("demonstrations"), "--out", out,
        "--dev", 0.3, "--loss-on", "all",
    )  # fmt: skip
    assert code == 0 and "LoRA of rank 2" in printed, error
    before, after = (load_file(path / "model.safetensors") for path in (model, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(2)}


@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_a_reward_model_is_reported_on_and_ranks(run, data, tmp_path, kind):
    model, out = directory_of("gpt", tmp_path), tmp_path / "out"
    arguments = ("reward", model, "training.learning_rate=1e-2", "training.batch=2", "training.epochs=4")
    arguments += ("--train", data(kind), "--dev", data(kind), "--out", out)
    code, printed, error = run(*arguments, "--json")
    assert code == 0, error
    results = json.loads(printed)
    assert results["accuracy"]["estimate"] > 0.9 and results["pairs"] == (60 if kind == "rankings" else 12)
    if kind == "rankings":
        assert "12 of the same rank" in error
    # what is best has a mean of 0
    scorer, _ = load_reward_model(out)
    asked = [{"prompt": f"who sees {name}", "response": f" the {name}"} for name in NAMES]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    code, printed, error = run("score", out, tmp_path / "asked.jsonl", "--json")
    assert code == 0, error
    rewards = [row["reward"] for row in json.loads(printed)["rows"]]
    assert sum(rewards) / 12 == pytest.approx(0, abs=1e-4)
    code, printed, _ = run(*arguments)  # finished: only the report
    assert code == 0 and "longer wins" in printed and "% sure" in printed and "correlation with length" in printed
    code, printed, _ = run(
        "score", out, "--prompt", "who sees dog", "--response", " a film question", "--response", " the dog"
    )
    assert code == 0 and printed.index("the dog") < printed.index("a film")
    code, printed, _ = run("score", out, data("rankings"), "--out", tmp_path / "scored.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert code == 0 and len(lines) == 12 and len(lines[0]["rewards"]) == 4 and "..." in printed


def test_demonstrations_may_be_others(run, data, tmp_path):
    model, out = directory_of("t5", tmp_path), tmp_path / "out"
    code, _, error = run(
        "reward", model, *FEW, "--train", data("pairs"), "--dev", data("pairs"), "--out", out,
        "--demonstrations", data("messages"), "lora.rank=2",
    )  # fmt: skip
    assert code == 0, error
    code, printed, error = run("score", out, data("messages"), "--json")
    rewards = [row["reward"] for row in json.loads(printed)["rows"]]
    assert sum(rewards) / 12 == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt", "glm"])
def test_preferences_are_learned_without_a_reward_model(run, data, tmp_path, family):
    model, out = directory_of(family, tmp_path), tmp_path / "out"
    arguments = ("dpo", model, "training.learning_rate=3e-3", "training.batch=4", "training.epochs=5")
    arguments += ("--train", data("pairs"), "--dev", data("pairs"), "--out", out)
    code, printed, error = run(*arguments, "--json")
    assert code == 0, error
    held_out = json.loads(printed)["held_out"]
    assert held_out["accuracy"] > 0.9 and held_out["loss"] < 0.6 and held_out["pairs"] == 12
    assert held_out["chosen_gain"] > held_out["rejected_gain"]
    code, printed, _ = run(*arguments)
    assert code == 0 and "next: stemma chat" in printed and "held out: pairs 12, loss 0." in printed
    families.load(out)


def test_a_run_that_is_interrupted_goes_on_where_it_was(run, data, tmp_path, monkeypatch):
    model = directory_of("gpt", tmp_path)
    arguments = (
        "dpo",
        model,
        "training.batch=4",
        "training.epochs=2",
        "--train",
        data("pairs"),
        "--dev",
        data("pairs"),
    )
    assert run(*arguments, "--out", tmp_path / "whole")[0] == 0
    step = Trainer._after_update

    def interrupt(self):
        step(self)
        if self.progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_after_update", interrupt)
    code, printed, error = run(*arguments, "--out", tmp_path / "halves")
    assert code == 128 + signal.SIGINT and "goes on from here" in printed
    monkeypatch.setattr(Trainer, "_after_update", step)
    code, printed, _ = run(*arguments, "--out", tmp_path / "halves")
    assert code == 0 and "resuming   from step 3" in printed
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.startswith("align/")])
def test_shipped_recipes_are_valid(name):
    stages = {"sft": SFTRecipe, "reward": RewardRecipe, "dpo": DPORecipe, "ppo": PPORecipe, "grpo": GRPORecipe}
    kind = stages[name.removeprefix("align/").removeprefix("instructgpt-").removesuffix("-tiny")]
    if issubclass(kind, ReinforcementRecipe):
        recipe = build_recipe(kind, name, {"model": "m", "prompts": {"source": "p"}, "reward": {"source": "r"}})
        assert recipe.prompts.source == "p" and recipe.prompts.held_out == 0.1
    else:
        recipe = build_recipe(kind, name, {"model": "m", "data": {"train": "t", "dev": None}})
        assert recipe.data.train == "t" and recipe.data.dev == 0.05


def test_what_is_wrong_is_one_line(run, data, tmp_path):
    model, pairs = directory_of("gpt", tmp_path), data("pairs")
    wrong = [
        (("sft", model, "--train", tmp_path / "none.jsonl"), "none.jsonl"),
        (("sft", model, "--train", pairs), "line 1: .*'response'"),
        (("sft", model, "training.lr=x", "--train", pairs), "training.learning_rate"),
        (("sft", model, "objective.loss_upon=all", "--train", pairs), "loss_on"),
        (("reward", model, "--train", data("demonstrations")), "'chosen'"),
        (
            ("reward", model, "data.longest=5", "--train", pairs, "--dev", pairs),
            "no comparison fits into 5",
        ),
        (("dpo", model, "data.longest=5", "--train", pairs, "--dev", pairs), "no comparison fits into 5"),
        (("dpo", model, "--beta", "0", "--train", pairs), "objective.beta"),
        (("score", model, pairs), "no tensor 'score.weight'|'response'"),
        (("score", model), "nothing to score"),
        (("score", model, "--prompt", "a"), "nothing to score"),
        (("ppp",), "no verb 'ppp'"),
    ]
    for arguments, message in wrong:
        extra = () if arguments[0] in ("score", "ppp") else ("--out", tmp_path / "wrong")
        code, _, error = run(*arguments, *extra)
        assert code == 2 and error.count("\n") == 1 and re.search(message, error), (arguments, error)


def test_one_process_on_a_device_that_is_there(run, data, tmp_path, monkeypatch):
    arguments = ("sft", directory_of("gpt", tmp_path), "--train", data("demonstrations"), "--out", tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = run(*arguments, "--dev", 0.3, "execution.device=cuda")
    assert code == 2 and "finds no GPU" in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = run(*arguments, "--dev", 0.3)
    assert code == 2 and "in one process" in error


def test_a_broken_run_is_one_line_and_exit_code_1(run, data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(stage.Trainer, "run", full)
    code, printed, error = run(
        "sft", directory_of("gpt", tmp_path), "--train", data("demonstrations"), "--out", tmp_path / "out", "--dev", 0.3
    )
    assert code == 1 and "error: no space left" in printed + error


def test_dropout_of_the_residual_stream_can_be_set():
    model = model_of("glm")
    model.blocks[0].attention.dropout = 0.1
    stage.set_dropout(model, 0.3)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert model.blocks[0].attention.dropout == 0.0


def test_a_recipe_of_another_stage_is_no_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"objective": {"beta": 1.0}, "training": {"steps": 1}}))
    with pytest.raises(InputError, match="objective.beta: unknown key"):
        build_recipe(SFTRecipe, tmp_path / "recipe.yaml", {"model": "m", "data": {"train": "t"}})
