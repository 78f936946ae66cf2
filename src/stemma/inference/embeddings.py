"""One vector a text, from the states of any encoder (Reimers and Gurevych 2019, "Sentence-BERT", section 3)."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import frame_and_mask
from stemma.families.elmo.model import ELMo
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.inference.word_states import embed_sentences
from stemma.layers.masks import Mask

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
        raise InputError(f"a {type(model).__name__} has no [CLS] at the start: expected pooling mean or max")
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
        raise InputError(f"text {empty + 1} is empty, and a {type(model).__name__} reads nothing beside it")
    vectors = np.zeros((len(rows), model.config.hidden), np.float32)
    for numbers in by_length(rows, batch_tokens):
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
    if isinstance(model, BERT):
        first, last, _ = frame_and_mask(tokenizer)
        return [first], [last]
    if isinstance(model, GLM):
        glm = GLMTokens.of(tokenizer)
        return [glm.beginning], [glm.end]
    if isinstance(model, T5 | Transformer):
        return [], [tokenizer.separator]
    if isinstance(model, GPT | Mistral | LSTM):
        return [], []
    known = "BERT, GLM, T5, Transformer, GPT, Mistral or LSTM"
    raise InputError(f"a {type(model).__name__} cannot embed texts: expected a {known}")


def by_length(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of texts of about equal length, so that next to nothing is padded."""
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: len(rows[number])):
        if batch and (len(batch) + 1) * len(rows[number]) > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _states(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the last states, float [batch, length, hidden], and bool [batch, length], True where a token is real."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    device = next(model.parameters()).device
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    real = (torch.arange(longest) < lengths.unsqueeze(1)).to(device)
    mask = None if bool((lengths == longest).all()) else Mask(key_padding=real)
    if isinstance(model, T5 | Transformer):
        return model.encode(tokens, mask), real
    if isinstance(model, GPT | Mistral | LSTM):
        return model.hidden(tokens), real  # causality hides the padding
    return model.hidden(tokens, mask=mask), real


def _pooled(states: Tensor, real: Tensor, pooling: Pooling) -> Tensor:
    """Return float [batch, hidden]."""
    if pooling == "cls":
        return states[:, 0]
    outside = ~real.unsqueeze(-1)
    if pooling == "max":
        return states.masked_fill(outside, -torch.inf).amax(1)
    return states.masked_fill(outside, 0).sum(1) / real.sum(1, keepdim=True)
