"""A Transformer beside its peers: tokens/s of training, and sentences/s of translating with beams.

    python benchmarks/translation.py [--quick] [--hidden 256] [--layers 3] [--rounds 5]
    python benchmarks/translation.py --model runs/transformer-multi30k --sources test_2016_flickr.de.gz

Training: transformers' MarianMT of the same shape, twice: fed with the same batches, which are ours, by tokens and of
pairs of about one length; and with batches of as many pairs in random order, as a data loader deals them out. An update
is everything from ids to new weights: collating, smoothed loss, both passes, fused Adam; float32, dropout 0.1. What
counts is the targets' tokens without padding; the pairs' lengths are those of captions, 5 to 40 tokens.

Translating: the same weights in MarianMT and, where the package is there, in CTranslate2 (float32), which reads the
directory that we write. All search alike, with 4 beams, and none may use more threads than the others. Without --model
the weights are random and every text has 20 tokens; with it, texts end where they do. It is printed how many are the
same.

One round of each arm in turn; medians.
"""

import argparse
import importlib.util
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import stemma
from common import interleave, machine, median, table
from stemma.data.tables import numbered_lines
from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.families import save
from stemma.families.transformer.checkpoint import to_published
from stemma.families.transformer.model import Transformer, TransformerConfig
from stemma.families.transformer.objective import Translation
from stemma.inference.beam import beam_search
from stemma.inference.encoder_decoder import SourceDecoder
from stemma.inference.prepacked import prepacked
from stemma.training.batches import Batches, Plan
from stemma.training.hardware import prepare_processor
from stemma.training.optimizer import adamw

VOCABULARY, END, PADDING = 8192, 0, 8191
PAIRS, TOKENS, AT_ONCE = 4000, 2048, 4  # pairs; tokens of a batch on a side; batches of a round
BEAMS, LENGTH, SENTENCES = 4, 20, 16  # of translating: beams; tokens of a text of random weights; sentences at a time


class Side(list[np.ndarray]):
    """Texts as ids."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self])


def captions(seed: int) -> SimpleNamespace:
    """Return pairs of random ids whose lengths are about those of captions and of each other."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(2.7, 0.35, PAIRS), 5, 40).astype(int)
    others = np.clip(lengths + rng.integers(-3, 4, PAIRS), 5, 40)
    sources, targets = (Side(rng.integers(1, PADDING, size) for size in sizes) for sizes in (lengths, others))
    return SimpleNamespace(sources=sources, targets=targets, fingerprint="")


def twin_of(model: Transformer) -> nn.Module:
    """Return transformers' model with the same weights."""
    published, tensors = to_published(model)
    twin = transformers.MarianMTModel(transformers.AutoConfig.for_model(**published))
    twin.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=False)
    return twin


