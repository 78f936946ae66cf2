"""Label smoothing of every formulation against `F.cross_entropy(label_smoothing=)`, in training only; exact resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_runs import Interrupted, equal, recipe, weights
from tiny_models import model_of, tokenizer_of

from stemma.data.labelled import LabelledData
from stemma.errors import InputError
from stemma.finetuning.checkpoint import TaskDescription, shape_of_head
from stemma.finetuning.heads import WithHead
from stemma.finetuning.objectives import objective_of, smoothed
from stemma.finetuning.reading import prepared
from stemma.finetuning.run import finetune
from stemma.finetuning.task_data import Examples
from stemma.layers.masks import Mask

SHARE = 0.3
CLASSES = LabelledData([("the lazy dog",), ("a good film",), ("red",)], [0, 2, 1], ("good", "bad", "neither"))
TAGS = Examples([("the", "dog"), ("Anna", "sees", "Boris")], [[0, 1], [2, 0, 2]], ("O", "B-X", "I-X"))
CHOICES = Examples([("who", "red", "blue", "green fox"), ("", "one", "two")], [2, 0], ())
TEXTS = Examples([("the quick fox",), ("one two",)], ["red dog", "three"], ())


def set_up(family: str, kind: str, formulation: str, data: LabelledData) -> tuple[Any, Any, Any]:
    """Return a model that says it is in training, without dropout; its smoothed objective; a batch of all examples."""
    model, tokenizer = prepared(model_of(family), tokenizer_of(family))
    names = data.label_names
    task = TaskDescription(kind, formulation, names, False, 40, words=names, longest_target=24)
    objective = smoothed(objective_of(model, tokenizer, task), task, SHARE)
    if formulation == "head":
        model = WithHead(model, *shape_of_head(task))
    model.eval().training = True
    drawn = [objective.example(one, np.random.default_rng(0)) for one in objective.encode(data, tokenizer)]
    return model, objective, objective.collate(drawn)


def checked(model: Any, objective: Any, batch: Any, expected: Any) -> None:
    """`expected(share)` is the loss; unsmoothed where a model is measured."""
    loss, sums = objective.loss(model, batch)
    torch.testing.assert_close(loss, expected(SHARE), atol=1e-6, rtol=1e-5)
    assert abs(loss.item() - expected(0.0).item()) > 1e-4
    assert float(sums["nll"]) / float(sums["targets"]) == pytest.approx(loss.item(), rel=1e-5)
    model.training = False
    torch.testing.assert_close(objective.loss(model, batch)[0], expected(0.0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt", "glm", "t5"])
@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_output_layers(family: str, kind: str) -> None:
    model, objective, batch = set_up(family, kind, "head", CLASSES if kind == "classification" else TAGS)
    logits = model(batch)
    checked(model, objective, batch, lambda share: F.cross_entropy(logits, batch["labels"], label_smoothing=share))
    if kind == "classification":  # what is measured
        torch.testing.assert_close(
            objective.losses(logits, batch["labels"]), F.cross_entropy(logits, batch["labels"], reduction="none")
        )


@pytest.mark.parametrize(
    ("family", "formulation"), [("bert", "head"), ("gpt", "head"), ("glm", "cloze"), ("t5", "text")]
)
def test_options_of_unequal_numbers(family: str, formulation: str) -> None:
    model, objective, batch = set_up(family, "choice", formulation, CHOICES)
    rows = objective.option_scores(model, batch).split([3, 2])

    def expected(share: float) -> torch.Tensor:
        labels = zip(rows, (2, 0), strict=True)
        return sum(F.cross_entropy(row, torch.tensor(label), label_smoothing=share) for row, label in labels) / 2

    checked(model, objective, batch, expected)


def test_a_cloze_question() -> None:
    model, objective, batch = set_up("glm", "classification", "cloze", CLASSES)
    scores = objective.scores(model, batch)
    checked(model, objective, batch, lambda share: F.cross_entropy(scores, batch["labels"], label_smoothing=share))


@pytest.mark.parametrize("family", ["gpt", "t5", "glm", "unilm", "labels"])
def test_words(family: str) -> None:
    if family == "labels":
        model, objective, batch = set_up("t5", "classification", "text", CLASSES)
    else:
        model, objective, batch = set_up(family, "text", "text", TEXTS)
    if family == "gpt":
        logits, targets = model(batch["tokens"]), batch["targets"]
    elif family == "glm":
        seen = Mask(causal=True, prefix_lengths=batch["context_lengths"])
        logits, targets = model(batch["tokens"], batch["positions"], seen), batch["targets"]
    elif family == "unilm":
        captured: dict[str, torch.Tensor] = {}
        head = model.masked_head.register_forward_hook(lambda module, given, result: captured.update(states=result))
        objective.loss(model, batch)
        head.remove()
        logits = F.linear(captured["states"], model.masked_weight, model.masked_head.bias)
        targets = batch["targets"]
    else:
        logits, targets = (
            model(batch["source"], batch["target"], source_padding=batch.get("source_padding")),
            batch["target"],
        )
    logits, targets = logits.flatten(0, -2), targets.flatten()
    checked(model, objective, batch, lambda share: F.cross_entropy(logits, targets, label_smoothing=share))


@pytest.mark.parametrize("kind", ["regression", "answering"])
def test_what_is_not_smoothed_is_said(kind: str) -> None:
    model, tokenizer = model_of("bert"), tokenizer_of("bert")
    task = TaskDescription(kind, "head", (), False, 40)
    with pytest.raises(InputError, match="task.label_smoothing: classes, options and words are smoothed, not"):
        smoothed(objective_of(model, tokenizer, task), task, SHARE)


@pytest.mark.parametrize(("family", "optimizer"), [("bert", "adamw"), ("glm", "adamw"), ("t5", "adafactor")])
def test_a_killed_run_ends_where_an_undisturbed_one_does(family: str, optimizer: str, tmp_path: Path) -> None:
    options = {"steps": 6, "batch": 4, "layer_decay": 0.5, "optimizer": optimizer}
    settings = recipe(tmp_path, family, {"label_smoothing": 0.1}, **options)
    _, whole = finetune(settings, tmp_path / "whole")
    outcome, _ = finetune(settings, tmp_path / "killed", display=Interrupted(3))
    assert outcome.progress.step == 3
    _, results = finetune(settings, tmp_path / "killed")
    assert results == whole
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    # Both options matter.
    for task, changed in (({}, options), ({"label_smoothing": 0.1}, options | {"layer_decay": None})):
        out = tmp_path / f"other-{len(task)}"
        finetune(recipe(tmp_path, family, task, **changed), out)
        assert not equal(weights(tmp_path / "whole"), weights(out))
