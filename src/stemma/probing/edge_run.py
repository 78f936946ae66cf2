"""Edge probing, whole: a model's layers once, probes and what they are held against, and scores with intervals."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.evaluation.intervals import Interval, over_examples
from stemma.probing import span_probe
from stemma.probing.edge_controls import FRACTIONS, control_task, online_code, randomised
from stemma.probing.edge_examples import Examples
from stemma.probing.edge_scores import by_label, count, f1_interval, micro_f1, summary
from stemma.probing.edge_training import ProbeTraining, predict, train_probes
from stemma.probing.edges import Sentence, label_names
from stemma.probing.layer_analysis import centre_of_gravity, divergence_from_uniform, expected_layer, is_ordered
from stemma.probing.layer_cache import Layers, layers_of_sentences
from stemma.probing.span_probe import SpanProbes, View

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

MIX, TOP, LEXICAL, CONVOLUTION, RANDOM = "mix", "top", "lexical", "convolution", "random"


@dataclass(frozen=True)
class EdgeTask:
    """A task's parts, all with targets of as many spans.

    Args:
        name: for people. test: what scores are of; None: of `dev`, by which probes are also chosen.
        scored: an expression; only labels that it matches whole count in the scores (`ARG[0-5A]|ARGM-.*`).
    """

    name: str
    train: Sequence[Sentence]
    dev: Sequence[Sentence]
    test: Sequence[Sentence] | None = None
    scored: str | None = None

    def parts(self) -> dict[str, Sequence[Sentence]]:
        """Return the sentences of each part by its name."""
        found = {"train": self.train, "dev": self.dev}
        return found if self.test is None else {**found, "test": self.test}


@dataclass(frozen=True)
class Wanted:
    """What is trained beside the mix of all layers.

    Args:
        baselines: the last layer, the embeddings, a convolution over them, a mix of a random encoder's layers.
        analysis: a probe for each layer and for the mix of the layers up to each. control: a task of random labels.
        code: the minimum description length.
    """

    baselines: bool = True
    analysis: bool = False
    control: bool = False
    code: bool = False


@dataclass(frozen=True)
class Found:
    """The results, as plain data, and the logits of the mix's probe, float [kept targets, labels], of the part that is
    scored; `kept`: which of its targets they are of."""

    results: dict[str, Any]
    logits: np.ndarray
    kept: np.ndarray

    def probabilities(self, sentences: Sequence[Sentence]) -> list[np.ndarray | None]:
        """Return float [labels] of each target of the scored sentences in turn, None of one that was not read."""
        rows: list[np.ndarray | None] = [None] * sum(len(sentence.targets) for sentence in sentences)
        for number, logits in zip(self.kept, self.logits, strict=True):
            rows[number] = 1 / (1 + np.exp(-logits))
        return rows


def probe_edges(
    model: Any,
    tokenizer: Tokenizer | None,
    task: EdgeTask,
    training: ProbeTraining,
    cache: Path,
    *,
    wanted: Wanted = Wanted(),  # noqa: B008
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda what, total: nullcontext(lambda done: None),
) -> Found:
    """Probe a frozen model for a task.

    Args:
        model: in eval mode, on the device on which the probes are trained too. tokenizer: None of an ELMo.
        cache: folder for the layers. say: told what is long or large. progress: shows a stage of so many parts.
    Raises:
        InputError: see `layers_of_sentences`; the parts' targets have not as many spans; a part of which no target is
            read; `scored` is no expression or matches no label.
    """
    run = _Probing(model, tokenizer, task, training, cache, seed, say, progress)
    top = model.config.layers
    data = run.examples(model)
    probes, logits = run.score(MIX, span_probe.mix(top), data)
    if wanted.baselines:
        run.score(TOP, span_probe.top(top), data)
        run.score(LEXICAL, span_probe.lexical(), data)
        run.score(CONVOLUTION, span_probe.lexical(radius=1), data)
        run.score(RANDOM, span_probe.mix(top), run.examples(randomised(model, seed)))
    results = run.results(data)
    shares = probes.shares().detach().cpu().numpy()[0]
    results["layers"] = {
        "shares": shares.tolist(),
        "centre_of_gravity": centre_of_gravity(shares),
        "divergence_from_uniform": divergence_from_uniform(shares),
    }
    if wanted.analysis:
        results["layers"] |= run.analysis(data, top)
    if wanted.control:
        results["control"] = run.control(data, top)
    if wanted.code:
        with progress("description length", len(FRACTIONS) - 1) as report:
            code = online_code(
                span_probe.mix(top), data["train"], data["dev"], training, seed=seed, device=run.device, report=report
            )
        bits = code.bits / len(data["train"])
        results["description_length"] = {"bits_per_target": bits, "compression": code.compression}
    said = logits[:, run.classes] >= 0
    right = data["scored"].labels[:, run.classes]
    results["by_label"] = by_label(said, right, [run.names[number] for number in run.classes])
    return Found(results, logits, data["scored"].kept)


class _Probing:
    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        task: EdgeTask,
        training: ProbeTraining,
        cache: Path,
        seed: int,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.tokenizer, self.task, self.training, self.cache = tokenizer, task, training, cache
        self.seed, self.say, self.progress = seed, say, progress
        self.device = next(model.parameters()).device
        self.parts = task.parts()
        sides = {len(one.targets[0].spans) for part in self.parts.values() for one in part}
        if len(sides) > 1:
            raise InputError(f"{task.name}: parts with one span and with two a target; expected all alike")
        self.names = label_names(self.parts.values())
        try:
            scored = re.compile(".*" if task.scored is None else task.scored, re.DOTALL)
        except re.error as error:
            raise InputError(f"{task.name}: '{task.scored}' is no regular expression ({error})") from error
        self.classes = [number for number, name in enumerate(self.names) if scored.fullmatch(name)]
        if not self.classes:
            raise InputError(
                f"{task.name}: no label matches '{task.scored}'; there are {', '.join(self.names[:8])} ..."
            )
        self.encoders: dict[str, Any] = {}

    def examples(self, model: Any) -> dict[str, Examples]:
        """Return the examples of each part over a model's layers; "scored" is the last part."""
        found = {}
        for name, sentences in self.parts.items():
            with self.progress(f"layers of {name}", len(sentences)) as report:
                layers = self._layers(model, sentences, report)
            found[name] = Examples(sentences, layers, self.names)
            if not len(found[name]):
                raise InputError(
                    f"{self.task.name}, {name}: no target is read; are the sentences longer than the model?"
                )
        return {**found, "scored": found[name]}

    def _layers(self, model: Any, sentences: Sequence[Sentence], report: Callable[[int], None]) -> Layers:
        words = [sentence.words for sentence in sentences]
        return layers_of_sentences(model, self.tokenizer, words, self.cache, say=self.say, report=report)

    def train(self, what: str, view: View, data: dict[str, Examples]) -> tuple[SpanProbes, np.ndarray]:
        """Return trained probes, and their logits on the scored part, float [probes, targets, labels]."""
        with self.progress(what, self.training.epochs) as report:
            probes = train_probes(
                view, data["train"], data["dev"], self.training, seed=self.seed, classes=self.classes,
                device=self.device, report=report,
            )  # fmt: skip
        return probes, predict(probes, data["scored"])

    def counts(self, logits: np.ndarray, scored: Examples) -> np.ndarray:
        """Return int64 [probes, sentences, 3], see `count`."""
        said, right = logits[..., self.classes] >= 0, scored.labels[:, self.classes]
        return count(said, right, scored.sentence, len(scored.starts) - 1)

    def score(self, name: str, view: View, data: dict[str, Examples]) -> tuple[SpanProbes, np.ndarray]:
        """Train one probe and keep its scores under a name; see `train`."""
        probes, logits = self.train(name, view, data)
        scored = data["scored"]
        f1 = _plain(f1_interval(self.counts(logits, scored)[0]))
        self.encoders[name] = {"f1": f1, **summary(logits[0][:, self.classes], scored.labels[:, self.classes])}
        return probes, logits[0]

    def analysis(self, data: dict[str, Examples], top: int) -> dict[str, Any]:
        """Return scores by layer, and the layer at which they are gained on average."""
        views = {"each layer": span_probe.each(top), "layers up to each": span_probe.cumulative(top)}
        alone, upto = (self.counts(self.train(name, view, data)[1], data["scored"]) for name, view in views.items())
        scores = micro_f1(upto.sum(1))

        def resampled(drawn: np.ndarray) -> np.ndarray:
            rows = drawn.astype(np.int64)
            return expected_layer(np.stack([micro_f1(counts[rows].sum(-2)) for counts in upto], -1))

        expected = None
        if is_ordered(scores):
            expected = _plain(over_examples(range(upto.shape[1]), resampled))
        return {
            "each": [_plain(f1_interval(counts)) for counts in alone],
            "cumulative": [_plain(f1_interval(counts)) for counts in upto],
            "expected_layer": expected,
            "expected_layer_as_it_is": float(expected_layer(scores)),
        }

    def control(self, data: dict[str, Examples], top: int) -> dict[str, float]:
        """Return the score on random labels, and by how much the task's is above it."""
        drawn = control_task(list(self.parts.values()), self.seed)
        examples = {
            name: Examples(part, data[name].layers, self.names) for name, part in zip(self.parts, drawn, strict=True)
        }
        scored = examples[list(self.parts)[-1]]
        _, logits = self.train("control", span_probe.mix(top), {**examples, "scored": scored})
        score = float(micro_f1(self.counts(logits, scored)[0].sum(0)))
        return {"f1": score, "selectivity": self.encoders[MIX]["f1"][0] - score}

    def results(self, data: dict[str, Examples]) -> dict[str, Any]:
        """Return the scores so far, and what was read."""
        coverage = {}
        trained = set(label_names([self.task.train]))
        for name, sentences in self.parts.items():
            labels = Counter(label for one in sentences for target in one.targets for label in target.labels)
            layers = data[name].layers
            coverage[name] = {
                "sentences": len(sentences), "targets": len(data[name]), "dropped": data[name].dropped,
                "words_cut": layers.cut, "words_lost": layers.lost, "labels": len(labels),
                "labels_not_in_train": {label: labels[label] for label in sorted(set(labels) - trained)},
            }  # fmt: skip
        scored = list(self.parts)[-1]
        return {
            "task": self.task.name, "scored": scored, "labels": self.names, "seed": self.seed,
            "coverage": coverage, "encoders": self.encoders,
        }  # fmt: skip


def _plain(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]
