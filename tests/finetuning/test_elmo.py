"""An ELMo as the encoder of a task: frozen features under a learned mix, or trained as a whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.errors import InputError
from stemma.families import save
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.elmo.words import spell, spell_boundaries
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.recipe import FineTuningRecipe, build_recipe
from stemma.finetuning.run import build, family_and_size, finetune, measure_directory, read_splits
from stemma.inference.word_states import WordStates

CONFIG = ELMoConfig(vocabulary=20, characters=8, filters=((1, 16), (2, 16)), highways=1, projection=16, cell=24)
LABELS = {"dog": "animal", "fox": "animal", "red": "colour", "blue": "colour"}
ROWS = [
    {"text": f"a {word} thing", "other": "is it so", "label": label, "score": float(label == "animal")}
    for word, label in LABELS.items()
    for _ in range(2)
]
CONLL = "\n\n".join(f"a X\n{word} {tag}\n! X" for word, tag in (("dog", "N"), ("red", "A"), ("fox", "N"), ("old", "A")))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = ELMo(CONFIG)
    with torch.no_grad():
        for name, parameter in model.words.named_parameters():
            if "convolutions" in name:
                parameter.mul_(10)  # so that words differ without any training
    save(model, None, tmp_path / "elmo")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "tags.conll").write_text(CONLL + "\n")
    return tmp_path / "elmo"


def recipe(directory: Path, task: dict[str, Any], data: dict[str, Any] | None = None, **given: Any) -> FineTuningRecipe:
    path = str(directory.parent / ("tags.conll" if task.get("kind") == "tagging" else "rows.jsonl"))
    content = {
        "model": str(directory),
        "task": {"dropout": 0.0, **task},
        "data": {"train": path, "dev": path, **(data or {})},
        "training": {
            "learning_rate": 3e-2 if task.get("kind") == "tagging" else 1e-2,
            "steps": 60,
            "epochs": None,
            "batch": 8,
            "schedule": {"name": "constant"},
        },
        "evaluation": {"every": 40},
        **given,
    }
    return build_recipe(content, (), family="elmo", parameters=1, examples=8)


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ({}, {}),
        ({"frozen": False}, {"pair": "other"}),
        ({"kind": "regression"}, {"label": "score"}),
        ({"kind": "tagging"}, {}),
    ],
    ids=["classes", "pairs, trained as a whole", "numbers", "tags"],
)
def test_tasks_are_learned_by_heart_and_come_back(task: dict[str, Any], data: dict[str, Any], directory: Path) -> None:
    made = recipe(directory, task, data)
    out = directory.parent / "run"
    finetune(made, out)
    reached = measure_directory(out / "best", read_splits(made).dev)
    assert reached.score > 0.95
    model, tokenizer, description = load_finetuned(out / "best")
    start, now = stemma.load(directory).state_dict(), model.backbone.state_dict()
    same = all(torch.equal(start[name], value) for name, value in now.items())
    assert same == made.task.frozen and "output.weight" not in now
    assert model.mix.weights.any()
    said = {
        "classification": lambda: stemma.predict(out / "best", [("a dog thing", "is it so")[: 1 + description.pair]]),
        "regression": lambda: [round(stemma.predict(out / "best", ["a dog thing"])[0])],
        "tagging": lambda: stemma.predict(out / "best", [["a", "dog", "!"]]),
    }[description.kind]()
    assert said == {"classification": ["animal"], "regression": [1], "tagging": [["X", "N", "X"]]}[description.kind]


def test_a_text_is_the_mean_of_its_words_mixed_layers(directory: Path) -> None:
    made = recipe(directory, {})
    splits = read_splits(made)
    model, tokenizer, objective, _ = build(made, splits.train)
    with torch.no_grad():
        model.mix.weights.copy_(torch.tensor([0.5, -1.0, 0.3]))
    batch = objective.collate(objective.encode(splits.train, tokenizer)[:3])
    found = model.eval().read(batch)
    layers = WordStates(stemma.load(directory))([row["text"].split() for row in ROWS[:3]])
    shares = torch.tensor([0.5, -1.0, 0.3]).softmax(0)
    for ours, one in zip(found, layers, strict=True):
        torch.testing.assert_close(ours, torch.tensordot(shares, torch.from_numpy(one), 1).mean(0), rtol=0, atol=1e-6)


def test_frozen_weights_get_no_gradient_and_no_dropout(directory: Path) -> None:
    made = recipe(directory, {"dropout": 0.0})
    splits = read_splits(made)
    model, tokenizer, objective, _ = build(made, splits.train)
    batch = objective.collate(objective.encode(splits.train, tokenizer))
    model.train()
    assert torch.equal(model(batch), model(batch)) and not model.backbone.training and model.dropout.training
    objective.loss(model, batch)[0].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"mix.weights", "mix.gamma", "dense.weight", "dense.bias", "output.weight", "output.bias"}


def test_a_pair_has_the_end_of_a_sentence_between(directory: Path) -> None:
    made = recipe(directory, {}, {"pair": "other"})
    splits = read_splits(made)
    _, tokenizer, objective, _ = build(made, splits.train)
    example = objective.encode(splits.train, tokenizer)[0]
    assert example["characters"].tolist() == [
        *spell(["a", "dog", "thing"]).tolist(), spell_boundaries()[1].tolist(), *spell(["is", "it", "so"]).tolist(),
    ]  # fmt: skip


def test_the_published_layout_can_be_fine_tuned(directory: Path) -> None:
    for path in directory.iterdir():
        if path.suffix not in (".json", ".hdf5") or path.name != "options.json" and path.suffix == ".json":
            path.unlink()
    assert family_and_size(str(directory))[0] == "elmo"
    finetune(recipe(directory, {}), directory.parent / "run")
    assert stemma.predict(directory.parent / "run/best", ["a fox thing"]) == ["animal"]


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ({"kind": "text"}, {}, "an ELMo does not write texts|a ELMo does not write texts"),
        ({"kind": "answering"}, {}, "no task.kind=answering"),
        ({}, {"lora": {"rank": 2}}, "task.frozen: adapters change the backbone"),
    ],
)
def test_what_an_elmo_does_not_do(task: dict[str, Any], given: dict[str, Any], message: str, directory: Path) -> None:
    made = recipe(directory, task, **given)
    with pytest.raises(InputError, match=message):
        build(made, read_splits(recipe(directory, {})).train)
