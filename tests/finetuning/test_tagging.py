"""Tagging: each word one tag, transformers' logits, and a model that learns it in every family."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import FAMILIES, directory_of, model_of, recipe_of, tokenizer_of

from stemma.errors import InputError
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.heads import WithHead
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.predicting import predict
from stemma.finetuning.reading import prepared
from stemma.finetuning.recipe import DataRecipe
from stemma.finetuning.run import TaskDescription, finetune, measure_directory
from stemma.finetuning.tagging import word_pieces
from stemma.finetuning.task_data import Examples, read_examples

SENTENCES = [
    ("Anna sees Boris", "B-PER O B-PER"),
    ("the fox sings in Paris", "O O O O B-LOC"),
    ("Boris jumps over the dog", "B-PER O O O O"),
    ("London is good", "B-LOC O O"),
    ("Anna and Boris in London", "B-PER O B-PER O B-LOC"),
    ("what is red", "O O O"),
    ("the Anna Boris film", "O B-PER I-PER O"),
    ("who sings in Paris", "O O O B-LOC"),
]
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture(scope="module")
def conll(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tags") / "train.conll"
    rows = ["".join(f"{w}\t{t}\n" for w, t in zip(*map(str.split, pair), strict=True)) for pair in SENTENCES]
    path.write_text("\n".join(rows))
    return path


def set_up(family: str, *, context: int = 64, longest: int = 64):
    model, tokenizer = prepared(model_of(family, context=context), tokenizer_of(family))
    task = TaskDescription("tagging", "head", NAMES, False, longest)
    torch.manual_seed(1)
    return WithHead(model, len(NAMES), False, dropout=0.0).eval(), tokenizer, objective_of(model, tokenizer, task)


def examples_of(sentences) -> Examples:
    labels = [[NAMES.index(tag) for tag in tags.split()] for _, tags in sentences]
    return Examples([tuple(words.split()) for words, _ in sentences], labels, NAMES)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_mean_over_words_of_the_piece_that_is_read(family: str) -> None:
    model, tokenizer, objective = set_up(family)
    data = examples_of(SENTENCES[:2])
    encoded = objective.encode(data, tokenizer)
    losses = []
    for example, words, tags in zip(encoded, word_pieces(data.texts, tokenizer), data.labels, strict=True):
        tokens = torch.tensor(example["tokens"]).unsqueeze(0)
        states = model.states({"tokens": tokens, "lengths": torch.tensor([tokens.shape[1]])})[0]
        place = len(objective.reader.before)
        for word, tag in zip(words, tags, strict=True):
            assert tokens[0, place : place + len(word)].tolist() == word
            state = states[place + len(word) - 1] if family in ("gpt", "lstm") else states[place]
            losses.append(F.cross_entropy(model.output(state), torch.tensor(tag)))
            place += len(word)
    loss, sums = objective.loss(model, objective.collate(encoded))
    assert sums["targets"] == 8
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_a_gpt_goes_on_learning_its_language() -> None:
    model, tokenizer, objective = set_up("gpt")
    batch = objective.collate(objective.encode(examples_of(SENTENCES[:3]), tokenizer))
    words = []
    for tokens, length in zip(batch["tokens"], batch["lengths"].tolist(), strict=True):
        row = tokens[:length].unsqueeze(0)
        words += F.cross_entropy(model.backbone(row)[0, :-1], row[0, 1:], reduction="none")
    both, sums = replace(objective, language_model=0.5).loss(model, batch)
    torch.testing.assert_close(both, objective.loss(model, batch)[0] + 0.5 * torch.stack(words).mean())
    assert sums["words"] == len(words)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_of_a_long_sentence_gets_one_tag_whatever_the_batch(family: str) -> None:
    model, tokenizer, objective = set_up(family, longest=16)
    words = " ".join(["the quick jumps zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz \u200b over"] * 6).split()
    data = examples_of([(" ".join(words), " ".join(["O"] * len(words))), *SENTENCES])
    encoded = objective.encode(data, tokenizer)
    assert max(len(example["tokens"]) for example in encoded) <= 16
    assert sum(example["number"] == 0 for example in encoded) > 2
    together = objective.predict(model, encoded)
    assert [len(tags) for tags in together] == [len(words) for words in data.texts]
    for number, tags in enumerate(together):
        alone = [{**example, "number": 0} for example in encoded if example["number"] == number]
        assert objective.predict(model, alone) == [tags]
    logits = model(objective.collate(encoded)).split([len(example["labels"]) for example in encoded])
    for example, scores in zip(encoded, logits, strict=True):
        torch.testing.assert_close(model(objective.collate([example])), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt", "t5"])
def test_words_have_the_blanks_of_their_sentence(family: str) -> None:
    tokenizer = tokenizer_of(family)
    (words,) = word_pieces([("the", "quick", "fox")], tokenizer)
    assert sum(words, []) == tokenizer.encode("the quick fox")


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_eight_sentences_and_goes_to_disk_and_back(family: str, conll: Path, tmp_path: Path) -> None:
    data = {"train": str(conll), "dev": str(conll)}
    recipe = recipe_of(directory_of(family, tmp_path), {"kind": "tagging"}, data)
    outcome, results = finetune(recipe, tmp_path / "run")
    assert results is not None and results["dev"]["metrics"]["f1"] == 1.0, outcome
    assert results["dev"]["majority"] == pytest.approx(21 / 32)
    best = tmp_path / "run" / "best"
    reached = measure_directory(best, read_examples(str(conll), "tagging", DataRecipe(train="")))
    assert reached.metrics["f1"] == 1.0
    assert predict(best, [["the", "fox", "sings", "in", "Paris"], []]) == [["O", "O", "O", "O", "B-LOC"], []]
    published = json.loads((best / "config.json").read_text())
    assert published["id2label"]["1"] in NAMES


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "BertForTokenClassification"),
        ("unilm", "BertForTokenClassification"),
        ("gpt", "GPT2ForTokenClassification"),
        ("t5", "T5ForTokenClassification"),
    ],
)
def test_transformers_gives_the_same_logits(family: str, name: str, conll: Path, tmp_path: Path) -> None:
    data = {"train": str(conll), "dev": str(conll)}
    recipe = recipe_of(directory_of(family, tmp_path), {"kind": "tagging"}, data, steps=2)
    finetune(recipe, tmp_path / "run")
    model, tokenizer, task = load_finetuned(tmp_path / "run" / "best")
    twin = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "best").eval()
    assert type(twin).__name__ == name
    objective = objective_of(model.backbone, tokenizer, task)
    (example,) = objective.encode(examples_of(SENTENCES[:1]), tokenizer)
    with torch.no_grad():
        theirs = twin(torch.tensor(example["tokens"]).unsqueeze(0)).logits[0, example["read"]]
        torch.testing.assert_close(model(objective.collate([example])), theirs, rtol=1e-5, atol=1e-5)


def test_bad_input_is_one_line(conll: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.conll"
    other.write_text("Anna\tB-DOG\n")
    train = read_examples(str(conll), "tagging", DataRecipe(train=""))
    with pytest.raises(InputError, match="other.conll: tag 'B-DOG' does not occur in the training set"):
        read_examples(str(other), "tagging", DataRecipe(train=""), train)
    with pytest.raises(InputError, match="data.text: 'words'; the columns of a CoNLL file have numbers"):
        read_examples(str(conll), "tagging", DataRecipe(train="", text="words"))
    directory = directory_of("bert", tmp_path)
    recipe = recipe_of(directory, {"kind": "tagging", "formulation": "text"}, {"train": str(conll), "dev": str(conll)})
    with pytest.raises(InputError, match="a BERT has no 'text' for tagging, expected head"):
        finetune(recipe, tmp_path / "run")
