"""How well a language model predicts a text: loss, perplexity and bits per byte, however training packed its text."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import families
from stemma.data.corpora import CorpusSource
from stemma.data.shards import Progress, prepare
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.dispatch import with_article
from stemma.training.architecture import build_objective
from stemma.training.distributed import Workers
from stemma.training.held_out import Evaluation, evaluate
from stemma.training.objective import HeldOut, LossModule

WINDOW = 256  # tokens, of a model without a context


def score_text(
    model: Any,
    tokenizer: Tokenizer,
    source: CorpusSource,
    *,
    length: int | None = None,
    batch_size: int = 8,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every token of a corpus once, each document by itself.

    Args:
        model: in eval mode; left in it. source: its `held_out` is ignored, all of it is scored.
        length: tokens per window, default the model's context; an LSTM, which has none, reads documents whole, and
            about `batch_size` windows' tokens of them at once; an ELMo's windows have 256.
    Raises:
        InputError: the corpus cannot be read or is empty, `length` exceeds the context, the model is no causal one.
    """
    branch = families.family_of(model)
    name = next((name for name in ("causal", "bidirectional") if name in branch.objectives), None)
    if name is None:
        raise InputError(f"{with_article(model)} is not scored from left to right, as this evaluation does it")
    corpus = prepare(replace(source, held_out=0.0), tokenizer, cache, progress)
    objective = build_objective(branch, {"name": name}, tokenizer)
    split, length = corpus.train, length or getattr(model.config, "context", WINDOW)
    text = None if tokenizer.has_whole_words or not getattr(objective, "likelihood", True) else split.bytes
    held_out = HeldOut(lambda: objective.held_out(split, length, batch_size), text)
    device = next(model.parameters()).device
    try:
        return evaluate(LossModule(model, objective), held_out, Workers(device=device), nullcontext())
    finally:
        model.eval()
