"""The ladder and the words made one: what the jobs share, how they are scored, and how the claims are decided."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.families import save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.insights import contextual_vectors, lineage, ptx_alignment_tax
from stemma.insights.contextual_vectors import nearest_agrees
from stemma.insights.experiments import Job, run_experiment


def results(arms: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    seeds = list(range(1, len(next(iter(arms.values()))) + 1))
    measures = {f"{arm}-{seed}": row for arm, rows in arms.items() for seed, row in zip(seeds, rows, strict=True)}
    return {"plan": {"seeds": seeds, "arms": list(arms)}, "measures": measures}


def ladder(**accuracies: float) -> dict[str, Any]:
    """Results of three seeds that differ a little, .2 from random weights."""
    found = {arm: accuracies.get(arm.replace("-", "_"), 0.5) for arm in lineage.EXPERIMENT.arms}
    jitter = (0.0, 0.01, -0.01)
    return results({arm: [{"accuracy": a + e, "from_random": 0.2 - e} for e in jitter] for arm, a in found.items()})


def test_the_ladder_is_decided_by_transformers_against_vectors_of_words() -> None:
    decision = lineage.decide(ladder(gpt=0.8, bert=0.7, word2vec=0.6, glove=0.4))
    assert decision.outcome == "reproduced" and decision.effect.estimate == pytest.approx(0.25)
    assert decision.details is not None
    assert decision.details["word2vec minus bag of words"].estimate == pytest.approx(0.1)
    assert decision.details["GPT: pretrained minus random weights"].estimate == pytest.approx(0.6)
    assert lineage.decide(ladder(gpt=0.4, bert=0.3)).outcome == "not reproduced"


@pytest.mark.parametrize(
    ("elmo", "bert", "outcome"),
    [((0.7, 0.72), (0.8, 0.81), "reproduced"), ((0.7, 0.72), (0.3, 0.31), "not reproduced"),
     ((0.7, 0.72), (0.4, 0.7), "undecided")],
)  # fmt: skip
def test_both_contextual_models_must_tell_words_apart(
    elmo: tuple[float, float], bert: tuple[float, float], outcome: str
) -> None:
    arms = {"glove": (0.49, 0.49), "elmo": elmo, "bert": bert}
    rows = {arm: [{"accuracy": value} for value in found] for arm, found in arms.items()}
    assert contextual_vectors.decide(results(rows)).outcome == outcome


def test_the_nearest_vector() -> None:
    labels = np.array([0, 0, 1, 1])
    apart = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 2.0], [0.1, 3.0]])
    assert nearest_agrees(apart, labels) == 1.0
    assert nearest_agrees(apart[[0, 2, 1, 3]], labels) == 0.0
    assert nearest_agrees(np.ones((4, 2)), labels) == pytest.approx(1 / 3)  # one of the three others


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents in which "river" and "market" stand among different words, and labelled lines."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(240):
        word, around = (("river", "ab"), ("market", "cd"))[number % 2]
        others = [f"{random.choice(list(around))}{random.integers(9)}" for _ in range(24)]
        lines.append(json.dumps({"text": " ".join([*others[:12], word, *others[12:]])}))
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f"{word} {number},{label}" for number in range(60) for word, label in (("a1 a2", "x"), ("c1 d2", "y"))]
    (tmp_path / "labels.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_what_is_read_and_what_is_left_over(corpus: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    rest = lineage.write_text({"text": str(corpus / "corpus.jsonl"), "bytes": 9000}, shared)
    read = [json.loads(line)["text"] for line in (shared / lineage.TEXT).read_text().splitlines()]
    assert 9000 <= sum(len(text.encode()) for text in read) < 9200
    assert len(read) + len(rest) == 240 and not set(read) & set(rest)


def test_pairs_of_words_and_their_contexts(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contextual_vectors, "_RANKS", (0, 100))
    shared = tmp_path / "shared"
    shared.mkdir()
    settings = {"text": str(corpus / "corpus.jsonl"), "bytes": 9000, "pairs": 5, "contexts": 20}
    contextual_vectors.prepare(settings, shared)
    (pair,) = json.loads((shared / contextual_vectors.CONTEXTS).read_text())
    assert set(pair) == {"river", "market"}
    for word, letters in (("river", "ab"), ("market", "cd")):
        assert len(pair[word]) == 20
        assert all(len(before) == len(after) == 10 for before, after in pair[word])
        assert {other[0] for before, after in pair[word] for other in before + after} <= set(letters)


def test_a_text_that_is_too_short(corpus: Path, tmp_path: Path) -> None:
    settings = {"text": str(corpus / "corpus.jsonl"), "bytes": 1_000_000, "pairs": 5, "contexts": 20, "documents": 3}
    with pytest.raises(
        InputError, match=r"corpus.jsonl: no two words have 20 contexts each beyond the first 1,000,000"
    ):
        contextual_vectors.prepare(settings, tmp_path)
    with pytest.raises(InputError, match=r"corpus.jsonl: no document is left beyond 1,000,000 bytes to measure on"):
        ptx_alignment_tax.prepare(settings, tmp_path)


def test_words_counted_tell_the_labels_apart(corpus: Path, tmp_path: Path) -> None:
    settings = {**lineage.EXPERIMENT.scales["small"], "text": str(corpus / "corpus.jsonl"), "bytes": 9000,
                "labels": str(corpus / "labels.csv"), "examples": 20}  # fmt: skip
    shared = tmp_path / "shared"
    shared.mkdir()
    lineage.prepare(settings, shared)
    found = lineage.work(Job("bag", 1, tmp_path / "bag-1", shared, settings), lambda event: None)
    assert found["accuracy"] == 1.0 and 0.5 <= found["majority"] < 0.7


def test_of_a_sentence_that_is_too_long_a_bert_sees_what_is_near_the_word(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(train_tokenizer(["bank river money the of " * 30], "wordpiece", 300))
    model = BERT(BERTConfig(tokenizer.vocabulary, 24, layers=1, hidden=16, heads=2)).eval()
    save(model, tokenizer, tmp_path)
    near = ["river"] * 10 + ["bank"] + ["money"] * 10  # 21 pieces
    far = ["=" * 40] + near[1:-1] + ["=" * 40]
    short, long = contextual_vectors._of_bert(tmp_path, [near, far])
    assert short.shape == (16,) and np.isfinite(long).all() and not np.allclose(short, long)
    with pytest.raises(InputError, match="at most 24 tokens"):
        model(torch.zeros(1, 25, dtype=torch.long))


@pytest.mark.slow
def test_every_rung_is_climbed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    settings = {"text": str(corpus / "corpus.jsonl"), "labels": str(corpus / "labels.csv"), "bytes": 16_000,
                "epochs": 1, "glove_epochs": 2, "examples": 20, "finetuning_epochs": 1, "rates": [1e-3]}  # fmt: skip
    found = run_experiment(lineage.EXPERIMENT, settings, (1,), tmp_path / "out", workers=2)["measures"]
    assert set(found) == {f"{arm}-1" for arm in lineage.EXPERIMENT.arms}
    assert all(0 <= measures["accuracy"] <= 1 for measures in found.values())
    assert {job for job, measures in found.items() if "from_random" in measures} == {"sa-lstm-1", "gpt-1", "bert-1"}
    assert found["word2vec-1"]["accuracy"] > 0.9


@pytest.mark.slow
def test_every_kind_of_vector_is_measured(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contextual_vectors, "_RANKS", (0, 100))
    settings = {"text": str(corpus / "corpus.jsonl"), "bytes": 12_000, "epochs": 1, "glove_epochs": 2, "pairs": 5,
                "contexts": 10}  # fmt: skip
    found = run_experiment(contextual_vectors.EXPERIMENT, settings, (1,), tmp_path / "out", workers=2)["measures"]
    assert found["glove-1"] == {"accuracy": pytest.approx(9 / 19), "pairs": 1}  # all its vectors are one
    assert found["bert-1"]["pairs"] == found["elmo-1"]["pairs"] == 1
