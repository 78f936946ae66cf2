"""Pretraining speed of GPT, BERT, T5 and GLM beside transformers' model of the family: tokens/s of one whole update.

    python benchmarks/pretraining.py [--quick] [--families gpt bert t5 glm] [--layers 6] [--hidden 384] [--rounds 4]

An update is everything from the tokens of a corpus to the new weights: reading, masking, collating, forward and
backward pass, clipping, fused AdamW; float32, no dropout. Both arms have the same sizes and see as many tokens of text
an update, --batch times --length, in rows of one length: neither computes padding, so that what packing saves us on
real documents does not count here. Masking is each side's own, as much of it in both:

gpt   GPT2LMHeadModel, DataCollatorForLanguageModeling without masks.
bert  BertForMaskedLM, DataCollatorForLanguageModeling; 15 % of the tokens, no next-sentence prediction.
t5    T5ForConditionalGeneration, spans as in transformers' Flax example (which has no collator in PyTorch), in numpy.
glm   transformers has no such model: PyTorch's own TransformerEncoder with a dense mask and all logits, fed by our
      masking and collating. It says what the loss at the targets alone saves, and little about anyone's data pipeline.

One update of each arm in turn; medians.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from common import interleave, machine, median, table
from stemma.data.packing import PackedSequences
from stemma.data.token_arrays import FileArray
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.objective import MaskedLanguageModel
from stemma.families.bert.passages import Passage
from stemma.families.bert.tokens import BERTTokens
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.objective import BlankInfilling
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.gpt.objective import Causal
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.objective import SpanCorruption
from stemma.training.batches import Batches, Plan
from stemma.training.hardware import prepare_processor
from stemma.training.optimizer import adamw

VOCABULARY, SPECIAL = 8192, 128  # the last SPECIAL ids are for special tokens and T5's sentinels, and not in the text
PAD, FIRST, LAST, MASK, UNKNOWN, START, END, HIDDEN = range(VOCABULARY - 8, VOCABULARY)
SENTINELS = tuple(range(VOCABULARY - 9, VOCABULARY - 109, -1))
GLM_TOKENS = GLMTokens(LAST, FIRST, LAST, MASK, MASK, MASK, START, END, HIDDEN)
BERT_TOKENS = BERTTokens(FIRST, LAST, MASK, LAST, ["a"] * VOCABULARY)


@dataclass(frozen=True)
class Sizes:
    """Of the model (T5 has so many layers in either stack), and of an update."""

    layers: int
    hidden: int
    batch: int
    length: int

    @property
    def heads(self) -> int:
        return self.hidden // 64

    @property
    def tokens(self) -> int:
        return self.batch * self.length


class Passages:
    """Packed sequences in BERT's frame, all of the full length."""

    def __init__(self, packed: PackedSequences) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def sequence(self, index: int) -> Passage:
        return Passage.of(BERT_TOKENS, self.packed.sequence(index)[:-3])


def our_model(family: str, sizes: Sizes) -> tuple[nn.Module, Any]:
    """Return a model without dropout and its objective."""
    shape = {"vocabulary": VOCABULARY, "layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads}
    none = {"dropout": 0.0, "attention_dropout": 0.0}
    if family == "gpt":
        return GPT(GPTConfig(**shape, context=sizes.length)), Causal(separator=LAST, separate_documents=False)
    if family == "bert":
        config = BERTConfig(**shape, **none, context=sizes.length)
        return BERT(config), MaskedLanguageModel(BERT_TOKENS, examples="full_sentences")
    if family == "glm":
        return GLM(GLMConfig(**shape, **none, context=sizes.length)), BlankInfilling(GLM_TOKENS)
    return T5(T5Config(**shape, feed_forward=4 * sizes.hidden)), SpanCorruption(LAST, VOCABULARY, SENTINELS)


def our_loss(family: str, sizes: Sizes, corpus: FileArray) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return our model, and what computes the loss of the next batch."""
    model, objective = our_model(family, sizes)
    packed = PackedSequences(SimpleNamespace(tokens=corpus, fingerprint=""), sizes.length, seed=1)
    sequences = Passages(packed) if family == "bert" else packed
    batches = Batches(sequences, objective, Plan(sizes.batch), seed=1)
    steps = iter(range(1 << 30))
    return model, lambda: objective.loss(model, batches.micro_batches(next(steps))[0])[0]


def peer_model(family: str, sizes: Sizes) -> nn.Module:
    """Return the peer's model of the same size, without dropout."""
    if family == "glm":
        return PlainGLM(sizes)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": "sdpa"}
    if family == "gpt":
        shape |= {"n_positions": sizes.length, "n_embd": sizes.hidden, "n_layer": sizes.layers, "n_head": sizes.heads}
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **none, bos_token_id=0, eos_token_id=0))
    inner = 4 * sizes.hidden
    if family == "bert":
        shape |= {"hidden_size": sizes.hidden, "intermediate_size": inner, "max_position_embeddings": sizes.length}
        shape |= {"num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForMaskedLM(transformers.BertConfig(**shape, **none, pad_token_id=PAD))
    shape |= {"d_model": sizes.hidden, "d_ff": inner, "d_kv": 64, "num_layers": sizes.layers, "num_heads": sizes.heads}
    shape |= {"pad_token_id": PAD, "decoder_start_token_id": PAD, "eos_token_id": LAST, "dropout_rate": 0.0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**shape))


