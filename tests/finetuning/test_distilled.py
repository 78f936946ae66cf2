"""Classifiers taught by classifiers: the loss written out, teachers of other families, and mistakes in one line."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import directory_of, recipe_of

from stemma.cli import main
from stemma.data.labelled import LabelledData
from stemma.errors import InputError
from stemma.finetuning.distilled import SoftTargets, taught, teacher_scores
from stemma.finetuning.recipe import SoftTargetRecipe
from stemma.finetuning.run import build, finetune, read_splits

WORDS = ["dog", "cat", "fox", "red", "blue", "green"]
ROWS = [{"text": f"{verb} {word}", "label": "animal" if word in WORDS[:3] else "colour"} for verb in ("the", "a good")
        for word in WORDS]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and two teachers that have learned it for a moment."""
    folder = tmp_path_factory.mktemp("distilled")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "more.jsonl").write_text("\n".join(json.dumps({"text": f"who sees {word}"}) for word in WORDS))
    for family in ("bert", "glm", "gpt"):
        directory_of(family, folder)
    for family in ("bert", "glm"):
        finetune(settings(folder, family, steps=8), folder / f"taught-{family}")
    return folder


def settings(folder, family, **training):
    data = {"train": str(folder / "train.jsonl"), "dev": str(folder / "train.jsonl")}
    return recipe_of(folder / family, {}, data, **training)


def soft(folder, **more):
    return SoftTargetRecipe(teachers=(str(folder / "taught-bert/best"), str(folder / "taught-glm/best")), **more)


@pytest.mark.parametrize("family", ["gpt", "glm"])
def test_the_loss_is_labels_and_teachers(folder, family):
    recipe = settings(folder, family, steps=1)
    train = read_splits(recipe).train
    model, tokenizer, objective, _ = build(recipe, train)
    model.eval()
    options = soft(folder, temperature=3.0, weight=0.6, unlabelled=str(folder / "more.jsonl"))
    distilled, examples, _ = taught(options, recipe.data, train, objective, tokenizer)
    assert isinstance(distilled, SoftTargets) and len(examples) == len(ROWS) + len(WORDS)
    loss, sums = distilled.loss(model, distilled.collate(examples))
    texts = LabelledData([*train.texts, *[(f"who sees {word}",) for word in WORDS]], [0] * 18, train.label_names)
    p = sum((teacher_scores(name, texts) / 3).softmax(-1) for name in options.teachers) / 2
    scores = objective.scores(model, objective.collate(objective.encode(texts, tokenizer))).float()
    q = (scores / 3).softmax(-1)
    each = 0.6 * 9 * (p * (p / q).log()).sum(-1)
    each[: len(ROWS)] += 0.4 * F.cross_entropy(scores[: len(ROWS)], torch.tensor(train.labels), reduction="none")
    assert float(loss) == pytest.approx(float(each.mean()), rel=1e-4)
    assert float(sums["nll"]) == pytest.approx(float(each.sum()), rel=1e-4) and sums["targets"] == 18


def test_classes_go_by_their_names(folder):
    data = LabelledData([("the dog",), ("red",)], [0, 0], ("animal", "colour"))
    name = str(folder / "taught-bert/best")
    turned = LabelledData(data.texts, data.labels, ("colour", "animal"))
    np.testing.assert_allclose(teacher_scores(name, turned).flip(1), teacher_scores(name, data))
    for names, message in (
        (("animal", "color"), r"knows no class 'color' \(did you mean 'colour'\?\)"),
        (("animal",), "knows a class 'colour' that no training example has"),
    ):
        with pytest.raises(InputError, match=message):
            teacher_scores(name, LabelledData(data.texts, data.labels, names))
    with pytest.raises(InputError, match="reads single texts"):
        teacher_scores(name, LabelledData([("a", "b")], [0], ("animal", "colour")))


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stemma", "distill", "classifier", str(folder / "gpt"), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    teacher, train = ("--teacher", str(folder / "taught-bert/best")), ("--train", str(folder / "train.jsonl"))
    few = ("training.steps=2", "training.epochs=null", "--dev", str(folder / "train.jsonl"))
    code, said, error = run(*teacher, *train, *few, "--temperature", "4", "--out", str(tmp_path / "o"), "--json")
    assert code == 0 and json.loads(said)["steps"] == 2 and "temperature 4, weight 0.9" in error
    code, _, error = run(*teacher, *train, *few, "--temperature", "5", "--out", str(tmp_path / "o"))
    assert code == 2 and "distillation" in error
    code, _, error = run(*teacher, *train, *few, "distillation.weights=[1,2]", "--out", str(tmp_path / "p"))
    assert code == 2 and "2 weights for 1 teachers" in error
    code, _, error = run(*teacher, *train, *few, "task.kind=regression", "--out", str(tmp_path / "p"))
    assert code == 2
    code, _, error = run(*teacher, *train, *few, "--unlabelled", str(folder / "train.jsonl"), "--text", "words")
    assert code == 2 and "words" in error
