"""The class at every token of a text, with weights that rise to the last one's: by hand, and in a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import directory_of, model_of, recipe_of, tokenizer_of

from stemma.data.labelled import LabelledData
from stemma.errors import InputError
from stemma.finetuning.checkpoint import TaskDescription, shape_of_head
from stemma.finetuning.heads import WithHead
from stemma.finetuning.objectives import objective_of, with_label_gain
from stemma.finetuning.predicting import predict
from stemma.finetuning.run import finetune

TEXTS, LABELS, NAMES = ["the lazy dog", "a good film who sees a bad one", "red"], [0, 2, 1], ("a", "b", "c")
TASK = TaskDescription("classification", "head", NAMES, False, 64)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_that_of_all_tokens(smoothing: float) -> None:
    backbone, tokenizer = model_of("lstm"), tokenizer_of("lstm")
    model = WithHead(backbone, *shape_of_head(TASK), dropout=0.0).eval()
    plain = objective_of(backbone, tokenizer, TASK)
    objective = with_label_gain(replace(plain, label_smoothing=smoothing), backbone, TASK)
    data = LabelledData([(text,) for text in TEXTS], LABELS, NAMES)
    batch = objective.collate(objective.encode(data, tokenizer))
    assert torch.equal(objective.loss(model, batch)[0], plain.loss(model, batch)[0])  # in evaluation
    model.train()
    loss, sums = objective.loss(model, batch)
    expected = torch.zeros(())
    for text, label in zip(TEXTS, LABELS, strict=True):
        tokens = [tokenizer.separator, *tokenizer.encode(text), tokenizer.separator]
        logits = model.logits(backbone.hidden(torch.tensor([tokens]))[0])
        losses = F.cross_entropy(logits, torch.full((len(tokens),), label), reduction="none", label_smoothing=smoothing)
        weights = torch.arange(1, len(tokens) + 1) / len(tokens)
        expected = expected + (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(loss, expected / 3)
    torch.testing.assert_close(sums["nll"], expected.detach())
    torch.testing.assert_close(objective.loss(model, batch, {"targets": 12})[0], expected / 12)


def test_learns_by_it_and_others_refuse_it(tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    texts = {"a good film": "good", "the bad film": "bad", "a good dog": "good", "bad fox": "bad"}
    table.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in texts.items()))
    data = {"train": str(table), "dev": str(table)}
    finetune(recipe_of(directory_of("lstm", tmp_path), {"label_gain": True}, data), tmp_path / "run")
    assert predict(tmp_path / "run" / "best", list(texts)) == list(texts.values())
    with pytest.raises(InputError, match="task.label_gain: is of an LSTM that classifies single texts"):
        finetune(recipe_of(directory_of("gpt", tmp_path), {"label_gain": True}, data), tmp_path / "gpt-run")