def peer_loss(family: str, sizes: Sizes, corpus: FileArray) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return the peer's model, and what computes the loss of the next batch, from lists of ids as `datasets` has."""
    model = peer_model(family, sizes)
    if family == "glm":
        _, objective = our_model(family, sizes)
        packed = PackedSequences(SimpleNamespace(tokens=corpus, fingerprint=""), sizes.length, seed=2)
        own = Batches(packed, objective, Plan(sizes.batch), seed=2)
        steps = iter(range(1 << 30))
        return model, lambda: model(own.micro_batches(next(steps))[0])
    room = sizes.length - 2 if family == "bert" else sizes.length
    rows = np.asarray(corpus)[: len(corpus) // room * room].reshape(-1, room).tolist()
    if family == "bert":
        rows = [[FIRST, *row, LAST] for row in rows]
    examples = [{"input_ids": row} for row in rows]
    if family == "t5":
        collate: Any = corrupt_spans
    else:
        collate = transformers.DataCollatorForLanguageModeling(peer_tokenizer(), mlm=family == "bert")
    batches = endless(torch.utils.data.DataLoader(examples, sizes.batch, shuffle=True, collate_fn=collate))
    return model, lambda: model(**next(batches)).loss


def peer_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer for the collator, which asks it for special tokens only; its words are numbers."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(index): index for index in range(VOCABULARY)}))
    ids = {"pad_token": PAD, "cls_token": FIRST, "sep_token": LAST, "mask_token": MASK, "unk_token": UNKNOWN}
    names = {role: str(index) for role, index in ids.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def endless(loader: Any) -> Iterator[Mapping[str, Tensor]]:
    while True:
        yield from loader


def corrupt_spans(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Collate for T5 as the Flax example does: a mask a row, then all rows at once."""
    tokens = np.array([example["input_ids"] for example in examples])
    noise = np.stack([noise_mask(tokens.shape[1]) for _ in tokens])
    return {"input_ids": spans_replaced(tokens, noise), "labels": spans_replaced(tokens, ~noise)}


def noise_mask(length: int, density: float = 0.15, mean_span: float = 3.0) -> np.ndarray:
    """Return bool [length]: kept and noise in turn, in spans of random lengths."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    lengths = np.stack([random_parts(length - noise, spans), random_parts(noise, spans)], axis=1).ravel()
    starts = np.zeros(length, np.int64)
    starts[np.cumsum(lengths)[:-1]] = 1
    return np.cumsum(starts) % 2 == 1


def random_parts(items: int, parts: int) -> np.ndarray:
    cuts = np.arange(items - 1) < parts - 1
    np.random.shuffle(cuts)
    return np.bincount(np.cumsum(np.pad(cuts, (1, 0))))


def spans_replaced(tokens: np.ndarray, noise: np.ndarray) -> Tensor:
    """Return [batch, shorter]: each run of noise as one sentinel, and the end."""
    first = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    written = np.where(first, SENTINELS[0] + 1 - np.cumsum(first, axis=1), tokens)
    kept = written[~noise | first].reshape(len(tokens), -1)
    return torch.from_numpy(np.pad(kept, ((0, 0), (0, 1)), constant_values=LAST))


class PlainGLM(nn.Module):
    """GLM's architecture from PyTorch's own layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.tokens = nn.Embedding(VOCABULARY, sizes.hidden)
        self.positions = nn.ModuleList(nn.Embedding(sizes.length + 1, sizes.hidden) for _ in range(2))
        layer = nn.TransformerEncoderLayer(
            sizes.hidden, sizes.heads, 4 * sizes.hidden, 0.0, nn.GELU("tanh"), batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, sizes.layers, nn.LayerNorm(sizes.hidden), enable_nested_tensor=False)
        for embedding in (self.tokens, *self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of the targets."""
        tokens, (first, second) = batch["tokens"], batch["positions"].unbind(1)
        key = torch.arange(tokens.shape[1])
        hidden = (key > key.unsqueeze(1)) & (key >= batch["context_lengths"].view(-1, 1, 1))
        x = self.tokens(tokens) + self.positions[0](first) + self.positions[1](second)
        x = self.blocks(x, hidden.repeat_interleave(self.heads, 0))
        return F.cross_entropy((x @ self.tokens.weight.T).flatten(0, 1), batch["targets"].flatten())


def update(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """Return what makes one update."""
    model.train()
    optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        loss_of().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(family: str, sizes: Sizes, corpus: FileArray, rounds: int) -> list[str]:
    torch.manual_seed(0)
    arms, counts = {}, {}
    for name, build in {"stemma": our_loss, "peer": peer_loss}.items():
        model, loss_of = build(family, sizes, corpus)
        arms[name] = update(model, loss_of)
        counts[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    rates = {name: sizes.tokens / median(times) for name, times in interleave(arms, rounds).items()}
    peer = "plain PyTorch" if family == "glm" else "transformers"
    parameters = f"{counts['stemma']:.1f}M / {counts['peer']:.1f}M"
    ratio = rates["stemma"] / rates["peer"]
    return [family, parameters, peer, f"{rates['stemma']:,.0f}", f"{rates['peer']:,.0f}", f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = ["gpt", "bert", "t5", "glm"]
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384, help="a multiple of 64, the width of a head")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="two layers, eight rows of 128 tokens, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.batch, options.length, options.rounds = 2, 8, 128, 3
    sizes = Sizes(options.layers, options.hidden, options.batch, options.length)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    prepare_processor()
    print(f"{machine()}\n{sizes}, {sizes.tokens} tokens of text an update in both\n")
    rows = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokens"
        np.random.default_rng(0).integers(VOCABULARY - SPECIAL, size=2**20).astype("<u2").tofile(path)
        corpus = FileArray([path], "<u2")
        for family in options.families:
            rows.append(measure(family, sizes, corpus, options.rounds))
            print(" ".join(rows[-1]), flush=True)
    heads = ["family", "parameters, ours / theirs", "peer", "stemma, tokens/s", "peer, tokens/s", "times the peer"]
    print(f"\n{table(heads, rows)}\n\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
