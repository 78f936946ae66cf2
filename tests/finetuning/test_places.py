"""The last layer computes the states that are read alone: same losses, scores and gradients as when it computes all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_label_smoothing import CHOICES, CLASSES, TAGS, TEXTS
from tiny_models import model_of, tokenizer_of
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.finetuning.checkpoint import TaskDescription, shape_of_head
from stemma.finetuning.heads import WithHead
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.reading import prepared
from stemma.finetuning.task_data import Examples
from stemma.inference.filling_scores import target_scores

ANSWERS = Examples([("who", "the quick fox jumps"), ("what", "a red dog")], [[("fox", 10)], [("red", 2)]], ())
PAIRS = LabelledData([("the dog", "a fox"), ("red", "blue green")], [0.5, 1.5], ())
DATA = {
    "classification": CLASSES,
    "regression": PAIRS,
    "tagging": TAGS,
    "choice": CHOICES,
    "answering": ANSWERS,
    "text": TEXTS,
}


def set_up(family: str, kind: str, formulation: str, words: tuple[str, ...] = ()) -> tuple[Any, Any, Any]:
    model, tokenizer = prepared(model_of(family), tokenizer_of(family))
    data = DATA[kind]
    pair = kind == "regression"
    task = TaskDescription(kind, formulation, data.label_names, pair, 40, words=words or data.label_names)
    objective = objective_of(model, tokenizer, task)
    if formulation == "head":
        model = WithHead(model, *shape_of_head(task))
    drawn = [objective.example(one, np.random.default_rng(0)) for one in objective.encode(data, tokenizer)]
    return model.eval(), objective, objective.collate(drawn)


def all_states(hidden: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute the states of all places, then take those that are asked for."""

    def run(*arguments: Any, places: Tensor | None = None, **options: Any) -> Tensor:
        states = hidden(*arguments, **options)
        return states if places is None else states.flatten(0, 1)[places]

    return run


def gradients(model: Any, objective: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = objective.loss(model, batch)[0]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CASES = [(family, kind, "head") for family in ("bert", "glm") for kind in DATA if kind != "text"]
CASES = [case for case in CASES if case not in {("glm", "answering", "head")}]
CASES += [("glm", "classification", "cloze"), ("glm", "choice", "cloze"), ("glm", "text", "text")]


@pytest.mark.parametrize(("family", "kind", "formulation"), CASES)
def test_same_loss_and_gradients(family: str, kind: str, formulation: str) -> None:
    model, objective, batch = set_up(family, kind, formulation)
    backbone = getattr(model, "backbone", model)
    rows: list[int] = []
    hook = backbone.blocks[-1].feed_forward.register_forward_hook(
        lambda module, given, result: rows.append(given[0].shape[:-1].numel())
    )
    loss, found = gradients(model, objective, batch)
    hook.remove()
    read = batch["read"].numel() if formulation == "head" else int((batch["targets"] != -100).sum())
    assert rows == [read] and read < batch["tokens"].numel()
    scores = objective.scores(model, batch) if hasattr(objective, "scores") else None
    backbone.hidden = all_states(backbone.hidden)
    expected_loss, expected = gradients(model, objective, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-6)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    if scores is not None:
        torch.testing.assert_close(scores, objective.scores(model, batch), rtol=0, atol=1e-6)


def test_words_of_one_token_read_one_place_a_row() -> None:
    tokenizer = tokenizer_of("glm")
    words = [tokenizer.token(index).removeprefix("Ġ") for index in range(tokenizer.vocabulary)]
    single = [word for word in words if word.isalpha() and len(tokenizer.encode_batch([f" {word}"])[0]) == 1][:3]
    model, objective, batch = set_up("glm", "classification", "cloze", tuple(dict.fromkeys(single)))
    assert objective.single
    scores = objective.scores(model, batch)
    loss, found = gradients(model, objective, batch)
    model.hidden = all_states(model.hidden)
    torch.testing.assert_close(scores, objective.scores(model, batch), rtol=0, atol=1e-6)
    expected_loss, expected = gradients(model, objective, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6)


def test_scores_of_fillings() -> None:
    model, _, batch = set_up("glm", "text", "text")
    with torch.no_grad():
        found = target_scores(model, batch)
        model.hidden = all_states(model.hidden)
        expected = target_scores(model, batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
