"""Tiny random models of every family over one vocabulary of letters, and what they say of a blank or a text computed
one sequence at a time, without batches and caches."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.evaluation.blanks import Blank
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer as prepare_bert
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.tokens import prepare_tokenizer as prepare_glm
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.t5.model import T5, T5Config
from stemma.layers.masks import Mask

FAMILIES = ("gpt", "bert", "unilm", "t5", "glm")
CONTEXT = 40
LETTERS = tuple(range(5, 13))  # a b c d ##a ##b ##c ##d
PAD, UNK, CLS, SEP, MASK = range(5)
START, END, DOCUMENT_MASK, SECOND, FIRST = 13, 14, 15, 18, 19  # of a piece; [gMASK]; <extra_id_1>, <extra_id_0>
VOCABULARY = 20


@cache
def letters() -> Tokenizer:
    """Four letters, at the beginning of a word and inside, and the special tokens of all families."""
    plain = train_tokenizer(["a b c d" * 9], "wordpiece", 13)
    tokenizer = prepare_glm(prepare_bert(plain)).with_special_tokens("<extra_id_1>", "<extra_id_0>")
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert [tokenizer.id(name) for name in names] == [PAD, UNK, CLS, SEP, MASK]
    more = ("<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "<extra_id_1>", "<extra_id_0>")
    assert [tokenizer.id(name) for name in more] == [START, END, DOCUMENT_MASK, SECOND, FIRST]
    assert tokenizer.vocabulary == VOCABULARY and tokenizer.separator == SEP
    return tokenizer


def random_model(family: str, seed: int = 0, std: float = 0.3, layers: int = 2) -> Any:
    """Weights so large that position and context decide what comes next."""
    shape: dict[str, Any] = {"vocabulary": VOCABULARY, "layers": layers, "hidden": 24, "heads": 3}
    if family in ("bert", "unilm"):
        segments = 6 if family == "unilm" else 2
        model: Any = BERT(BERTConfig(**shape, context=CONTEXT, segments=segments, dropout=0.0, attention_dropout=0.0))
    elif family == "gpt":
        model = GPT(GPTConfig(**shape, context=CONTEXT))
    elif family == "lstm":
        model = LSTM(LSTMConfig(VOCABULARY, embedding=24, hidden=24, layers=layers))
    elif family == "glm":
        model = GLM(GLMConfig(**shape, context=CONTEXT, dropout=0.0, attention_dropout=0.0))
    else:
        model = T5(T5Config(**shape, head_dim=8, feed_forward=48, vocabulary_multiple=1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator) + ("norm.weight" in name))
    if family == "t5":
        model.token_embedding.weight.data *= 8  # its logits are divided by sqrt(hidden)
    if family == "lstm":
        model.output.weight.data *= 8  # its states are below 1
    return model.eval()


def raise_the_end(model: Any, family: str) -> Any:
    """Make pieces end now and then."""
    with torch.no_grad():
        if family == "glm":
            model.final_norm.bias += 0.7 * model.token_embedding.weight[END]
        else:
            # No bias before its output: its end's embedding leans to the mean direction of its states.
            model.token_embedding.weight[SECOND] *= 2
    return model


def next_token(model: Any, family: str, blank: Blank, written: Sequence[int]) -> Tensor:
    """Log-probabilities, float64 [vocabulary], of the token of a piece after `written`."""
    if family == "gpt":
        tokens = [SEP, *blank.before, *written]
        logits = model(torch.tensor([tokens]))[0, -1]
    elif family in ("bert", "unilm"):
        masks = [MASK] * (len(blank.piece) - len(written))
        tokens = [CLS, *blank.before, *written, *masks, *blank.after, SEP]
        logits = model(torch.tensor([tokens]), torch.zeros(1, len(tokens), dtype=torch.long))
        logits = logits[0, 1 + len(blank.before) + len(written)]
    elif family == "t5":
        source = torch.tensor([[*blank.before, FIRST, *blank.after, SEP]])
        read = torch.tensor([[model.config.start, FIRST, *written]])
        logits = model.logits(model.decode(read, model.encode(source)))[0, -1]
    else:
        context = [CLS, *blank.before, MASK, *blank.after, PAD]
        tokens = [*context, START, *written]
        place = 1 + len(blank.before)
        first = [*range(len(context)), *[place] * (1 + len(written))]
        second = [0] * len(context) + list(range(1, len(written) + 2))
        mask = Mask(causal=True, prefix_lengths=torch.tensor([len(context)]))
        logits = model(torch.tensor([tokens]), torch.tensor([[first, second]]), mask)[0, -1]
    return logits.double().log_softmax(-1)


def end_of(family: str) -> list[int]:
    """What stands behind a piece."""
    return {"glm": [END], "t5": [SECOND]}.get(family, [])


def scores_of(model: Any, family: str, blank: Blank) -> Tensor:
    """Log-probabilities, float64 [tokens], of a blank's piece and of its end where the family has one."""
    told = [*blank.piece, *end_of(family)]
    rows = [next_token(model, family, blank, told[:place])[token] for place, token in enumerate(told)]
    return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64)
