"""Edge probing, whole, on tiny models: batches, scores, training, controls and what comes out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef, precision_recall_fscore_support
from tiny_models import elmo_of, model_of, tokenizer_of

from stemma.errors import InputError
from stemma.probing import span_probe
from stemma.probing.edge_controls import Code, control_task, online_code, randomised
from stemma.probing.edge_examples import Examples
from stemma.probing.edge_run import EdgeTask, Wanted, probe_edges
from stemma.probing.edge_scores import by_label, count, f1_interval, micro_f1, summary
from stemma.probing.edge_training import ProbeTraining, predict, train_probes
from stemma.probing.edges import Sentence, Target, label_names
from stemma.probing.layer_cache import layers_of_sentences

WORDS = "the quick brown fox jumps over lazy dog cat sings Anna Boris Paris London".split()  # noqa: SIM905
TRAINING = ProbeTraining(3, 1e-2, batch=8)


def part(size: int, seed: int, *, pairs: bool = False) -> list[Sentence]:
    """Words, each labelled by how it begins; of pairs, by the word before."""
    rng = np.random.default_rng(seed)
    sentences = []
    for _ in range(size):
        words = [str(word) for word in rng.choice(WORDS, 6)]
        kinds = ["name" if word[0].isupper() else "word" for word in words]
        targets = [
            Target(((at, at + 1), (at - 1, at)) if pairs else ((at, at + 1),), (kinds[at - 1 if pairs else at],))
            for at in range(1, 6)
        ]
        sentences.append(Sentence(tuple(words), tuple(targets)))
    return sentences


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    sentences = part(24, 0)
    words = [sentence.words for sentence in sentences]
    layers = layers_of_sentences(model_of("bert"), tokenizer_of("bert"), words, tmp_path)
    return Examples(sentences, layers, label_names([sentences]))


def test_counts_and_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, right = rng.normal(size=(2, 30, 4)), rng.random((30, 4)) < 0.3
    sentence = np.sort(rng.integers(0, 9, 30))
    said = logits >= 0
    counts = count(said, right, sentence, 10)
    for number in range(10):
        rows = sentence == number
        assert counts[1, number].tolist() == [
            int((said[1] & right)[rows].sum()), int((said[1] & ~right)[rows].sum()), int((~said[1] & right)[rows].sum())
        ]  # fmt: skip
    assert micro_f1(counts[0].sum(0)) == pytest.approx(f1_score(right, said[0], average="micro"))
    assert micro_f1(np.zeros(3, np.int64)) == 0.0
    interval = f1_interval(counts[0])
    assert interval.estimate == pytest.approx(micro_f1(counts[0].sum(0)))
    assert interval.low < interval.estimate < interval.high
    found = summary(logits[0], right)
    assert found == {"matthews": pytest.approx(matthews_corrcoef(right.ravel(), said[0].ravel()))}  # not one label each
    one = np.eye(4, dtype=bool)[rng.integers(0, 4, 30)]
    assert summary(logits[0], one)["accuracy"] == (logits[0].argmax(1) == one.argmax(1)).mean()
    precision, recall, f1, support = precision_recall_fscore_support(right, said[0], zero_division=0)
    for number, row in enumerate(by_label(said[0], right, "abcd").values()):
        assert list(row.values()) == pytest.approx([precision[number], recall[number], f1[number], support[number]])


def test_batches_hold_the_states_of_their_spans(examples: Examples) -> None:
    targets = np.array([3, 50, 51])
    states, (spans,), labels = examples.batch(targets, span_probe.mix(2), torch.device("cpu"))
    ends = [*spans.starts[1:].tolist(), len(spans.tokens)]
    for target, start, end in zip(targets, spans.starts.tolist(), ends, strict=True):
        begin, size = int(examples.begins[0, target]), int(examples.sizes[0, target])
        expected = examples.layers.states[begin : begin + size].float()
        assert torch.equal(states[spans.tokens[start:end], 0], expected)
    assert torch.equal(labels.bool(), torch.from_numpy(examples.labels[targets]))
    top, _, _ = examples.batch(targets, span_probe.top(2), torch.device("cpu"))
    assert torch.equal(top, states[:, :, 2:])


def test_neighbours_end_where_the_sentence_ends(examples: Examples) -> None:
    first = np.array([int(examples.layers.starts[1])])
    states = examples._states(first, span_probe.lexical(radius=1))
    assert states.shape == (1, 3, 1, 32) and not states[0, 0].any()
    assert torch.equal(states[0, 2, 0], examples.layers.states[first[0] + 1, 0].float())


def test_a_part_is_what_its_sentences_are(examples: Examples) -> None:
    some = examples.part(np.array([7, 2]))
    assert len(some) == 10 and some.sentences_with_targets().tolist() == [2, 7]
    assert np.array_equal(some.labels, examples.labels[[*range(10, 15), *range(35, 40)]])
    assert np.array_equal(some.targets_of(np.array([7])), np.arange(5, 10))


def test_probes_side_by_side_learn_as_each_alone(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_probe, "DROPOUT", 0.0)
    together = train_probes(span_probe.each(2), examples, examples, TRAINING, seed=1)
    logits = predict(together, examples)
    for layer in range(3):
        alone = train_probes(span_probe.View(((layer,),)), examples, examples, TRAINING, seed=1)
        np.testing.assert_allclose(logits[layer], predict(alone, examples)[0], atol=2e-3)


def test_the_best_weights_stay_and_it_ends_without_gains(examples: Examples) -> None:
    epochs: list[int] = []
    training = ProbeTraining(100, 1e-2, batch=8, patience=1, stop=2)
    probes = train_probes(span_probe.mix(2), examples, examples, training, seed=0, report=epochs.append)
    assert 3 <= len(epochs) < 100 and not probes.training
    assert micro_f1(count(predict(probes, examples)[0] >= 0, examples.labels, examples.sentence, 24).sum(0)) == 1.0


def test_training_leaves_the_generator_of_others_alone(examples: Examples) -> None:
    before = torch.random.get_rng_state()
    one, two = (train_probes(span_probe.top(2), examples, examples, TRAINING, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(predict(one, examples), predict(two, examples))


def test_control_labels_are_of_the_words_and_as_frequent() -> None:
    sentences = part(400, 0)
    drawn, again = control_task([sentences, sentences], seed=1)
    assert drawn == again != control_task([sentences], seed=2)[0]
    of: dict[str, set] = {}
    for sentence in drawn:
        for target in sentence.targets:
            of.setdefault(sentence.words[target.spans[0][0]], set()).add(target.labels)
    assert set(of) == set(WORDS) and all(len(labels) == 1 for labels in of.values())
    # Over many word types the labels are as frequent as in the task.
    numbered = [Sentence((f"w{n}",), (Target(((0, 1),), ("rare" if n % 4 == 0 else "usual",)),)) for n in range(4000)]
    rare = sum(one.targets[0].labels == ("rare",) for one in control_task([numbered], 0)[0])
    assert 0.22 < rare / 4000 < 0.28


@pytest.mark.parametrize("family", ["bert", "gpt", "glm", "t5", "mixtral", "lstm", "transformer"])
def test_a_random_encoder_has_the_embeddings_and_orthogonal_layers(family: str) -> None:
    model: Any = model_of(family)
    other = randomised(model, 0)
    blocks = (other.encoder if family in ("t5", "transformer") else other).blocks
    for name, weight in blocks.named_parameters():
        if "bias" in name.rpartition(".")[2]:
            assert not weight.any()
        elif weight.dim() == 1:
            assert torch.all(weight == 1)
        else:
            rows = weight if weight.shape[-2] <= weight.shape[-1] else weight.mT
            torch.testing.assert_close(rows @ rows.mT, torch.eye(rows.shape[-2]).expand(*rows.shape[:-2], -1, -1))
    kept = {name for name, weight in model.state_dict().items() if torch.equal(weight, other.state_dict()[name])}
    assert any("embedding" in name for name in kept)
    again, third = randomised(model, 0).state_dict(), randomised(model, 1).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in other.state_dict().items())
    assert any(not torch.equal(weight, third[name]) for name, weight in other.state_dict().items())


def test_the_first_part_of_a_code_is_a_bit_a_decision(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stemma.probing.edge_controls.predict", lambda probes, sent: np.zeros((1, len(sent), 2)))
    done: list[int] = []
    code = online_code(span_probe.mix(2), examples, examples, ProbeTraining(1), seed=0, report=done.append)
    # Probes that know nothing need a bit a decision too.
    assert code.bits == pytest.approx(code.uniform) and code.uniform == 24 * 5 * 2
    assert len(done) == 5  # after 1, 2, 3, 6 and 12 of 24 sentences, as 100 % is the end
    assert Code(10.0, 25.0).compression == 2.5


def test_a_probe_finds_what_the_layers_hold(tmp_path: Path) -> None:
    task = EdgeTask("names", part(60, 0), part(20, 1), part(20, 2))
    training = ProbeTraining(12, 1e-2)
    found = probe_edges(model_of("bert"), tokenizer_of("bert"), task, training, tmp_path, wanted=Wanted())
    scores = {name: encoder["f1"][0] for name, encoder in found.results["encoders"].items()}
    assert set(scores) == {"mix", "top", "lexical", "convolution", "random"}
    assert scores["lexical"] > 0.95 and scores["mix"] > 0.9  # a word's kind is in its embedding
    assert found.results["scored"] == "test" and found.results["labels"] == ["name", "word"]
    rows = found.probabilities(task.test or [])
    right = [target.labels[0] for sentence in task.test or [] for target in sentence.targets]
    hits = [
        ("name", "word")[int(row.argmax())] == label for row, label in zip(rows, right, strict=True) if row is not None
    ]
    assert np.mean(hits) == pytest.approx(found.results["encoders"]["mix"]["accuracy"])
    assert found.results["by_label"]["name"]["support"] == right.count("name")
    assert len(list((tmp_path / "layers").iterdir())) == 6  # three parts of two encoders


@pytest.mark.parametrize("architecture", ["transformer", "gated-cnn"])
def test_a_relative_of_elmo_beside_its_random_self(architecture: str, tmp_path: Path) -> None:
    task, model = EdgeTask("names", part(24, 0), part(8, 1)), elmo_of(architecture)
    found = probe_edges(model, None, task, ProbeTraining(1, 1e-2), tmp_path).results
    assert list(found["encoders"]) == ["mix", "top", "lexical", "convolution", "random"]
    assert len(found["layers"]["shares"]) == 3 and found["coverage"]["dev"]["dropped"] == 0
    words = [sentence.words for sentence in task.dev]
    own, other = (layers_of_sentences(one, None, words, tmp_path).states for one in (model, randomised(model, 0)))
    assert len(own) == 8 * 6 and other.isfinite().all()
    assert torch.equal(own[:, 0], other[:, 0])  # characters are read as they were
    assert not any(torch.allclose(own[:, layer], other[:, layer], atol=1e-2) for layer in (1, 2))


def test_layers_control_and_code_of_an_elmo(tmp_path: Path) -> None:
    task = EdgeTask("pairs", part(24, 0, pairs=True), part(8, 1, pairs=True), scored="na.*")
    wanted = Wanted(baselines=False, analysis=True, control=True, code=True)
    results = probe_edges(elmo_of(), None, task, ProbeTraining(2, 1e-2), tmp_path, wanted=wanted).results
    layers = results["layers"]
    assert len(layers["each"]) == len(layers["cumulative"]) == len(layers["shares"]) == 3
    assert sum(layers["shares"]) == pytest.approx(1) and 0 <= layers["centre_of_gravity"] <= 2
    assert results["control"]["selectivity"] == results["encoders"]["mix"]["f1"][0] - results["control"]["f1"]
    assert results["description_length"]["bits_per_target"] > 0
    assert list(results["by_label"]) == ["name"] and list(results["encoders"]) == ["mix"]


def test_what_is_not_read_is_counted_and_labels_of_one_part_only_are_named(tmp_path: Path) -> None:
    dev = [*part(8, 1), Sentence(("fox",) * 40, (Target(((0, 1),), ("odd",)), Target(((38, 40),), ("odd",))))]
    task = EdgeTask("names", part(24, 0), dev)
    model, tokenizer = model_of("bert", context=32), tokenizer_of("bert")
    found = probe_edges(model, tokenizer, task, ProbeTraining(1), tmp_path, wanted=Wanted(baselines=False))
    coverage = found.results["coverage"]["dev"]
    pieces = len(tokenizer.encode(" ".join(["fox"] * 40))) // 40
    assert coverage["dropped"] == 1 and coverage["targets"] == 41 and coverage["words_cut"] == 40 - 30 // pieces
    assert coverage["labels_not_in_train"] == {"odd": 2} and coverage["words_lost"] == 0
    assert found.probabilities(dev)[-1] is None and found.probabilities(dev)[-2] is not None


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (EdgeTask("x", part(2, 0), part(2, 0, pairs=True)), "x: parts with one span and with two a target"),
        (EdgeTask("x", part(2, 0), part(2, 0), scored="ARG["), r"x: 'ARG\[' is no regular expression"),
        (EdgeTask("x", part(2, 0), part(2, 0), scored="no"), "x: no label matches 'no'; there are name, word"),
        (
            EdgeTask("x", part(2, 0), [Sentence(("fox",) * 99, (Target(((98, 99),), ("word",)),))]),
            "x, dev: no target is read",
        ),
    ],
)
def test_mistakes(tmp_path: Path, task: EdgeTask, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe_edges(model_of("bert", context=32), tokenizer_of("bert"), task, ProbeTraining(1), tmp_path)
