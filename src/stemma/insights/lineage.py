"""The ladder: what does each generation of pretraining add? (Peters et al., Radford et al., Devlin et al. 2018)

Every rung learns from the same text, and then classifies the same labelled texts.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.corpora import CorpusSource, open_corpus
from stemma.data.vectors import WordVectors
from stemma.evaluation.intervals import paired_over_seeds
from stemma.finetuning.recipe import build_recipe
from stemma.finetuning.run import finetune
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.labels import PARTS, divide_labelled, labelled, part_of
from stemma.insights.workers import Interrupted, Report, Reporter
from stemma.training.pretrain import pretrain
from stemma.training.recipe import Recipe
from stemma.training.vector_recipe import load_vector_recipe
from stemma.training.vectors import pretrain_vectors

TEXT = "text.jsonl"

# What is pretrained by gradients: each rung's recipe, its rate from its family's own.
_SUBWORDS = {"kind": "bpe", "vocabulary": 2048}
_ADAM = {"betas": [0.9, 0.98], "weight_decay": 0.01}
_TRANSFORMER = {"layers": 4, "hidden": 128, "heads": 4, "context": 128, "dropout": 0.0, "attention_dropout": 0.0}
_PRETRAINED: dict[str, dict[str, Any]] = {
    "sa-lstm": {
        "family": "lstm",
        "model": {"embedding": 128, "hidden": 256},
        "objective": {"name": "autoencoder"},
        "tokenizer": _SUBWORDS,
        "training": {"learning_rate": 3e-3},
    },
    "elmo": {
        "family": "elmo",
        "model": {"preset": "tiny", "predicted": 4096},
        "tokenizer": {"kind": "elmo", "vocabulary": 65536},
        "training": {"learning_rate": 4e-3, "betas": [0.9, 0.99]},
    },
    "gpt": {"family": "gpt", "model": _TRANSFORMER, "tokenizer": _SUBWORDS, "training": {"learning_rate": 2e-3}},
    "bert": {
        "family": "bert",
        "model": {**_TRANSFORMER, "initial_std": 0.05},
        "objective": {"name": "masked", "examples": "full_sentences", "separate_documents": True},
        "tokenizer": _SUBWORDS,
        "training": {"learning_rate": 2e-3},
    },
}


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Write the text that all read, and the labelled parts."""
    write_text(settings, shared)
    divide_labelled(labelled(settings["labels"], each=200), shared, examples=settings["examples"])


def write_text(settings: Mapping[str, Any], shared: Path) -> list[str]:
    """Write `settings["bytes"]` of the text: whole documents in an order of their content; return those left over."""
    pieces = [piece.text for piece in open_corpus(CorpusSource(settings["text"])).pieces(lambda read: None)]
    texts = sorted(dict.fromkeys(pieces), key=lambda text: digest([text]))
    sizes = np.cumsum([len(text.encode()) for text in texts])
    cut = int(np.searchsorted(sizes, settings["bytes"])) + 1
    lines = [json.dumps({"text": text}) for text in texts[:cut]]
    (shared / TEXT).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return texts[cut:]


def work(job: Job, report: Report) -> dict[str, Any]:
    """Pretrain and classify."""
    started = time.monotonic()
    display = Reporter(job.name, report, "pretraining")
    if job.arm == "bag":
        found = {"accuracy": _linear(job, _bag(job))}
    elif job.arm in _PRETRAINED:
        directory = pretrained(job, display)
        display.stage = "fine-tuning"
        found = {"accuracy": _finetuned(job, directory, display, initialize=False)}
        if job.arm != "elmo":  # its own weights stay as they are: random ones would be random features
            display.stage = "fine-tuning from random weights"
            found["from_random"] = _finetuned(job, directory, display, initialize=True)
    else:
        found = {"accuracy": _linear(job, _means(job, pretrained(job, display)))}
    return {**found, "majority": _majority(job), "seconds": time.monotonic() - started}


def pretrained(job: Job, display: Reporter) -> Path:
    """Pretrain a rung, or go on with it; return its directory."""
    folder = job.folder / "pretrained"
    if job.arm in ("word2vec", "glove"):
        epochs = job.settings["epochs"] if job.arm == "word2vec" else job.settings["glove_epochs"]
        overrides = [f"data.source={job.shared / TEXT}", f"training.epochs={epochs}", "model.dimensions=100"]
        vectors = load_vector_recipe(f"{job.arm}/tiny", [*overrides, f"seed={job.seed}", "training.threads=1"])
        assert vectors is not None
        if pretrain_vectors(vectors, folder, display=display).signal is not None:
            raise Interrupted
        return folder
    content = _PRETRAINED[job.arm]
    recipe = Recipe.model_validate(
        {
            **content,
            "data": {"source": str(job.shared / TEXT)},
            "training": {
                "epochs": job.settings["epochs"],
                "batch": 32,
                "length": 64,
                "schedule": {"name": "cosine", "warmup": 0.1, "final": 0.05},
                **_ADAM,
                **content["training"],
            },
            "evaluation": {"every": 1000, "tokens": 20000},
            "output": {"save_every": 500, "keep": 1},
            "seed": job.seed,
        }
    )
    if pretrain(recipe, folder, display=display).reason == "interrupted":
        raise Interrupted
    return folder


