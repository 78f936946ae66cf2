"""Speed of an ELMo, training and embedding, beside the same work in plain PyTorch around `torch.nn.LSTM`; words/s.

    python benchmarks/elmo.py [--quick] [--sizes small original] [--rounds 5]

Text: the help pages that come with Python, words between white space. Both sides have the published model's sizes and
compute in float32. The peers are what one writes with PyTorch's modules: a convolution over all 50 characters of every
word, highway layers, `nn.LSTM(proj_size=...)` for each direction and layer, residual connections. nn.LSTM cannot clip
its states, which ours does, as the published model must. "types" reads the characters of each different word of a batch
once, as ours does, so that what remains is the LSTM.

lstm       one layer of both directions alone: forward and backward pass.
training   one update: loss over a softmax of 8,192 words, backward pass, clipped, fused AdamW.
embedding  all layers of sentences of different lengths in batches; ours also with the characters of words kept from
           batch to batch ("kept"), as `stemma embed` does.

One run of each arm in turn; medians.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common import interleave, machine, median, table
from stemma.families.elmo.model import PRESETS, ELMo, ELMoConfig
from stemma.families.elmo.objective import BidirectionalLM
from stemma.families.elmo.words import spell, spell_boundaries
from stemma.inference.word_states import WordStates
from stemma.layers.packed_rows import PackedRows
from stemma.layers.projected_lstm import ProjectedLSTM
from stemma.training.hardware import prepare_processor

SOFTMAX = 8192
Arms = dict[str, Callable[[], object]]


class PlainELMo(nn.Module):
    """The same network in PyTorch's own modules; `types`: characters of a word are read once a batch."""

    def __init__(self, config: ELMoConfig, types: bool) -> None:
        super().__init__()
        self.config, self.types = config, types
        self.embedding = nn.Embedding(261, config.characters)
        self.convolutions = nn.ModuleList(nn.Conv1d(config.characters, n, width) for width, n in config.filters)
        total = sum(number for _, number in config.filters)
        self.gates = nn.ModuleList(nn.Linear(total, total) for _ in range(config.highways))
        self.transforms = nn.ModuleList(nn.Linear(total, total) for _ in range(config.highways))
        self.project = nn.Linear(total, config.projection)
        self.lstms = nn.ModuleList(
            nn.ModuleList(
                nn.LSTM(config.projection, config.cell, proj_size=config.projection, batch_first=True)
                for _ in range(config.layers)
            )
            for _ in range(2)
        )
        self.output = nn.Linear(config.projection, SOFTMAX)

    def words(self, characters: Tensor) -> Tensor:
        """Map [words, 50] to [words, projection]."""
        embedded = self.embedding(characters).transpose(1, 2)
        x = torch.relu(torch.cat([convolution(embedded).amax(-1) for convolution in self.convolutions], -1))
        for gate, transform in zip(self.gates, self.transforms, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * torch.relu(transform(x)) + (1 - share) * x
        return self.project(x)

    def read(self, tokens: Tensor, spelled: Tensor) -> Tensor:
        """Map words by number [batch, length] to [batch, length, projection]."""
        if self.types:
            different, place = tokens.unique(return_inverse=True)
            return self.words(spelled[different])[place]
        return self.words(spelled[tokens.flatten()]).unflatten(0, tokens.shape)

    def context(self, x: Tensor, direction: int, lengths: Tensor | None = None) -> list[Tensor]:
        """Return each layer of one direction."""
        layers = []
        for number, lstm in enumerate(self.lstms[direction]):
            if lengths is None:
                out, _ = lstm(x)
            else:
                packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                out, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True)
            x = out + x if number else out
            layers.append(x)
        return layers


def corpus(vocabulary: int) -> tuple[list[str], list[list[int]]]:
    """Return words by falling frequency, and sentences by number; rare words are the last one."""
    lines = [line.split() for name in sorted(topics) for line in topics[name].splitlines()]
    counts: dict[str, int] = {}
    for line in lines:
        for word in line:
            counts[word] = counts.get(word, 0) + 1
    known = ["</S>", "<S>", "<UNK>", *sorted(counts, key=lambda word: (-counts[word], word))][:vocabulary]
    numbers = {word: number for number, word in enumerate(known)}
    return known, [[numbers.get(word, 2) for word in line] for line in lines if line]


def lstm_arms(config: ELMoConfig, batch: int, length: int) -> Arms:
    ours = ProjectedLSTM(
        config.projection, config.cell, config.projection, cell_clip=config.cell_clip,
        projection_clip=config.projection_clip,
    )  # fmt: skip
    plain = nn.ModuleList(
        nn.LSTM(config.projection, config.cell, proj_size=config.projection, batch_first=True) for _ in range(2)
    )
    x = torch.randn(2, batch, length, config.projection, requires_grad=True)
    rows = PackedRows.of(torch.full((batch,), length), length)

    def run_ours() -> None:
        ours(rows.pack(x), rows)[0].sum().backward()

    def run_plain() -> None:
        for direction, lstm in enumerate(plain):
            lstm(x[direction])[0].sum().backward()

    return {"stemma": run_ours, "torch": run_plain}


