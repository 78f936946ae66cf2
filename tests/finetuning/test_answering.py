"""Answers in a context: transformers' loss and logits, windows, questions without an answer, and what is learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import FAMILIES, directory_of, model_of, recipe_of, tokenizer_of

from stemma.errors import InputError
from stemma.finetuning.answering import answer_tokens, best_span
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.heads import WithHead
from stemma.finetuning.in_batches import in_batches
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.predicting import predict
from stemma.finetuning.reading import prepared
from stemma.finetuning.recipe import DataRecipe
from stemma.finetuning.run import TaskDescription, finetune, measure_directory
from stemma.finetuning.task_data import read_examples

QUESTIONS = [
    ("who sings", "the cat sings to Anna", "cat"),
    ("who jumps", "the quick fox jumps over the dog", "quick fox"),
    ("what is good", "a film is good in Paris", "film"),
    ("what is red", "the dog is lazy", None),
    ("who sees Boris", "Anna sees Boris and the cat", "Anna"),
    ("what is blue", "blue is London", "London"),
]


def squad(questions, path: Path) -> Path:
    paragraphs = []
    for number, (question, context, answer) in enumerate(questions):
        found = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
        entry = {"id": str(number), "question": question, "answers": found, "is_impossible": answer is None}
        paragraphs.append({"context": context, "qas": [entry]})
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squad(QUESTIONS, tmp_path_factory.mktemp("squad") / "train.json")


def set_up(family: str, longest: int = 64, stride: int = 8, no_answer: bool = True):
    model, tokenizer = prepared(model_of(family), tokenizer_of(family))
    task = TaskDescription("answering", "head", (), False, longest, stride=stride, no_answer=no_answer)
    torch.manual_seed(1)
    return WithHead(model, 2, False, dropout=0.0).eval(), tokenizer, objective_of(model, tokenizer, task)


@pytest.mark.parametrize("family", ["bert", "gpt", "unilm"])
def test_transformers_gives_the_same_logits_and_loss(family: str, file: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        directory_of(family, tmp_path), {"kind": "answering"}, {"train": str(file), "dev": str(file)}, steps=2
    )
    finetune(recipe, tmp_path / "run")
    best = tmp_path / "run" / "best"
    model, tokenizer, task = load_finetuned(best)
    assert task.no_answer
    twin = transformers.AutoModelForQuestionAnswering.from_pretrained(best).eval()
    assert type(twin).__name__ == f"{'GPT2' if family == 'gpt' else 'Bert'}ForQuestionAnswering"
    objective = objective_of(model.backbone, tokenizer, task)
    for example in objective.encode(read_examples(str(file), "answering", DataRecipe(train="")), tokenizer)[:4]:
        batch = objective.collate([example])
        kinds = {"token_type_ids": batch["segments"]} if family != "gpt" else {}
        places = {"start_positions": batch["labels"][:, 0], "end_positions": batch["labels"][:, 1]}
        with torch.no_grad():
            theirs = twin(input_ids=batch["tokens"], **kinds, **places)
            torch.testing.assert_close(objective.loss(model, batch)[0], theirs.loss, rtol=1e-5, atol=1e-5)
            both = torch.stack([theirs.start_logits[0], theirs.end_logits[0]], 1)
            torch.testing.assert_close(model(batch), both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_point_at_the_answer_in_every_window_that_has_it(family: str, tmp_path: Path) -> None:
    _, tokenizer, objective = set_up(family, longest=32)
    context = "the dog is lazy and the cat sings . " * 3 + "Boris is in London . " + "who sees a fox . " * 3
    path = squad([("who is in London", context, "Boris"), ("what is red", context, None)], tmp_path / "a.json")
    windows = objective.encode(read_examples(str(path), "answering", DataRecipe(train="")), tokenizer)
    found = 0
    for window in windows:
        assert len(window["tokens"]) <= 32
        first, last = window["labels"]
        if first == window["nowhere"]:
            assert last == first
            continue
        assert window["number"] == 0
        assert tokenizer.decode(window["tokens"][first : last + 1]).strip() == "Boris"
        found += 1
    assert found >= 1 and len(windows) > 4
    # Each token of the context is answered for once.
    own = sum(window["own"].stop - window["own"].start for window in windows if window["number"] == 0)
    assert own == len(tokenizer.encode(context))


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_do_not_depend_on_the_batch(family: str, file: Path) -> None:
    model, tokenizer, objective = set_up(family, longest=28)
    examples = objective.encode(read_examples(str(file), "answering", DataRecipe(train="")), tokenizer)
    logits = in_batches(model, objective, examples, lambda b: model(b).split(b["lengths"].tolist()))
    for example, scores in zip(examples, logits, strict=True):
        torch.testing.assert_close(model(objective.collate([example])), scores, rtol=1e-5, atol=1e-5)
    assert len(objective.predict(model, examples)) == len(QUESTIONS)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt-text", "unilm-text"])
def test_learns_six_questions_and_goes_to_disk_and_back(family: str, file: Path, tmp_path: Path) -> None:
    family, _, wanted = family.partition("-")
    written = family in ("t5", "glm") or bool(wanted)
    formulation = {"formulation": wanted} if wanted else {}
    data = {"train": str(file), "dev": str(file), "longest_target": 16}
    steps = 250 if wanted and family == "unilm" else 120
    recipe = recipe_of(directory_of(family, tmp_path), {"kind": "answering", **formulation}, data, steps=steps)
    _, results = finetune(recipe, tmp_path / "run")
    assert results is not None and results["dev"]["metrics"] == {"f1": 1.0, "exact_match": 1.0}
    best = tmp_path / "run" / "best"
    assert load_finetuned(best)[2].formulation == ("text" if written else "head")
    assert predict(best, [one[:2] for one in QUESTIONS]) == [answer or "" for *_, answer in QUESTIONS]
    assert measure_directory(best, read_examples(str(file), "answering", DataRecipe(train=""))).score == 1.0


def test_the_best_span_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, 12):
        scores = rng.normal(size=(length, 2))
        pairs = [(scores[a, 0] + scores[b, 1], (a, b)) for a in range(length) for b in range(a, min(a + 4, length))]
        assert best_span(scores, 4) == max(pairs)
    assert best_span(np.zeros((0, 2)), 4)[0] == -np.inf


def test_answers_are_found_by_their_characters() -> None:
    tokenizer = tokenizer_of("gpt")
    context = "naïve öl : the lazy dog"
    ((ids, offsets),) = tokenizer.encode_with_offsets([context])
    assert ids == tokenizer.encode(context)
    first, last = answer_tokens([("lazy dog", context.index("lazy"))], context, offsets)
    assert context[offsets[first][0] : offsets[last][1]].strip() == "lazy dog"
    first, last = answer_tokens([("wrong", 0), ("öl", context.index("öl"))], context, offsets)
    assert context[offsets[first][0] : offsets[last][1]].strip() == "öl"
    assert answer_tokens([("wrong", 0)], context, offsets) == (-1, -1)
    assert answer_tokens([], context, offsets) is None


def test_where_every_question_has_an_answer_one_is_always_given(file: Path) -> None:
    for no_answer in (True, False):
        model, tokenizer, objective = set_up("bert", no_answer=no_answer)
        with torch.no_grad():
            model.output.bias.zero_()
            model.output.weight.zero_()
        examples = objective.encode(read_examples(str(file), "answering", DataRecipe(train="")), tokenizer)
        assert all(objective.predict(model, examples))


def test_answers_that_stand_elsewhere_are_reported(tmp_path: Path) -> None:
    path = squad([("who", "the cat", "cat")], tmp_path / "a.json")
    path.write_text(path.read_text().replace('"answer_start": 4', '"answer_start": 3'))
    with pytest.warns(UserWarning, match="a.json: 1 answers do not stand where it says they do"):
        data = read_examples(str(path), "answering", DataRecipe(train=""))
    _, tokenizer, objective = set_up("bert")
    assert objective.encode(data, tokenizer)[0]["labels"].tolist() == [-100, -100]


def test_bad_input_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1"}]}]}]}')
    with pytest.raises(InputError, match=r"a.json: data\[0\].paragraphs\[0\].qas\[0\]: no field 'question'"):
        read_examples(str(tmp_path / "a.json"), "answering", DataRecipe(train=""))
    model, tokenizer, _ = set_up("bert")
    with pytest.raises(InputError, match="input 1: 1 texts; expected a question and its context"):
        predict((model, tokenizer, TaskDescription("answering", "head", (), False, 64)), [["who"]])
    data = {"train": str(file), "dev": str(file)}
    recipe = recipe_of(directory_of("bert", tmp_path), {"kind": "answering", "formulation": "text"}, data)
    with pytest.raises(InputError, match="a BERT has no 'text' for answering, expected head"):
        finetune(recipe, tmp_path / "run")
