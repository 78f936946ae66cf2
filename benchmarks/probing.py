"""Edge probing a BERT beside the same with transformers and a loop in plain PyTorch, with the same random weights.

    python benchmarks/probing.py [--quick] [--conllu FILE] [--sentences 512] [--epochs 2] [--rounds 3]

Task: the dependencies of a CoNLL-U file, or made-up pairs of words of Python's help topics with 20 labels. The peer
is what one writes after the paper (Tenney et al. 2019, section 3.1): a fast tokenizer's word numbers, every layer of a
padded batch kept in float32, a padded tensor of span tokens for each batch, masked attentive pooling, and the same
scalar mix, projections, classifier, loss, clipping and Adam.

layers    all layers of all sentences, once. Ours are in bfloat16 in a memory-mapped file, the peer's in memory.
training  the probe of the mix of all layers, from those layers; sentences in the same batches.

Before anything is timed, the peer's layers have to be ours, to bfloat16's 1 %, and with the weights of our probe its
logits ours, to 1e-2. Memory: what is held of the layers, and the largest of a process that does only this arm. One
round of each arm in turn; medians.
"""

import argparse
import copy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from common import interleave, machine, median, peak_memory, table
from stemma import families
from stemma.data.tokenizers import Tokenizer
from stemma.families.bert.model import BERT, BERTConfig
from stemma.probing.edge_examples import Examples
from stemma.probing.edge_training import ProbeTraining, predict, train_probes
from stemma.probing.edges import Sentence, Target, label_matrix, label_names
from stemma.probing.layer_cache import layers_of_sentences
from stemma.probing.span_probe import DROPOUT, WIDTH, SpanProbes, mix
from stemma.probing.spans import TASKS
from stemma.training.hardware import prepare_processor
from texts import VOCABULARY, running_text, wordpiece

BATCH = 32
CONFIG = BERTConfig(vocabulary=VOCABULARY, layers=6, hidden=384, heads=12)  # MiniLM's size


def draw_sentences(count: int, conllu: Path | None) -> list[Sentence]:
    """Return the first sentences of a file, or made-up ones with a target for each word but the first."""
    if conllu is not None:
        return list(TASKS["dependencies"](conllu)[:count])
    rng = np.random.default_rng(0)
    words = running_text().split()
    found = []
    for _ in range(count):
        start, length = int(rng.integers(len(words) - 40)), int(rng.integers(8, 33))
        own = tuple(words[start : start + length])
        heads = rng.integers(0, length, length)
        targets = [
            Target(((at, at + 1), (int(heads[at]), int(heads[at]) + 1)), (f"label {rng.integers(20)}",))
            for at in range(1, length)
        ]
        found.append(Sentence(own, tuple(targets)))
    return found


class PlainProbe(nn.Module):
    """One probe over padded batches: mix, two projections, masked attention over each span's tokens, classifier."""

    def __init__(self, layers: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.mixing, self.gamma = nn.Parameter(torch.zeros(layers)), nn.Parameter(torch.ones(()))
        self.projections = nn.ModuleList(nn.Linear(hidden, WIDTH) for _ in range(2))
        self.attentions = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))
        self.classify = nn.Sequential(
            nn.Linear(2 * WIDTH, WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT), nn.Linear(WIDTH, labels)
        )

    def forward(self, layers: Tensor, rows: Tensor, spans: Tensor) -> Tensor:
        """Map layers [batch, 1 + layers, length, hidden], the sentence of each target [targets] and its spans
        [targets, 2, 2] to logits [targets, labels]."""
        mixed = self.gamma * torch.einsum("l,blth->bth", self.mixing.softmax(0), layers)
        places = torch.arange(mixed.shape[1])
        pooled = []
        for side, (projection, attention) in enumerate(zip(self.projections, self.attentions, strict=True)):
            tokens = projection(mixed)[rows]
            inside = (places >= spans[:, side, :1]) & (places < spans[:, side, 1:])
            weights = attention(tokens).squeeze(-1).masked_fill(~inside, -torch.inf).softmax(-1)
            pooled.append((weights.unsqueeze(-1) * tokens).sum(1))
        return self.classify(torch.cat(pooled, -1))

    @torch.no_grad()
    def take(self, probes: SpanProbes) -> None:
        """Take the weights of the first of our probes."""
        self.mixing.copy_(probes.mixing[0])
        self.gamma.copy_(probes.gamma[0])
        ours = [*probes.projections, *probes.attentions, probes.hidden, probes.output]
        theirs = [*self.projections, *self.attentions, self.classify[0], self.classify[4]]
        for one, other in zip(theirs, ours, strict=True):
            one.weight.copy_(other.weight[0].T)
            one.bias.copy_(other.bias[0, 0])
        self.classify[2].weight.copy_(probes.norm_weight[0, 0])
        self.classify[2].bias.copy_(probes.norm_bias[0, 0])


