"""Multiple choice: cross-entropy over unequally many options, transformers' logits, and what is learned."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from test_writing import target_nll
from tiny_models import FAMILIES, directory_of, model_of, recipe_of, tokenizer_of

from stemma.errors import InputError
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.choice_data import read_choices
from stemma.finetuning.heads import WithHead
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.predicting import predict
from stemma.finetuning.reading import prepared
from stemma.finetuning.run import TaskDescription, finetune, measure_directory
from stemma.finetuning.task_data import Examples

QUESTIONS = [
    ("who sings", ["the cat", "Paris"], 0),
    ("what is red", ["the quick fox", "dog", "a good film"], 1),
    ("one two", ["three", "blue"], 0),
    ("", ["green", "the lazy dog jumps over the cat", "who", "five"], 3),
    ("Anna sees", ["London", "Boris"], 1),
    ("Boris sees", ["London", "Anna"], 1),
    ("the dog", ["jumps", "red", "blue"], 2),
    ("a bad film", ["four", "six"], 0),
]
DATA = Examples([(question, *options) for question, options, _ in QUESTIONS], [place for *_, place in QUESTIONS], ())


def set_up(family: str):
    model, tokenizer = prepared(model_of(family), tokenizer_of(family))
    own = {"glm": "cloze", "t5": "text"}.get(family, "head")
    objective = objective_of(model, tokenizer, TaskDescription("choice", own, (), False, 60))
    if own == "head":
        torch.manual_seed(1)
        model = WithHead(model, 1, True, dropout=0.0)
    return model.eval(), tokenizer, objective


@pytest.mark.parametrize("family", ["glm", "t5"])
def test_loss_is_over_the_likelihoods_of_the_options(family: str) -> None:
    model, tokenizer, objective = set_up(family)
    expected = []
    for question, options, right in QUESTIONS:
        scores = [-sum(target_nll(family, model, tokenizer, question, option)) for option in options]
        expected.append(F.cross_entropy(torch.stack(scores), torch.tensor(right)))
    loss, _ = objective.loss(model, objective.collate(objective.encode(DATA, tokenizer)))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_the_batch(family: str) -> None:
    model, tokenizer, objective = set_up(family)
    examples = objective.encode(DATA, tokenizer)
    with torch.no_grad():
        together = objective.option_scores(model, objective.collate(examples))
        alone = [objective.option_scores(model, objective.collate([example])) for example in examples]
    assert [len(scores) for scores in alone] == [len(options) for _, options, _ in QUESTIONS]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)
    best = [int(scores.argmax()) for scores in alone]
    assert objective.predict(model, examples) == best


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_eight_questions_and_goes_to_disk_and_back(family: str, tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    rows = [{"q": q, "choices": options, "label": place} for q, options, place in QUESTIONS if q]
    table.write_text("\n".join(json.dumps(row) for row in rows))
    data = {"train": str(table), "dev": str(table), "question": "q"}
    recipe = recipe_of(directory_of(family, tmp_path), {"kind": "choice"}, data)
    _, results = finetune(recipe, tmp_path / "run")
    assert results is not None and results["dev"]["metrics"]["accuracy"] == 1.0
    best = tmp_path / "run" / "best"
    assert measure_directory(best, Examples(DATA.texts[:3], DATA.labels[:3], ())).metrics == {"accuracy": 1.0}
    assert predict(best, [("who sings", ["Paris", "the cat"]), ["three", "blue"]])[0] == 1


@pytest.mark.parametrize(("family", "name"), [("bert", "BertForMultipleChoice"), ("unilm", "BertForMultipleChoice")])
def test_transformers_gives_the_same_scores_and_loss(family: str, name: str, tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    table.write_text("\n".join(json.dumps({"q": q, "choices": o, "label": p}) for q, o, p in QUESTIONS if q))
    data = {"train": str(table), "dev": str(table), "question": "q"}
    recipe = recipe_of(directory_of(family, tmp_path), {"kind": "choice"}, data, steps=2)
    finetune(recipe, tmp_path / "run")
    best = tmp_path / "run" / "best"
    model, tokenizer, task = load_finetuned(best)
    twin = transformers.AutoModelForMultipleChoice.from_pretrained(best).eval()
    assert type(twin).__name__ == name
    objective = objective_of(model.backbone, tokenizer, task)
    batch = objective.collate(objective.encode(Examples(DATA.texts[1:2], DATA.labels[1:2], ()), tokenizer))
    attention = torch.arange(batch["tokens"].shape[1]) < batch["lengths"].unsqueeze(1)
    with torch.no_grad():
        theirs = twin(
            input_ids=batch["tokens"].unsqueeze(0),
            token_type_ids=batch["segments"].unsqueeze(0),
            attention_mask=attention.long().unsqueeze(0),
            labels=batch["labels"],
        )
        torch.testing.assert_close(objective.option_scores(model, batch), theirs.logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(objective.loss(model, batch)[0], theirs.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "places"),
    [([0, 2], [0, 2]), (["0", "2"], [0, 2]), (["A", "c"], [0, 2]), (["x", "w"], [0, 2])],
)
def test_labels_are_indices_letters_or_texts(labels: list, places: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    options = (["x", "y"], ["u", "v", "w"])
    rows = [{"choices": one, "label": label} for one, label in zip(options, labels, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    texts, found = read_choices(path, question=None, choices="choices", label="label")
    assert found == places
    assert texts == [("", "x", "y"), ("", "u", "v", "w")]


def test_options_in_columns_and_with_names(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("premise,kind,a,b,c,label\nIt rained,effect,wet,dry,,0\nSun,cause,x,y,z,2\n")
    texts, labels = read_choices(table, question="premise,kind", choices="a,b,c", label="label")
    assert texts == [("It rained effect", "wet", "dry"), ("Sun cause", "x", "y", "z")]
    assert labels == [0, 2]
    named = tmp_path / "a.jsonl"
    named.write_text('{"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "label": "1"}')
    assert read_choices(named, question=None, choices="choices", label="label")[1] == [0]
    # COPA's label of the hub has the columns' names; of columns without names the label is an index.
    table.write_text("premise,choice1,choice2,label\nIt rained,wet,dry,choice2\nSun,x,y,choice1\n")
    assert read_choices(table, question="premise", choices="choice1,choice2", label="label")[1] == [1, 0]
    table.write_text("wet,dry,1\nx,y,1\n")
    assert read_choices(table, question=None, choices="1,2", label="3", header=False)[1] == [1, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["x"], "label": 0}, "line 1: 1 choices; expected at least two"),
        ({"choices": "x", "label": 0}, "line 1: field 'choices' is 'x'; expected a list of texts"),
        ({"choices": ["x", "y"], "label": 2}, "line 1: label 'label' is '2'; expected, as in the other rows, an index"),
        ({"choices": ["x", 1], "label": 0}, "line 1: field 'choices' has '1'; expected a text"),
        ({"label": 0}, "line 1: no field 'choices'"),
    ],
)
def test_bad_input_is_one_line(row: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        read_choices(path, question=None, choices="choices", label="label")