def training_arms(config: ELMoConfig, batch: int, length: int) -> Arms:
    words, sentences = corpus(SOFTMAX)
    stream = [number for sentence in sentences for number in (0, *sentence)]
    tokens = torch.tensor(stream[: batch * (length + 1)]).view(batch, length + 1)
    spelled = torch.from_numpy(spell(words)).long()
    objective = BidirectionalLM(tuple(words), separator=0)

    def update(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

        def step() -> None:
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def plain_loss(model: PlainELMo) -> Tensor:
        x, losses = model.read(tokens, spelled), []
        for direction, row in enumerate((x[:, :-1], x[:, 1:].flip(1))):
            targets = tokens[:, 1:] if direction == 0 else tokens[:, :-1].flip(1)
            logits = model.output(model.context(row, direction)[-1])
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        return torch.stack(losses).mean()

    ours = ELMo(replace(config, vocabulary=SOFTMAX, dropout=0.0))
    arms: Arms = {"stemma": update(ours, lambda: objective.loss(ours, {"tokens": tokens})[0])}
    for name, types in (("torch types", True), ("torch", False)):
        plain = PlainELMo(config, types)
        arms[name] = update(plain, lambda plain=plain: plain_loss(plain))  # type: ignore[misc]
    return arms


def embedding_arms(config: ELMoConfig, sentences: list[list[str]], batch: int) -> Arms:
    batches = [sentences[start : start + batch] for start in range(0, len(sentences), batch)]
    ours = ELMo(replace(config, dropout=0.0)).eval()
    kept = WordStates(ours, batch_words=1 << 30)

    def run_kept() -> None:
        for part in batches:
            kept(part)

    def run_ours() -> None:
        for part in batches:
            WordStates(ours, batch_words=1 << 30)(part)

    @torch.inference_mode()
    def run_plain(model: PlainELMo) -> None:
        ends = torch.from_numpy(spell_boundaries()).long()
        for part in batches:
            words = list(dict.fromkeys(word for sentence in part for word in sentence))
            numbers = {word: number + 2 for number, word in enumerate(words)}
            spelled = torch.cat([ends, torch.from_numpy(spell(words)).long()])
            rows = [torch.tensor([0, *(numbers[word] for word in sentence), 1]) for sentence in part]
            lengths = torch.tensor([len(row) for row in rows])
            x = model.read(nn.utils.rnn.pad_sequence(rows, batch_first=True), spelled)
            back = nn.utils.rnn.pad_sequence([x[i, :n].flip(0) for i, n in enumerate(lengths)], batch_first=True)
            ahead, behind = model.context(x, 0, lengths), model.context(back, 1, lengths)
            for one, other in zip(ahead, behind, strict=True):
                turned = [other[i, :n].flip(0) for i, n in enumerate(lengths)]
                torch.cat([one, nn.utils.rnn.pad_sequence(turned, batch_first=True)], -1).numpy()

    arms: Arms = {"stemma kept": run_kept, "stemma": run_ours}
    for name, types in (("torch types", True), ("torch", False)):
        plain = PlainELMo(config, types).eval()
        arms[name] = lambda plain=plain: run_plain(plain)  # type: ignore[misc]
    return arms


def measure(what: str, size: str, arms: Arms, words: int, rounds: int) -> list[list[str]]:
    seconds = {name: median(times) for name, times in interleave(arms, rounds).items()}
    best = min(time for name, time in seconds.items() if name.startswith("torch"))
    return [[size, what, name, f"{words / time:,.0f}", f"{best / time:.2f}"] for name, time in seconds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "original"], choices=["small", "medium", "original"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="rows of a batch")
    parser.add_argument("--length", type=int, default=32, help="words of a row in training")
    parser.add_argument("--quick", action="store_true", help="the small model, three rounds")
    options = parser.parse_args()
    prepare_processor()
    if options.quick:
        options.sizes, options.rounds = ["small"], 3
    print(machine())
    words, lines = corpus(1 << 30)
    sentences = [[words[number] for number in line] for line in lines[: 8 * options.batch]]
    rows = []
    for size in options.sizes:
        config, batch, length = PRESETS[size], options.batch, options.length
        total = batch * length
        rows += measure("lstm", size, lstm_arms(config, batch, length), total, options.rounds)
        rows += measure("training", size, training_arms(config, batch, length), total, options.rounds)
        embedded = embedding_arms(config, sentences, batch)
        rows += measure("embedding", size, embedded, sum(map(len, sentences)), options.rounds)
    print(table(["model", "what", "arm", "words/s", "times torch's best"], rows))


if __name__ == "__main__":
    main()