class Peer:
    """The plain way."""

    def __init__(self, folder: Path, sentences: list[Sentence], names: list[str]) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.sentences, self.labels = sentences, torch.from_numpy(label_matrix(sentences, names)).float()
        self.starts = np.cumsum([0, *(len(one.targets) for one in sentences)])
        self.layers: list[Tensor] = []
        self.spans: list[Tensor] = []

    @torch.inference_mode()
    def extract(self) -> None:
        """Keep the layers of each sentence, float32 [1 + layers, tokens, hidden], and its targets' spans of tokens."""
        self.layers, self.spans = [], []
        for start in range(0, len(self.sentences), BATCH):
            part = self.sentences[start : start + BATCH]
            batch = self.tokenizer(
                [list(one.words) for one in part], is_split_into_words=True, padding=True, return_tensors="pt"
            )
            states = torch.stack(self.model(**batch, output_hidden_states=True).hidden_states)
            for number, one in enumerate(part):
                words = batch.word_ids(number)
                places = {word: [at for at, owner in enumerate(words) if owner == word] for word in set(words)}
                self.layers.append(states[:, number, : int(batch["attention_mask"][number].sum())].clone())
                spans = [
                    [(places[begin][0], places[end - 1][-1] + 1) for begin, end in target.spans]
                    for target in one.targets
                ]
                self.spans.append(torch.tensor(spans))

    def batch(self, numbers: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the probe takes of sentences, and labels."""
        longest = max(self.layers[number].shape[1] for number in numbers)
        layers = torch.stack(
            [F.pad(self.layers[number], (0, 0, 0, longest - self.layers[number].shape[1])) for number in numbers]
        )
        rows = torch.cat([torch.full((len(self.spans[number]),), at) for at, number in enumerate(numbers)])
        spans = torch.cat([self.spans[number] for number in numbers])
        labels = torch.cat([self.labels[self.starts[number] : self.starts[number + 1]] for number in numbers])
        return layers, rows, spans, labels

    def train(self, epochs: int) -> PlainProbe:
        """Return a trained probe."""
        probe = PlainProbe(self.layers[0].shape[0], self.layers[0].shape[2], self.labels.shape[1])
        optimizer = torch.optim.Adam(probe.parameters(), lr=1e-4, fused=True)
        order = np.random.default_rng(0)
        for _ in range(epochs):
            sentences = order.permutation(len(self.sentences))
            for start in range(0, len(sentences), BATCH):
                *inputs, labels = self.batch(sentences[start : start + BATCH])
                F.binary_cross_entropy_with_logits(probe(*inputs), labels).backward()
                nn.utils.clip_grad_norm_(probe.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
            with torch.inference_mode():  # ours measures after each epoch too
                for start in range(0, len(sentences), BATCH):
                    probe(*self.batch(np.arange(start, min(start + BATCH, len(sentences))))[:3])
        return probe

    def held(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


class Ours:
    """The library's way."""

    def __init__(self, model: BERT, tokenizer: Tokenizer, sentences: list[Sentence], names: list[str]) -> None:
        self.model, self.tokenizer, self.sentences, self.names = model, tokenizer, sentences, names
        self.examples: Examples | None = None

    def extract(self) -> None:
        """Compute all layers, into a new file."""
        with TemporaryDirectory() as cache:
            words = [one.words for one in self.sentences]
            layers = layers_of_sentences(self.model, self.tokenizer, words, Path(cache))
            self.examples = Examples(self.sentences, layers, self.names)

    def train(self, epochs: int) -> SpanProbes:
        """Return a trained probe."""
        assert self.examples is not None
        training = ProbeTraining(epochs)
        return train_probes(mix(self.model.config.layers), self.examples, self.examples, training, seed=0)

    def held(self) -> int:
        assert self.examples is not None
        return self.examples.layers.states.nbytes


def check(ours: Ours, peer: Peer) -> tuple[float, float]:
    """Return the largest differences of layers and of logits."""
    examples = ours.examples
    assert examples is not None
    found = examples.layers
    of_layers = 0.0
    for number, layers in enumerate(peer.layers):
        own = found.states[found.starts[number] : found.starts[number + 1]].float().transpose(0, 1)
        of_layers = max(of_layers, float((own - layers[:, 1:-1]).abs().max() / layers.abs().max()))
    if of_layers > 1e-2:
        raise SystemExit(f"the layers differ by {of_layers:.1%}")
    torch.manual_seed(0)
    probes = SpanProbes(mix(ours.model.config.layers), found.states.shape[2], 2, len(ours.names)).eval()
    probe = PlainProbe(peer.layers[0].shape[0], found.states.shape[2], len(ours.names)).eval()
    probe.take(probes)
    rounded = copy.copy(peer)
    rounded.layers = [layer.bfloat16().float() for layer in peer.layers]
    numbers = np.arange(min(64, len(peer.sentences)))
    with torch.inference_mode():
        theirs = probe(*rounded.batch(numbers)[:3]).numpy()
    difference = float(np.abs(predict(probes, examples)[0, : len(theirs)] - theirs).max())
    if difference > 1e-2:
        raise SystemExit(f"the logits differ by {difference}")
    return of_layers, difference


def prepare(options: argparse.Namespace, folder: Path) -> tuple[BERT, Tokenizer, list[Sentence], list[str]]:
    sentences = draw_sentences(options.sentences, options.conllu)
    tokenizer = wordpiece()
    torch.manual_seed(0)
    model = BERT(CONFIG).eval()
    families.save(model, tokenizer, folder)
    return model, tokenizer, sentences, label_names([sentences])


def alone(arm: str, options: argparse.Namespace) -> int:
    """Return the largest memory of a process that does one arm, in bytes."""
    arguments = [sys.executable, __file__, "--arm", arm, "--sentences", str(options.sentences), "--epochs", "1"]
    arguments += ["--conllu", str(options.conllu)] if options.conllu else []
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conllu", type=Path, help="Universal Dependencies; default: made-up targets")
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="128 sentences, two rounds")
    parser.add_argument("--arm", choices=("stemma", "transformers"), help="do this arm once, print the memory it took")
    options = parser.parse_args()
    if options.quick:
        options.sentences, options.rounds = 128, 2
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare_processor()
    with TemporaryDirectory() as folder:
        model, tokenizer, sentences, names = prepare(options, Path(folder))
        ours = Ours(model, tokenizer, sentences, names)
        if options.arm == "stemma":
            ours.extract()
            ours.train(options.epochs)
            print(peak_memory())
            return
        peer = Peer(Path(folder), sentences, names)
    if options.arm:
        peer.extract()
        peer.train(options.epochs)
        print(peak_memory())
        return
    ours.extract()
    peer.extract()
    of_layers, of_logits = check(ours, peer)
    targets = sum(len(one.targets) for one in sentences)
    print(machine())
    print(f"{len(sentences)} sentences, {targets} targets; layers same to {of_layers:.1e}, logits to {of_logits:.1e}\n")
    rows = []
    for what, arms in {
        f"layers, s of {len(sentences)} sentences": {"stemma": ours.extract, "transformers": peer.extract},
        f"training, s of {options.epochs} epochs": {
            "stemma": lambda: ours.train(options.epochs), "transformers": lambda: peer.train(options.epochs)
        },
    }.items():  # fmt: skip
        seconds = {name: median(times) for name, times in interleave(arms, options.rounds).items()}
        ratio = seconds["transformers"] / seconds["stemma"]
        rows.append([what, *(f"{value:.2f}" for value in seconds.values()), f"{ratio:.2f}"])
    sizes = [ours.held() / 1e6, peer.held() / 1e6]
    rows.append(["layers held, MB", *(f"{size:.0f}" for size in sizes), f"{sizes[1] / sizes[0]:.2f}"])
    peaks = [alone(arm, options) / 1e6 for arm in ("stemma", "transformers")]
    rows.append(["largest memory, MB", *(f"{size:.0f}" for size in peaks), f"{peaks[1] / peaks[0]:.2f}"])
    print(table(["", "stemma", "transformers", "times ours"], rows))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
