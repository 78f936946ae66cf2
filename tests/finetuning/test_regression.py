"""Regression of pairs: a GPT reads both orders and adds their states, so that the order of a pair says nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import FAMILIES, directory_of, model_of, recipe_of, tokenizer_of

from stemma import families
from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.heads import WithHead
from stemma.finetuning.measuring import scores_of
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.predicting import predict
from stemma.finetuning.reading import prepared
from stemma.finetuning.run import TaskDescription, finetune

PAIRS = [("the lazy dog", "a good film"), ("one two three", "the cat"), ("red", "blue green red blue"), ("fox", "dog")]


def set_up():
    model, tokenizer = prepared(model_of("gpt"), tokenizer_of("gpt"))
    torch.manual_seed(1)
    task = TaskDescription("regression", "head", (), True, 64)
    return WithHead(model, 1, True, dropout=0.0).eval(), tokenizer, objective_of(model, tokenizer, task)


def test_a_gpt_adds_the_states_of_both_orders() -> None:
    model, tokenizer, objective = set_up()
    start, delimiter, classify = (tokenizer.id(name) for name in ("_start_", "_delimiter_", "_classify_"))
    expected = []
    for pair in PAIRS:
        a, b = tokenizer.encode_batch(list(pair))
        total = torch.zeros(32)
        for first, second in ((a, b), (b, a)):
            total += model.backbone.hidden(torch.tensor([[start, *first, delimiter, *second, classify]]))[0, -1]
        expected.append(model.output(total))
    data = LabelledData(PAIRS, [1.0, 0.0, 0.5, -1.0], ())
    encoded = objective.encode(data, tokenizer)
    found = model(objective.collate(encoded))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    loss, _ = objective.loss(model, objective.collate(encoded))
    target = torch.tensor(np.array(data.labels), dtype=torch.float32)
    torch.testing.assert_close(loss, ((torch.stack(expected).squeeze(1) - target) ** 2).mean())
    for example, score in zip(encoded, scores_of(model, objective, encoded), strict=True):
        torch.testing.assert_close(scores_of(model, objective, [example])[0], score, rtol=1e-5, atol=1e-5)


def test_learns_pairs_and_transformers_gives_the_two_parts_of_a_score(tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    rows = [{"text": a, "pair": b, "label": number / 4} for number, (a, b) in enumerate(PAIRS * 2)]
    table.write_text("\n".join(json.dumps(row) for row in rows[:4]))
    data = {"train": str(table), "dev": str(table), "pair": "pair"}
    recipe = recipe_of(directory_of("gpt", tmp_path), {"kind": "regression"}, data)
    _, results = finetune(recipe, tmp_path / "run")
    assert results is not None and results["dev"]["metrics"]["pearson"] > 0.99
    best = tmp_path / "run" / "best"
    predicted = predict(best, PAIRS)
    assert predicted == pytest.approx(predict(best, [(b, a) for a, b in PAIRS]), abs=1e-5)
    model, tokenizer, task = load_finetuned(best)
    twin = transformers.AutoModelForSequenceClassification.from_pretrained(best).eval()
    (example,) = objective_of(model.backbone, tokenizer, task).encode(LabelledData(PAIRS[:1], [0.0], ()), tokenizer)
    with torch.no_grad():
        orders = (torch.tensor(one["tokens"]).unsqueeze(0) for one in (example, example["second"]))
        assert sum(float(twin(tokens).logits) for tokens in orders) == pytest.approx(predicted[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_an_lstm_reads_the_texts_of_a_pair_apart(kind: str, tmp_path: Path) -> None:
    """Conneau et al. 2017: both states, their distance and their product; 30 rectified units; the numbers."""
    table = tmp_path / "train.jsonl"
    rows = [{"text": a, "pair": b, "label": number} for number, (a, b) in enumerate(PAIRS)]
    table.write_text("\n".join(json.dumps(row) for row in rows))
    data = {"train": str(table), "dev": str(table), "pair": "pair"}
    _, results = finetune(recipe_of(directory_of("lstm", tmp_path), {"kind": kind}, data), tmp_path / "run")
    metric = "pearson" if kind == "regression" else "accuracy"
    assert results is not None and results["dev"]["metrics"][metric] > 0.99
    model, tokenizer, _ = load_finetuned(tmp_path / "run" / "best")
    end, weights = tokenizer.separator, dict(model.named_parameters())
    predicted, expected = predict(tmp_path / "run" / "best", PAIRS), []
    for pair in PAIRS:
        u, v = (model.backbone.hidden(torch.tensor([[end, *tokenizer.encode(text), end]]))[0, -1] for text in pair)
        units = weights["dense.weight"] @ torch.cat([u, v, (u - v).abs(), u * v]) + weights["dense.bias"]
        expected.append(weights["output.weight"] @ units.clamp_min(0) + weights["output.bias"])
        assert len(units) == 30
    if kind == "regression":
        assert predicted == pytest.approx([float(one.detach()) for one in expected], abs=1e-4)
    else:
        names = list(json.loads((tmp_path / "run" / "best" / "task.json").read_text())["label_names"])
        assert predicted == [names[int(one.argmax())] for one in expected]


def test_wrong_inputs_are_one_line() -> None:
    model, tokenizer, _ = set_up()
    loaded = model, tokenizer, TaskDescription("regression", "head", (), True, 64)
    with pytest.raises(InputError, match="input 2: 1 texts; expected two texts"):
        predict(loaded, [("a", "b"), "a"])
    with pytest.raises(InputError, match="input 1: '3'; expected a pair of texts"):
        predict(loaded, [3])


def test_a_tokenizer_without_special_tokens_will_do(tmp_path: Path) -> None:
    """OpenAI's GPT-1 has none."""
    plain = Tokenizer(tokenizer_of("gpt").backend.from_str(tokenizer_of("gpt").backend.to_str()), {})
    table = tmp_path / "train.jsonl"
    table.write_text("\n".join(json.dumps({"text": a, "source": a, "target": b, "label": b}) for a, b in PAIRS))
    families.save(model_of("gpt"), plain, tmp_path / "gpt")
    data = {"train": str(table), "dev": str(table), "longest_target": 8}
    for kind in ("classification", "text"):
        recipe = recipe_of(tmp_path / "gpt", {"kind": kind}, data, steps=2)
        finetune(recipe, tmp_path / kind)
        assert len(predict(tmp_path / kind / "best", ["red"])) == 1
    best = tmp_path / "classification" / "best"
    model, tokenizer, task = load_finetuned(best)
    twin = transformers.AutoModelForSequenceClassification.from_pretrained(best).eval()
    examples = objective_of(model.backbone, tokenizer, task).encode(LabelledData([("a dog",)], [0], ()), tokenizer)
    tokens = torch.tensor(examples[0]["tokens"]).unsqueeze(0)
    padded = torch.nn.functional.pad(tokens, (0, 3), value=twin.config.pad_token_id)
    with torch.no_grad():
        torch.testing.assert_close(twin(padded).logits, twin(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_learned_and_predicted_by_name(family: str, tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    texts = {"a good film": "good", "the bad film": "bad", "a good dog": "good", "bad fox": "bad"}
    table.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in texts.items()))
    data = {"train": str(table), "dev": str(table)}
    finetune(recipe_of(directory_of(family, tmp_path), {}, data), tmp_path / "run")
    assert predict(tmp_path / "run" / "best", list(texts)) == list(texts.values())
