"""Language models taught token by token: the loss written out, kept or computed, on own words, and whole runs."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import Interrupted
from tiny_models import WORDS, directory_of, model_of, tokenizer_of

from stemma import families
from stemma.alignment.reading import reading_of
from stemma.alignment.recipe import build_recipe
from stemma.alignment.rollouts import write_responses
from stemma.data.tokenizers import train_tokenizer
from stemma.distillation.distil import distil, think
from stemma.distillation.linear_divergence import SoftLoss
from stemma.distillation.recipe import DistillationRecipe, OnPolicyRecipe
from stemma.distillation.teachers import Teacher, load_teachers, order_of
from stemma.distillation.tokens import Taught
from stemma.errors import InputError

NAMES = ["dog", "cat", "fox", "Anna", "Boris", "red", "blue", "green", "one", "two", "three", "four"]


def items(tokenizer):
    pairs = [(f"who sees {name}", f" the {name} and {other}") for name, other in zip(NAMES, NAMES[1:], strict=False)]
    encoded = [(tokenizer.encode(prompt), tokenizer.encode(response)) for prompt, response in pairs[:6]]
    return [{"tokens": np.array([*one, *two], np.int64), "prompt": len(one)} for one, two in encoded]


def taught(family, teachers, loss=None, **options):
    model, tokenizer = model_of(family), tokenizer_of(family)
    reading = reading_of(model, tokenizer)
    others = []
    for name, seed in teachers:
        other = model_of(name, seed=seed)
        others.append(Teacher(other, reading_of(other, tokenizer_of(name)), other.output_weight.detach()))
    return model, Taught(reading, tokenizer, others, loss or SoftLoss(), **options)


def batch_of(objective, some):
    return objective.collate([objective.example(one, np.random.default_rng(0)) for one in some])


@pytest.mark.parametrize("teachers", [[("gpt", 1)], [("mistral", 1)], [("gpt", 1), ("mistral", 2)]])
def test_the_loss_is_the_mean_over_the_responses(teachers):
    model, objective = taught("gpt", teachers, SoftLoss("forward", temperature=2.0, weight=0.7))
    some = items(objective.tokenizer)
    loss, sums = objective.loss(model, batch_of(objective, some))
    soft = hard = count = 0.0
    for one in some:
        places = slice(one["prompt"] - 1, len(one["tokens"]) - 1)
        logits = model(torch.from_numpy(one["tokens"])[None])[0][places]
        theirs = [teacher.model(torch.from_numpy(one["tokens"])[None])[0][places] for teacher in objective.teachers]
        p, q = sum((each / 2).softmax(-1) for each in theirs) / len(theirs), (logits / 2).softmax(-1)
        soft += float(4 * (p * (p / q).log()).sum())
        hard -= float(logits.log_softmax(-1).gather(1, torch.from_numpy(one["tokens"][one["prompt"] :, None])).sum())
        count += len(logits)
    assert sums["targets"] == count
    assert float(sums["soft"]) == pytest.approx(soft, rel=1e-4)
    assert float(sums["hard"]) == pytest.approx(hard, rel=1e-4)
    assert float(loss) == pytest.approx((0.7 * soft + 0.3 * hard) / count, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt", "mistral", "glm", "t5"])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(family, kind):
    model, objective = taught(family, [(family, 0)], SoftLoss(kind))
    loss, _ = objective.loss(model, batch_of(objective, items(objective.tokenizer)))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-6 for p in model.parameters())
    assert all(p.grad is None for p in objective.teachers[0].model.parameters())


def test_hidden_states_are_learned_beside_the_distribution():
    model, objective = taught("gpt", [("gpt", 1), ("mistral", 2)], SoftLoss(weight=0.5), scale=4.0, hidden=3.0)
    some = items(objective.tokenizer)
    loss, sums = objective.loss(model, batch_of(objective, some))
    apart = count = 0.0
    for one in some:
        places, tokens = slice(one["prompt"] - 1, len(one["tokens"]) - 1), torch.from_numpy(one["tokens"])[None]
        own, *theirs = (each.hidden(tokens)[0][places] for each in (model, *(t.model for t in objective.teachers)))
        for other in theirs:
            cosine = (own * other).sum(-1) / (own.norm(dim=-1) * other.norm(dim=-1))
            apart += float((1 - cosine).sum()) / 2
        count += len(own)
    assert float(sums["hidden"]) == pytest.approx(apart, rel=1e-4)
    parts = 2 * float(sums["soft"]) + 2 * float(sums["hard"]) + 3 * apart
    assert float(loss) == pytest.approx(parts / count, rel=1e-4)


def test_micro_batches_add_up():
    model, objective = taught("gpt", [("gpt", 1)], hidden=1.0)
    some = items(objective.tokenizer)
    whole = objective.loss(model, batch_of(objective, some))[0]
    parts = [batch_of(objective, some[start : start + 2]) for start in (0, 2, 4)]
    totals = {"targets": sum(objective.counts(part)["targets"] for part in parts)}
    assert float(sum(objective.loss(model, part, totals)[0] for part in parts)) == pytest.approx(float(whole), rel=1e-5)


def test_tokens_in_another_order():
    tokenizer = tokenizer_of("gpt")
    order = torch.arange(tokenizer.vocabulary).roll(7)
    teacher = model_of("gpt", seed=1)
    moved = model_of("gpt", seed=1)
    with torch.no_grad():
        moved.output_weight[order] = teacher.output_weight
    assert moved.output_weight is moved.get_parameter(
        next(n for n, p in moved.named_parameters() if p is moved.output_weight)
    )
    model, plain = taught("gpt", [("gpt", 1)])
    reading = plain.reading
    other = Teacher(moved, reading_of(moved, tokenizer), moved.output_weight.detach()[order], order)
    objective = Taught(reading, tokenizer, [other], SoftLoss())
    some = items(tokenizer)
    ours, theirs = (one.loss(model, batch_of(one, some))[0] for one in (objective, plain))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_vocabularies_must_agree():
    student = tokenizer_of("gpt")
    assert order_of(student, student, "teacher") is None
    with pytest.raises(InputError, match="teacher has no token .*stemma distill sequences"):
        order_of(train_tokenizer(["other words altogether" * 9], "bpe", 270), student, "teacher")
    with pytest.raises(InputError, match="teacher has a token '<more>' that the student has not"):
        order_of(student.with_special_tokens("<more>"), student, "teacher")


@pytest.mark.parametrize("kept", [None, 400, 20])
def test_records_are_what_the_teachers_think(kept):
    model, live = taught("gpt", [("mistral", 1), ("gpt", 2)], SoftLoss("forward", temperature=2.0))
    some = items(live.tokenizer)
    records = think(live, some, kept, batch=4)
    assert [len(next(iter(one.values()))) for one in records] == [len(i["tokens"]) - i["prompt"] for i in some]
    stored = Taught(live.reading, live.tokenizer, (), live.soft_loss)
    given = [{**item, "record": lambda record=record: record} for item, record in zip(some, records, strict=True)]
    results = []
    for objective, rows in ((live, some), (stored, given)):
        model.zero_grad()
        loss = objective.loss(model, batch_of(objective, rows))[0]
        loss.backward()
        results.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])))
    if kept == 20:  # a lower bound
        assert results[1][0] < results[0][0]
    else:
        assert results[1][0] == pytest.approx(results[0][0], abs=1e-3)
        assert float(torch.cosine_similarity(results[0][1], results[1][1], dim=0)) > 0.9999


def test_on_its_own_responses():
    options = OnPolicyRecipe(share=1.0, longest=5)
    model, objective = taught("gpt", [("gpt", 1)], on_policy=options)
    batch = batch_of(objective, items(objective.tokenizer))
    assert model.training is False
    held_out = objective.loss(model, batch)[0]  # the data's responses
    plain = taught("gpt", [("gpt", 1)])[1]
    assert float(held_out) == pytest.approx(float(plain.loss(model, batch_of(plain, items(plain.tokenizer)))[0]))
    model.train()
    torch.manual_seed(3)
    loss, sums = objective.loss(model, batch)
    assert model.training and 6 <= int(sums["targets"]) <= 30
    torch.manual_seed(3)
    torch.rand(())
    prompts = [one["tokens"][: one["prompt"]].tolist() for one in items(objective.tokenizer)]
    seed = int(torch.randint(1 << 62, ()))
    how = {"seeds": range(seed, seed + 6), "longest": [5] * 6, "temperature": 0.9}
    responses = write_responses(model.eval(), objective.tokenizer, prompts, **how)
    own = [
        {"tokens": np.array([*prompt, *one.tokens]), "prompt": len(prompt)}
        for prompt, (one,) in zip(prompts, responses, strict=True)
    ]
    assert float(loss) == pytest.approx(float(plain.loss(model, batch_of(plain, own))[0]), rel=1e-5)


@pytest.fixture
def run(stemma):
    """run(*arguments) -> (exit code, standard output, standard error)."""
    return partial(stemma, "distill")


def table(folder):
    rows = [{"prompt": f"who sees {name}", "response": f" the {name}", "text": name} for name in NAMES]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "d.jsonl"


FEW = ("training.steps=3", "training.epochs=null", "training.batch=4", "data.dev=0.3", "execution.precision=float32")


def test_from_student_to_a_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, data = directory_of("gpt", tmp_path), table(tmp_path)
    code, said, _ = run("student", teacher, "layers=1", "--out", "small")
    assert code == 0 and "the teacher's layers 0 (from 0): small" in said
    code, said, _ = run("tokens", "small", "--teacher", teacher, "--train", data, "--divergence", "jsd", *FEW, "--json")
    results = json.loads(said)
    assert code == 0 and results["steps"] == 3 and results["held_out"]["perplexity"] > 1
    first = families.load("runs/distill-small")
    assert first.config.layers == 1
    cached = ("--cache", "100000", "--out", "cached", "--json")
    code, said, _ = run("tokens", "small", "--teacher", teacher, "--train", data, "--divergence", "jsd", *FEW, *cached)
    assert code == 0 and json.loads(said)["held_out"]["loss"] == pytest.approx(results["held_out"]["loss"], abs=1e-3)
    warmer = ("--temperature", "2", *cached, "--overwrite")  # what the teachers thought is of no use any more
    code, _, said = run("tokens", "small", "--teacher", teacher, "--train", data, *FEW, *warmer)
    assert code == 0, said


def test_whole_texts(run, tmp_path, monkeypatch):
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    teacher = directory_of("gpt", tmp_path)
    (tmp_path / "t.txt").write_text("".join(f"{name} {WORDS}\n\n" for name in (*NAMES, *WORDS.split())))
    texts = ("--train", tmp_path / "t.txt", "--text", "text", "data.documents=paragraph", "data.longest=16")
    out = ("--out", tmp_path / "o", "--on-policy", "0.5", "--json")
    code, said, error = run("tokens", teacher, "--teacher", teacher, *texts, *FEW, *out)
    assert code == 0 and json.loads(said)["steps"] == 3
    assert "pieces of 16 tokens at most" in error
    t5 = directory_of("t5", tmp_path)
    code, _, error = run("tokens", t5, "--teacher", t5, *texts, *FEW, "--out", tmp_path / "p")
    assert code == 2 and "data.text: whole texts teach GPT, Mistral and Mixtral" in error


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path):
    directory, data = directory_of("gpt", tmp_path), table(tmp_path)
    given = {
        "model": str(directory),
        "data": {"train": str(data), "dev": 0.3},
        "objective": {"teachers": [str(directory)], "on_policy": {"share": 0.5, "longest": 4}, "divergence": "reverse"},
        "training": {"batch": 4, "schedule": {"name": "constant"}},
    }
    recipe = build_recipe(DistillationRecipe, "distill/tiny", given, ["training.steps=5", "training.epochs=null"])

    distil(recipe, tmp_path / "whole")
    outcome, nothing = distil(recipe, tmp_path / "killed", display=Interrupted(2))
    assert outcome.reason == "interrupted" and nothing is None
    assert distil(recipe, tmp_path / "killed")[0].reason == "finished"
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("objective.weights=[1,2]",), "2 weights for 1 teachers, expected one each"),
        (("--on-policy", "0.5", "--cache", "8"), "expected one of on_policy and cache"),
        (("--divergence", "backward"), "objective.divergence"),
        (("data.longest=1000", "objective.teachers=[]"), "objective.teachers"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    teacher = directory_of("gpt", tmp_path)
    code, _, error = run("tokens", teacher, "--teacher", teacher, "--train", table(tmp_path), *arguments)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1


def test_a_teacher_that_reads_less(tmp_path):
    directory_of("gpt", tmp_path, context=32)
    model = model_of("gpt")
    with pytest.raises(InputError, match="reads 32 tokens at most; expected data.longest=32"):
        load_teachers([str(tmp_path / "gpt")], tokenizer_of("gpt"), reading_of(model, tokenizer_of("gpt")))


def test_what_a_teacher_writes(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, data = directory_of("gpt", tmp_path), table(tmp_path)
    for more in (("--beams", "2"), ("--temperature", "1"), ("--beams", "3", "--reference", "text")):
        code, said, error = run("sequences", teacher, "--prompts", data, "--longest", "4", "--out", "w.jsonl", *more)
        assert code == 0 and "12 responses: w.jsonl" in said, error
        rows = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == [f"who sees {name}" for name in NAMES]
        assert all(isinstance(row["response"], str) for row in rows)
    code, _, error = run(
        "sequences", teacher, "--prompts", data, "--reference", "text", "--temperature", "1", "-o", "w"
    )
    assert code == 2 and "expected no --temperature" in error