def smoothed_loss(twin: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the peer's loss, as its `Trainer` smooths it."""
    shifted = F.pad(batch["target"][:, :-1].clamp_min(0), (1, 0), value=PADDING)
    padding = batch.get("source_padding")
    mask = None if padding is None else padding.long()
    logits = twin(input_ids=batch["source"], attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["target"].flatten(), label_smoothing=0.1)


def updates(network: nn.Module, loss_of: Callable[[dict[str, Tensor]], Tensor], batches: Iterator[Any]) -> Any:
    """Return what makes a round of updates, and the list to which it adds the targets' tokens of each round."""
    network.train()
    optimizer = adamw(network, learning_rate=1e-4, betas=(0.9, 0.98), epsilon=1e-9, weight_decay=0.0)
    counted: list[int] = []

    def run() -> None:
        tokens = 0
        for batch in itertools.islice(batches, AT_ONCE):
            loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += int((batch["target"] >= 0).sum())
        counted.append(tokens)

    return run, counted


def measure_training(config: TransformerConfig, rounds: int) -> list[list[str]]:
    objective, split = Translation(END), captions(0)
    sequences = objective.sequences(split, TOKENS, seed=1)

    def by_tokens() -> Iterator[dict[str, Tensor]]:
        batches = Batches(sequences, objective, Plan(1), seed=1)
        return (batches.micro_batches(step)[0] for step in itertools.count())

    def by_pairs() -> Iterator[dict[str, Tensor]]:
        rng, size = np.random.default_rng(1), PAIRS // len(sequences)
        while True:
            for numbers in rng.permutation(PAIRS)[: PAIRS // size * size].reshape(-1, size).tolist():
                rows = [(np.append(split.sources[n], END), np.append(split.targets[n], END)) for n in numbers]
                yield objective.collate([{"pairs": rows}])

    ours, same, random = Transformer(config), twin_of(Transformer(config)), twin_of(Transformer(config))
    arms, counts = {}, {}
    arms["stemma"], counts["stemma"] = updates(ours, lambda batch: objective.loss(ours, batch)[0], by_tokens())
    for name, twin, batches in (("the same batches", same, by_tokens()), ("in random order", random, by_pairs())):
        arms[name], counts[name] = updates(twin, lambda batch, twin=twin: smoothed_loss(twin, batch), batches)
    seconds = interleave(arms, rounds)
    rates = {
        name: median([tokens / time for tokens, time in zip(counts[name][-rounds:], times, strict=True)])
        for name, times in seconds.items()
    }
    return [
        ["training, tokens/s", f"transformers, {name}", f"{rates['stemma']:,.0f}", f"{rates[name]:,.0f}",
         f"{rates['stemma'] / rates[name]:.2f}"]
        for name in list(arms)[1:]
    ]  # fmt: skip


class Task:
    """Sentences to translate: ids with their end, and what ends a text (None: its length does)."""

    def __init__(self, sources: list[list[int]], end: int | None) -> None:
        self.sources, self.end = sorted(sources, key=len), end
        self.longest = LENGTH if end is None else 100


def translate(model: Transformer, task: Task) -> list[list[int]]:
    texts = []
    with prepacked(model, SENTENCES * BEAMS):
        for some in batches_of(task.sources):
            decoder = SourceDecoder(model, some, copies=[BEAMS] * len(some), new_tokens=task.longest)
            limits = [task.longest] * len(some)
            texts += [found[0].tokens for found in beam_search(decoder, beams=BEAMS, limits=limits, end=task.end)]
    return [[token for token in text if token != task.end] for text in texts]


def batches_of(sources: list[list[int]]) -> Iterator[list[list[int]]]:
    for start in range(0, len(sources), SENTENCES):
        yield sources[start : start + SENTENCES]


@torch.inference_mode()
def translate_by_transformers(twin: Any, task: Task) -> list[list[int]]:
    texts = []
    padding = twin.config.pad_token_id
    for some in batches_of(task.sources):
        rows = [torch.tensor(row) for row in some]
        source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        ends = {"eos_token_id": task.end} if task.end is not None else {"eos_token_id": None, "min_new_tokens": LENGTH}
        written = twin.generate(
            source,
            attention_mask=(source != padding).long(),
            num_beams=BEAMS,
            do_sample=False,
            max_new_tokens=task.longest,
            pad_token_id=padding,
            **ends,
        )
        texts += [[token for token in row if token not in (padding, task.end)] for row in written.tolist()]
    return texts


def translator_of(directory: Path, tokenizer: Tokenizer, folder: Path) -> Callable[[Task], list[list[int]]]:
    """Return CTranslate2's way, with as many threads as PyTorch has."""
    import ctranslate2

    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(folder), force=True)
    translator = ctranslate2.Translator(str(folder), intra_threads=torch.get_num_threads(), compute_type="float32")

    def run(task: Task) -> list[list[int]]:
        rows = [[tokenizer.token(index) for index in source] for source in task.sources]
        least = LENGTH if task.end is None else 1
        found = translator.translate_batch(
            rows,
            beam_size=BEAMS,
            length_penalty=1.0,
            max_batch_size=SENTENCES,
            max_decoding_length=task.longest,
            min_decoding_length=least,
        )
        return [[tokenizer.id(token) for token in one.hypotheses[0]] for one in found]

    return run


def measure_translating(directory: Path, task: Task, folder: Path, rounds: int) -> list[list[str]]:
    model, tokenizer = stemma.load(directory), stemma.load_tokenizer(directory)
    twin = transformers.MarianMTModel.from_pretrained(directory).eval()
    arms: dict[str, Callable[[Task], list[list[int]]]] = {
        "stemma": lambda task: translate(model, task),  # type: ignore[arg-type]
        "transformers": lambda task: translate_by_transformers(twin, task),
    }
    if importlib.util.find_spec("ctranslate2"):
        arms["CTranslate2"] = translator_of(directory, tokenizer, folder / "ctranslate2")
    texts: dict[str, list[list[int]]] = {}

    def keeping(name: str) -> Callable[[], None]:
        def run() -> None:
            texts[name] = arms[name](task)

        return run

    seconds = interleave({name: keeping(name) for name in arms}, rounds)
    rates = {name: len(task.sources) / median(times) for name, times in seconds.items()}
    rows = []
    for name in list(arms)[1:]:
        same = sum(ours == theirs for ours, theirs in zip(texts["stemma"], texts[name], strict=True))
        print(f"{name}: {same} of {len(task.sources)} texts are ours", flush=True)
        rows.append(
            ["translating, sentences/s", name, f"{rates['stemma']:.1f}", f"{rates[name]:.1f}",
             f"{rates['stemma'] / rates[name]:.2f}"]
        )  # fmt: skip
    return rows


def random_directory(config: TransformerConfig, folder: Path) -> Path:
    """Write random weights with a tokenizer whose ids are those of the vocabulary."""
    words = " ".join(f"w{number}" for number in range(20_000))
    tokenizer = Translation.prepare_tokenizer(train_tokenizer([words, words], "bpe", VOCABULARY - 1), {})
    assert tokenizer.vocabulary == config.vocabulary and tokenizer.pad == config.padding
    save(Transformer(config).eval(), tokenizer, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64, the width of a head")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a directory of ours, to translate with instead of random weights")
    parser.add_argument("--sources", type=Path, help="a file of lines to translate with it")
    parser.add_argument("--quick", action="store_true", help="hidden 128, two layers, 48 sentences, three rounds")
    options = parser.parse_args()
    if (options.model is None) != (options.sources is None):
        parser.error("--model and --sources belong together")
    if options.quick:
        options.hidden, options.layers, options.sentences, options.rounds = 128, 2, 48, 3
    logging.getLogger("transformers").setLevel(logging.ERROR)
    prepare_processor()
    torch.manual_seed(0)
    config = TransformerConfig(
        vocabulary=VOCABULARY,
        hidden=options.hidden,
        heads=options.hidden // 64,
        layers=options.layers,
        feed_forward=4 * options.hidden,
        padding=PADDING,
    )
    print(f"{machine()}\nhidden {options.hidden}, {options.layers} + {options.layers} layers, {BEAMS} beams\n")
    rows = measure_training(config, options.rounds)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if options.model is None:
            directory = random_directory(config, folder / "random")
            sources = [[*row.tolist(), END] for row in captions(1).sources[: options.sentences]]
            task = Task(sources, None)
        else:
            directory, tokenizer = options.model, stemma.load_tokenizer(options.model)
            lines = [line for _, line in itertools.islice(numbered_lines(options.sources), options.sentences)]
            task = Task([[*ids, tokenizer.separator] for ids in tokenizer.encode_batch(lines)], tokenizer.separator)
        rows += measure_translating(directory, task, folder, options.rounds)
    heads = ["what", "peer", "stemma", "the peer", "times the peer"]
    print(f"\n{table(heads, rows)}\n\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