def _finetuned(job: Job, directory: Path, display: Reporter, *, initialize: bool) -> float:
    """Return the accuracy on the test part at the learning rate that is best on the part to choose by."""
    scores = []
    for rate in job.settings["rates"]:
        given = {
            "model": str(directory),
            "data": {name: str(part_of(job.shared, name)) for name in PARTS} | {"longest": 96},
            "initialize": initialize,
            "seed": job.seed,
            "training": {"learning_rate": rate, "batch": 16, "epochs": job.settings["finetuning_epochs"]},
            "output": {"save_every": 1 << 20, "keep": 1},
        }
        family = _PRETRAINED[job.arm]["family"]
        recipe = build_recipe(given, (), family=family, parameters=0, examples=1 << 60)
        folder = job.folder / f"{'from-random' if initialize else 'finetuned'}-{rate}"
        _, results = finetune(recipe, folder, display=display)
        if results is None:
            raise Interrupted
        scores.append(tuple(results[part]["metrics"]["accuracy"] for part in ("dev", "test")))
    return max(scores, key=lambda score: score[0])[1]


def _rows(job: Job, part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in part_of(job.shared, part).read_text(encoding="utf-8").splitlines()]


def _texts(job: Job, part: str) -> list[str]:
    return [row["text"].lower() for row in _rows(job, part)]


def _majority(job: Job) -> float:
    labels = [row["label"] for row in _rows(job, "test")]
    return max(map(labels.count, set(labels))) / len(labels)


def _bag(job: Job) -> dict[str, Any]:
    """Return the words of each text, weighted by how rare they are in the labelled texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(_texts(job, "train"))
    return {part: vectorizer.transform(_texts(job, part)) for part in PARTS}


def _means(job: Job, directory: Path) -> dict[str, np.ndarray]:
    """Return the mean of the vectors of each text's words."""
    vectors = WordVectors.load(directory)
    known = {word: row for row, word in enumerate(vectors.words)}

    def mean(text: str) -> np.ndarray:
        rows = [known[word] for word in text.split() if word in known]
        return vectors.directions[rows].mean(0) if rows else np.zeros(vectors.matrix.shape[1], np.float32)

    return {part: np.stack([mean(text) for text in _texts(job, part)]) for part in PARTS}


def _linear(job: Job, features: Mapping[str, Any]) -> float:
    """Return the accuracy of a logistic regression on the test part, as strongly regularised as is best on the part to
    choose by."""
    from sklearn.linear_model import LogisticRegression

    labels = {part: [row["label"] for row in _rows(job, part)] for part in PARTS}
    models = [
        LogisticRegression(C=strength, max_iter=2000).fit(features["train"], labels["train"])
        for strength in (0.1, 1.0, 10.0, 100.0, 1000.0)
    ]
    best = max(models, key=lambda model: model.score(features["dev"], labels["dev"]))
    return float(best.score(features["test"], labels["test"]))


def decide(results: Results) -> Decision:
    """Decide by the fine-tuned Transformers against the vectors of words."""

    def accuracy(arms: Sequence[str]) -> list[float]:
        return [float(np.mean(found)) for found in zip(*(values(results, arm, _accuracy) for arm in arms), strict=True)]

    effect = paired_over_seeds(accuracy(("gpt", "bert")), accuracy(("word2vec", "glove")))
    arms = list(EXPERIMENT.arms)
    rungs = {
        f"{EXPERIMENT.arms[above]} minus {EXPERIMENT.arms[below]}": difference(results, above, below, _accuracy)
        for below, above in zip(arms, arms[1:], strict=False)
    }
    gains = {
        f"{EXPERIMENT.arms[arm]}: pretrained minus random weights": paired_over_seeds(
            values(results, arm, _accuracy), values(results, arm, lambda m: m["from_random"])
        )
        for arm in ("sa-lstm", "gpt", "bert")
    }
    return Decision(by_sign(effect), effect, details=rungs | gains)


def _accuracy(measures: Mapping[str, Any]) -> float:
    return float(measures["accuracy"])


EXPERIMENT = Experiment(
    arms={
        "bag": "bag of words",
        "word2vec": "word2vec",
        "glove": "GloVe",
        "sa-lstm": "SA-LSTM",
        "elmo": "ELMo",
        "gpt": "GPT",
        "bert": "BERT",
    },
    scales={
        "small": {
            "text": "python", "labels": "python", "bytes": 4_000_000, "epochs": 4, "glove_epochs": 15,
            "examples": 300, "finetuning_epochs": 10, "rates": [3e-4, 1e-3],
        },
        "medium": {
            "text": "python", "labels": "python", "bytes": 12_000_000, "epochs": 10, "glove_epochs": 25,
            "examples": 600, "finetuning_epochs": 10, "rates": [1e-4, 3e-4, 1e-3],
        },
    },
    work=work,
    prepare=prepare,
    columns=(
        Column("accuracy", "class", _accuracy),
        Column("... from random weights", "random", lambda m: m.get("from_random")),
        Column("always the most frequent class", "", lambda m: m["majority"]),
        Column("seconds of a core", "", lambda m: m["seconds"], more=False),
    ),
)  # fmt: skip

CLAIM = Claim(
    name="lineage",
    source="Peters et al. 2018, table 1; Radford et al. 2018, section 5; Devlin et al. 2018, table 1",
    hypothesis="each generation of pretraining represents text better: words counted, vectors of words, recurrent "
    "networks fine-tuned, their contextual states, Transformers fine-tuned",
    varied="what is pretrained, and how it is used to classify",
    controlled="the text to pretrain on, how often it is read (GloVe: once, its counts more often), the labelled "
    "texts, their division, by which part settings are chosen (a rate for the networks, a strength for logistic "
    "regression); not the number of parameters",
    decides="accuracy: mean of GPT and BERT, fine-tuned, minus the mean of word2vec and GloVe under logistic "
    "regression; reproduced if its interval lies above 0",
    decide=decide,
    experiment=EXPERIMENT,
)
