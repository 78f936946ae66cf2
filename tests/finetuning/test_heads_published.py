"""Output layers on disk: transformers' classes load our directories unchanged, and give our logits and loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import model_of, tokenizer_of

from stemma.data.labelled import LabelledData
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.t5.model import T5, T5Config
from stemma.finetuning.checkpoint import TaskDescription, load_finetuned, save_finetuned, shape_of_head
from stemma.finetuning.heads import WithHead
from stemma.finetuning.measuring import scores_of
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.reading import prepared

TEXTS = [("the lazy dog",), ("a good film who sees a bad one",), ("red",), ("Anna and Boris in Paris",)]
PAIRS = [("the lazy dog", "a good film"), ("one two three", "the cat"), ("red", "blue green red"), ("fox", "dog")]
NAMES = ("good", "bad", "neither")
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4}


def with_head(family: str, *, regression: bool = False, pair: bool = False, **changes: Any) -> tuple[Any, ...]:
    """Model, tokenizer, task, examples and data, the model with weights as after some training."""
    kind, _, form = family.partition(" ")
    tokenizer = tokenizer_of(kind)
    torch.manual_seed(0)
    if form == "1":
        changes = {"norm": "post", "position_std": 0.02, **changes}
    if not changes:
        model = model_of(kind)
    else:
        classes: Any = {"bert": (BERT, BERTConfig), "gpt": (GPT, GPTConfig), "t5": (T5, T5Config)}[kind]
        model = classes[0](classes[1](vocabulary=tokenizer.vocabulary, **SHAPE, **changes))
    model, tokenizer = prepared(model.eval(), tokenizer)
    task = TaskDescription(
        "regression" if regression else "classification", "head", () if regression else NAMES, pair, 64
    )
    model = WithHead(model, *shape_of_head(task)).eval()
    for parameter in model.output.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels = [0.5, -1.0, 2.0, 0.0] if regression else [0, 2, 1, 0]
    data = LabelledData(PAIRS if pair else TEXTS, labels, task.label_names)
    return model, tokenizer, task, objective_of(model.backbone, tokenizer, task).encode(data, tokenizer), data


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt", "gpt 1"])
def test_transformers_gives_our_logits_and_loss(family: str, regression: bool, pair: bool, tmp_path: Path) -> None:
    if family != "bert" and regression and pair:
        pytest.skip("both orders: see test_regression.py")
    model, tokenizer, task, examples, data = with_head(family, regression=regression, pair=pair)
    save_finetuned(model, tokenizer, task, tmp_path)
    twin, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    first = {"bert": "Bert", "gpt": "GPT2", "gpt 1": "OpenAIGPT"}[family]
    assert type(twin.eval()).__name__ == f"{first}ForSequenceClassification"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    config = json.loads((tmp_path / "config.json").read_text())
    if regression:
        assert config["problem_type"] == "regression"
    else:
        assert config["problem_type"] == "single_label_classification"
        assert twin.config.id2label == dict(enumerate(NAMES)) and twin.config.label2id["neither"] == 2
    objective = objective_of(model.backbone, tokenizer, task)
    batch = objective.collate(examples)
    inside = torch.arange(batch["tokens"].shape[1]) < batch["lengths"].unsqueeze(1)
    given = {"input_ids": batch["tokens"].where(inside, twin.config.pad_token_id), "attention_mask": inside.long()}
    if pair and family == "bert":
        given["token_type_ids"] = batch["segments"]
    with torch.no_grad():
        theirs = twin(**given, labels=torch.tensor(data.labels))
        same(theirs.logits, model(batch))
        same(theirs.loss, objective.loss(model, batch)[0])
    same(scores_of(load_finetuned(tmp_path)[0], objective, examples), theirs.logits)


def test_a_gpt_goes_on_learning_its_language_beside_the_task() -> None:
    model, tokenizer, task, examples, data = with_head("gpt")
    objective = objective_of(model.backbone, tokenizer, task, language_model=0.5)
    batch = objective.collate(examples)
    words = []
    for example in examples:
        tokens = torch.tensor(example["tokens"]).unsqueeze(0)
        words.append(F.cross_entropy(model.backbone(tokens)[0, :-1], tokens[0, 1:], reduction="none"))
    expected = F.cross_entropy(model(batch), torch.tensor(data.labels)) + 0.5 * torch.cat(words).mean()
    loss, sums = objective.loss(model, batch)
    same(loss, expected)
    # A share of a larger step: two halves add up to the whole.
    totals = objective.counts(batch)
    assert totals == {"targets": 4, "words": sum(map(len, words))} and sums["words"] == totals["words"]
    halves = [objective.loss(model, objective.collate(part), totals)[0] for part in (examples[:1], examples[1:])]
    same(sum(halves), expected)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"tie_output": False}),
        ("gpt", {"tie_output": False}),
        ("gpt", {"attention_pattern": ("dense", "banded"), "band": 4}),
        ("gpt 1", {"tie_output": False}),
        ("t5", {"tie_output": False, "gated": True, "feed_forward": 48, "head_dim": 8}),
        ("t5", {}),
        ("glm", {}),
        ("unilm", {}),
    ],
)
def test_every_architecture_comes_back(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model, tokenizer, task, examples, _ = with_head(family, pair=True, **changes)
    save_finetuned(model, tokenizer, task, tmp_path)
    loaded, again, description = load_finetuned(tmp_path)
    assert description == task and again.fingerprint == tokenizer.fingerprint
    objective = objective_of(loaded.backbone, again, description)
    same(scores_of(loaded, objective, examples), scores_of(model, objective, examples))


@pytest.mark.parametrize("family", ["bert", "gpt", "gpt 1", "glm", "t5", "unilm"])
def test_what_is_predicted_does_not_depend_on_the_batch(family: str) -> None:
    model, tokenizer, task, examples, _ = with_head(family)
    objective = objective_of(model.backbone, tokenizer, task)
    together = scores_of(model, objective, examples)
    alone = torch.cat([scores_of(model, objective, [example]) for example in examples])
    same(together, alone)
    same(together, scores_of(model, objective, examples, batch=3))
