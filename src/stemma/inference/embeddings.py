"""One vector a text, from the states of any encoder (Reimers and Gurevych 2019, "Sentence-BERT", section 3)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stemma.data.collation import batches_by_length, padded
from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import frame_and_mask
from stemma.families.dispatch import by_family, with_article
from stemma.families.elmo.model import ELMo
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.inference.states import READ_FROM_LEFT_TO_RIGHT, states_of
from stemma.inference.word_states import embed_sentences

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

Pooling = Literal["mean", "cls", "max"]


def embed(model: Any, tokenizer: "Tokenizer", texts: Sequence[str], **options: Any) -> np.ndarray:
    """Return float32 [texts, hidden]; options as in `embed_tokens`, of an ELMo as in `embed_sentences`."""
    if isinstance(model, ELMo):  # which reads words as they are written
        return embed_sentences(model, [text.split() for text in texts], **options)
    return embed_tokens(model, tokenizer, tokenizer.encode_batch(texts), **options)


@torch.inference_mode()
def embed_tokens(
    model: Any,
    tokenizer: "Tokenizer",
    texts: Sequence[Sequence[int]],
    *,
    pooling: Pooling = "mean",
    normalize: bool = False,
    longest: int | None = None,
    batch_tokens: int = 8192,
    report: Callable[[int], None] = lambda done: None,
    cut: Callable[[int, int], None] = lambda texts, limit: None,
) -> np.ndarray:
    """Return float32 [texts, hidden]; a text's vector does not depend on what else is computed beside it.

    BERT reads `[CLS] text [SEP]`, GLM `[CLS] text end` in both directions, the encoder of T5 and Transformer the
    text and its end; a GPT or an LSTM reads the text from left to right.

    Args:
        model: in eval mode. tokenizer: the model's. texts: their tokens, without special ones.
        pooling: the mean or the maximum over all tokens, the special ones included, or the state of the first ("cls").
        normalize: divide each vector by its length.
        longest: of a text in tokens, the special ones included; what is behind is not read. Default: the context.
        batch_tokens: about so many tokens are computed at once. report: called with the number of texts just done.
        cut: called before, with the number of texts that are longer, where there are any, and `longest`.
    Raises:
        InputError: a pooling that the model cannot have, a family that has no states to pool, or an empty text where
            the model reads nothing but the text.
    """
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling is '{pooling}', expected one of {', '.join(get_args(Pooling))}")
    if model.training:
        raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
    before, after = frame_of(model, tokenizer)
    if pooling == "cls" and not before:
        raise InputError(f"{with_article(model)} has no [CLS] at the start: expected pooling mean or max")
    limit = min(size for size in (longest, getattr(model.config, "context", None), 1 << 60) if size is not None)
    room = limit - len(before) - len(after)
    if room < 1:
        raise InputError(f"texts of at most {limit} tokens leave no room beside {len(before + after)} special tokens")
    longer = sum(len(ids) > room for ids in texts)
    if longer:
        cut(longer, limit)
    rows = [[*before, *ids[:room], *after] for ids in texts]
    empty = next((number for number, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise InputError(f"text {empty + 1} is empty, and {with_article(model)} reads nothing beside it")
    vectors = np.zeros((len(rows), model.config.hidden), np.float32)
    for numbers in batches_by_length([len(row) for row in rows], batch_tokens):
        states, real = _states(model, [rows[number] for number in numbers])
        pooled = _pooled(states.float(), real, pooling)
        vectors[numbers] = (torch.nn.functional.normalize(pooled) if normalize else pooled).cpu().numpy()
        report(len(numbers))
    return vectors


def sentence_settings(directory: Path) -> dict[str, Any]:
    """Return the options of `embed` that a folder of sentence-transformers was made with; {} for other folders.

    Raises:
        InputError: a kind of pooling that is not here, or files that are broken.
    """
    modules = directory / "modules.json"
    if not modules.is_file():
        return {}
    try:
        kinds = {
            entry["type"].rpartition(".")[2]: directory / entry["path"] for entry in json.loads(modules.read_text())
        }
        settings: dict[str, Any] = {"normalize": "Normalize" in kinds}
        pooling = json.loads((kinds["Pooling"] / "config.json").read_text()) if "Pooling" in kinds else {}
        wanted = [name.removeprefix("pooling_mode_") for name, on in pooling.items() if on is True]
        limits = directory / "sentence_bert_config.json"
        if limits.is_file():
            settings["longest"] = json.loads(limits.read_text()).get("max_seq_length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{directory}: not the settings of a sentence-transformers folder ({reason})") from error
    names: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
    known = [names[name] for name in wanted if name in names]
    if "Pooling" in kinds and len(known) != 1:
        raise InputError(f"{directory}: pooling by {', '.join(wanted)}; expected one of mean, cls and max")
    return settings | ({"pooling": known[0]} if known else {})


def frame_of(model: Any, tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Return the special tokens before and after a text."""

    def of_bert() -> tuple[list[int], list[int]]:
        first, last, _ = frame_and_mask(tokenizer)
        return [first], [last]

    def of_glm() -> tuple[list[int], list[int]]:
        ids = GLMTokens.of(tokenizer)
        return [ids.beginning], [ids.end]

    def of_encoder() -> tuple[list[int], list[int]]:
        return [], [tokenizer.separator]

    frames: dict[type, Callable[[], tuple[list[int], list[int]]]] = {
        BERT: of_bert, GLM: of_glm, T5: of_encoder, Transformer: of_encoder
    }  # fmt: skip
    frames |= dict.fromkeys(READ_FROM_LEFT_TO_RIGHT, lambda: ([], []))
    return by_family(model, frames, "cannot embed texts")()


def _states(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the last states, float [batch, length, hidden], and bool [batch, length], True where a token is real."""
    lengths = torch.tensor([len(row) for row in rows])
    device = next(model.parameters()).device
    tokens = padded(rows)
    real = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
    return states_of(model, tokens.to(device), lengths.to(device)), real.to(device)


def _pooled(states: Tensor, real: Tensor, pooling: Pooling) -> Tensor:
    """Return float [batch, hidden]."""
    if pooling == "cls":
        return states[:, 0]
    outside = ~real.unsqueeze(-1)
    if pooling == "max":
        return states.masked_fill(outside, -torch.inf).amax(1)
    return states.masked_fill(outside, 0).sum(1) / real.sum(1, keepdim=True)
