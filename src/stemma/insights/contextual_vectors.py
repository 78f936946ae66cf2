"""Does the vector of a word depend on what it means there? (Peters et al. 2018, section 5.3; Ethayarajh 2019)

Pairs of words are made one: in texts that no model has seen, every occurrence of either is written as the first. Which
of the two stood there only the context can tell.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma import families
from stemma.data.tokenizers import load_tokenizer, pieces_in_text
from stemma.data.vectors import WordVectors
from stemma.errors import InputError
from stemma.evaluation.intervals import over_seeds, paired_over_seeds
from stemma.families.bert.tokens import BERTTokens
from stemma.inference.word_states import WordStates
from stemma.insights.claims import Claim, Decision, Results, by_all, values
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.lineage import TEXT, pretrained, write_text
from stemma.insights.workers import Report, Reporter

CONTEXTS = "contexts.json"
_AROUND = 10  # words on either side
_RANKS = 40, 1000  # of the words that are made one, by frequency


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Write the text to pretrain on, and pairs of words with their contexts in the rest."""
    rest = write_text(settings, shared)
    texts = [json.loads(line)["text"] for line in (shared / TEXT).read_text(encoding="utf-8").splitlines()]
    counts = Counter(word for text in texts for word in text.split() if re.fullmatch("[a-z]{3,}", word))
    candidates = [word for word, _ in counts.most_common(_RANKS[1])[_RANKS[0] :]]
    found = _contexts(rest, set(candidates), settings["contexts"])
    enough = [word for word in candidates if len(found[word]) == settings["contexts"]]
    # Neighbours in frequency, so that no word is told from its partner by how usual its contexts are.
    pairs = list(zip(enough[::2], enough[1::2], strict=False))
    if not pairs:
        raise InputError(
            f"{settings['text']}: no two words have {settings['contexts']} contexts each beyond the first "
            f"{settings['bytes']:,} bytes; expected a larger text"
        )
    order = np.random.default_rng(0).permutation(len(pairs))[: settings["pairs"]]
    chosen = [{word: found[word] for word in pairs[number]} for number in sorted(order.tolist())]
    (shared / CONTEXTS).write_text(json.dumps(chosen), encoding="utf-8")


def _contexts(texts: Sequence[str], wanted: set[str], most: int) -> dict[str, list[tuple[list[str], list[str]]]]:
    """Return of each wanted word the words before and after it, at most so many times and once a text."""
    found: dict[str, list[tuple[list[str], list[str]]]] = defaultdict(list)
    for text in texts:
        words = text.split()
        seen = set()
        for place in range(_AROUND, len(words) - _AROUND):
            word = words[place]
            if word in wanted and word not in seen and len(found[word]) < most:
                seen.add(word)
                found[word].append((words[place - _AROUND : place], words[place + 1 : place + 1 + _AROUND]))
    return found


def work(job: Job, report: Report) -> dict[str, Any]:
    """Pretrain, and see how well the nearest vector of another context tells which word stood there."""
    directory = pretrained(job, Reporter(job.name, report, "pretraining"))
    report((job.name, "measuring", 0, 0, {}))
    scores = []
    for pair in json.loads((job.shared / CONTEXTS).read_text(encoding="utf-8")):
        first, *_ = pair
        sentences = [[*before, first, *after] for contexts in pair.values() for before, after in contexts]
        labels = np.repeat(np.arange(2), [len(contexts) for contexts in pair.values()])
        scores.append(nearest_agrees(_VECTORS[job.arm](directory, sentences), labels))
    return {"accuracy": float(np.mean(scores)), "pairs": len(scores)}


def nearest_agrees(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return how often the nearest other vector, by cosine, has the same label; among equally near ones their share.

    Args:
        vectors: float [items, dimensions]. labels: int [items].
    """
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines >= cosines.max(1, keepdims=True) - 1e-6
    agree = labels[:, None] == labels
    return float(((nearest & agree).sum(1) / nearest.sum(1)).mean())


def _of_glove(directory: Path, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    vectors = WordVectors.load(directory)
    return np.stack([vectors.matrix[vectors.row(sentence[_AROUND])] for sentence in sentences])


def _of_elmo(directory: Path, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the mean of the layers above the words."""
    model: Any = families.load(directory)
    states = WordStates(model)(sentences)
    return np.stack([layers[1:, _AROUND].mean(0) for layers in states])


@torch.inference_mode()
def _of_bert(directory: Path, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the mean over a word's pieces in the last layer, which sees as much of the sentence as the model reads."""
    model: Any = families.load(directory)
    tokenizer = load_tokenizer(directory)
    ids = BERTTokens.of(tokenizer)
    rows = []
    for sentence in sentences:
        pieces = pieces_in_text(tokenizer, sentence)
        word = pieces[_AROUND]
        room = (model.config.context - 2 - len(word)) // 2  # on either side: some words of a text are lines of signs
        before = [piece for other in pieces[:_AROUND] for piece in other][-room:]
        after = [piece for other in pieces[_AROUND + 1 :] for piece in other][:room]
        start = 1 + len(before)
        tokens = torch.tensor([[ids.first, *before, *word, *after, ids.last]])
        rows.append(model.hidden(tokens)[0, start : start + len(word)].mean(0))
    return torch.stack(rows).numpy()


_VECTORS = {"glove": _of_glove, "elmo": _of_elmo, "bert": _of_bert}


def decide(results: Results) -> Decision:
    """Decide by both contextual models, each against the vectors that know no context."""

    def accuracy(arm: str) -> list[float]:
        return values(results, arm, lambda measures: measures["accuracy"])

    effects = {EXPERIMENT.arms[arm]: paired_over_seeds(accuracy(arm), accuracy("glove")) for arm in ("elmo", "bert")}
    outcome, effect = by_all(effects.values())
    details = {f"{name} minus GloVe": interval for name, interval in effects.items()}
    return Decision(outcome, effect, details=details | {"GloVe": over_seeds(accuracy("glove"))})


EXPERIMENT = Experiment(
    arms={"glove": "GloVe", "elmo": "ELMo", "bert": "BERT"},
    scales={
        "small": {
            "text": "python", "bytes": 4_000_000, "epochs": 4, "glove_epochs": 15, "pairs": 40, "contexts": 30,
        },
        "medium": {
            "text": "python", "bytes": 12_000_000, "epochs": 10, "glove_epochs": 25, "pairs": 100, "contexts": 50,
        },
    },
    work=work,
    prepare=prepare,
    columns=(Column("right word by the nearest context", "right", lambda measures: measures["accuracy"]),),
)  # fmt: skip

CLAIM = Claim(
    name="contextual-vectors",
    source="Peters et al. 2018, section 5.3; Devlin et al. 2018, section 5.3; the test after Gale et al. 1992 "
    "(pseudo-words)",
    hypothesis="the vector that a pretrained network gives a word tells its senses apart; a vector of the word alone "
    "does not",
    varied="what gives the vector: GloVe, ELMo (mean of its layers), BERT (last layer)",
    controlled="the text to pretrain on, how often it is read (GloVe: once), the pairs of words and their "
    "contexts (unseen)",
    decides="two words are written as one; how often the nearest vector by cosine is from a context of the same word, "
    "minus GloVe's (half, as all its vectors are one); reproduced if the intervals of both ELMo and BERT lie above 0, "
    "not reproduced if one lies below",
    decide=decide,
    experiment=EXPERIMENT,
)
