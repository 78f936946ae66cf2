"""A whole run, from a text to a directory: both parts of the loss are learned, with either tokenizer and packing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import stemma
from stemma.errors import InputError
from stemma.training.pretrain import prepare_run, pretrain
from stemma.training.recipe import load_recipe

TOPICS = ["cat dog", "red blue", "one two", "run walk", "yes no", "day night", "sun moon", "tea milk"]


def write_corpus(path: Path, documents: int) -> None:
    """Documents that stay with one topic: what is masked can be guessed, and so can what does not belong."""
    rng = np.random.default_rng(0)
    texts = []
    for index in range(documents):
        words = TOPICS[index % len(TOPICS)].split()
        texts.append(" ".join(" ".join(rng.choice(words, 4)) + "." for _ in range(rng.integers(4, 12))))
    path.write_text("\n\n".join(texts))


def recipe_for(path: Path, *overrides: str) -> object:
    return load_recipe(
        "bert/tiny",
        [
            f"data.source={path}",
            "data.documents=paragraph",
            "model={preset: tiny, layers: 2, hidden: 48, heads: 2, context: 48, initial_std: 0.1}",
            "training={steps: 160, batch: 16, length: 48, learning_rate: 1e-2, schedule: {name: linear, warmup: 20}}",
            "evaluation={every: 160, tokens: null}",
            "output={log_every: 40, save_every: 1000}",
            "execution.device=cpu",
            *overrides,
        ],
    )


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize("tokenizer", ["bpe", "wordpiece"])
def test_both_parts_are_learned(tokenizer: str, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.txt", 200)
    recipe = recipe_for(tmp_path / "corpus.txt", f"tokenizer={{kind: {tokenizer}, vocabulary: 340}}")
    pretrain(recipe, tmp_path / "run", cache=tmp_path / "cache")  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    # Of a topic's two words either is as likely as the other, log 2 = 0.7; nothing can be guessed better.
    assert first["loss"] > 3.0 and last["loss"] - last["next_sentence_loss"] < 1.6
    assert 0.5 < last["held_out_loss"] < 1.6 and "held_out_bits_per_byte" not in last
    # A random document has the same topic once in eight times; then the label cannot be seen.
    assert first["next_sentence_accuracy"] < 0.58 and 0.6 < last["next_sentence_accuracy"] < 0.97

    model, vocabulary = stemma.load(tmp_path / "run"), stemma.load_tokenizer(tmp_path / "run")
    before, after = vocabulary.encode("dog cat cat dog. cat dog cat"), vocabulary.encode(". dog cat dog cat.")
    ids = [vocabulary.id("[CLS]"), *before, vocabulary.mask, *after, vocabulary.id("[SEP]")]
    with torch.no_grad():
        guesses = model(torch.tensor([ids]))[0, ids.index(vocabulary.mask)].topk(2).indices.tolist()
    assert {vocabulary.decode([guess]).strip() for guess in guesses} == {"cat", "dog"}


@pytest.mark.filterwarnings("ignore:the text repeats too little")
def test_without_pairs_one_document_is_enough(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.txt", 200)
    one = (tmp_path / "corpus.txt").read_text().replace("\n\n", " ")
    (tmp_path / "corpus.txt").write_text(one)
    with pytest.raises(InputError, match="the corpus has only one"):
        prepare_run(recipe_for(tmp_path / "corpus.txt", "tokenizer.vocabulary=340"), cache=tmp_path / "cache")  # type: ignore[arg-type]
    recipe = recipe_for(
        tmp_path / "corpus.txt",
        "tokenizer.vocabulary=340",
        "objective={examples: full_sentences, whole_words: true}",
        "training.steps=12",
    )
    pretrain(recipe, tmp_path / "run", cache=tmp_path / "cache")  # type: ignore[arg-type]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] < 5 and "next_sentence_accuracy" not in last and last["held_out_targets"] > 50


def test_what_the_tokenizer_decides_is_not_the_recipe_s_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective\.bert_tokens: unknown key"):
        load_recipe("bert/tiny", ["objective.bert_tokens=3"])
    with pytest.raises(InputError, match=r"objective\.whole_word: unknown key \(did you mean 'whole_words'\?\)"):
        load_recipe("bert/tiny", ["objective.whole_word=true"])
