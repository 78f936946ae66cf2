"""Tiny models of every family with their tokenizers, and checkpoint directories of them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from stemma import families
from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer as prepare_bert
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.tokens import prepare_tokenizer as prepare_glm
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.tokens import prepare_tokenizer as prepare_t5
from stemma.families.transformer.model import Transformer, TransformerConfig
from stemma.finetuning.recipe import FineTuningRecipe, build_recipe

WORDS = (
    "the quick brown fox jumps over the lazy dog while the cat sings to Anna and Boris in Paris or London . "
    "what is red blue green who sees a good bad film question answer context one two three four five six "
)
FAMILIES = ("bert", "gpt", "glm", "t5", "unilm", "lstm")


@cache
def tokenizer_of(family: str) -> Tokenizer:
    if family == "roberta":
        names = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
        roles = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
        plain = train_tokenizer([WORDS * 20], "bpe", 300, special=names)
        return plain.with_special_tokens(**dict(zip(roles, names, strict=True)))
    if family in ("bert", "unilm", "distilbert"):
        return prepare_bert(train_tokenizer([WORDS * 20], "wordpiece", 160))
    if family == "t5":
        return prepare_t5(train_tokenizer([WORDS * 20], "unigram", 130, byte_fallback=False))
    if family == "elmo":
        return train_tokenizer([WORDS * 20], "elmo", 60)
    plain = train_tokenizer([WORDS * 20], "bpe", 300)
    return prepare_glm(plain) if family == "glm" else plain


def elmo_of(architecture: str = "lstm", **options: Any) -> ELMo:
    torch.manual_seed(0)
    options = {"vocabulary": tokenizer_of("elmo").vocabulary, "longest_word": 12, "projection": 16} | options
    small: dict[str, Any] = {"characters": 4, "filters": ((1, 8), (2, 8)), "highways": 1, "cell": 24, "layers": 2}
    shape = small | {"heads": 2, "feed_forward": 32, "bottleneck": 8, "architecture": architecture}
    return ELMo(ELMoConfig(**shape | options)).eval()


def model_of(family: str, *, context: int = 64, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    vocabulary = tokenizer_of(family).vocabulary
    shape: dict[str, Any] = {"vocabulary": vocabulary, "layers": 2, "hidden": 32, "heads": 4}
    if family in ("bert", "unilm"):
        segments = 6 if family == "unilm" else 2
        model: Any = BERT(BERTConfig(**shape, context=context, segments=segments, initial_std=0.2, dropout=0.0))
    elif family in ("roberta", "distilbert"):
        segments = 1 if family == "roberta" else 0
        model = BERT(BERTConfig(**shape, context=context, segments=segments, relative=family, initial_std=0.2))
    elif family in ("mistral", "mixtral"):
        more = {"key_value_heads": 2, "feed_forward": 48, "experts": 4 if family == "mixtral" else 0}
        model = Mistral(MistralConfig(**shape, **more, context=context, windows=(None,)))
    elif family == "gpt":
        model = GPT(GPTConfig(**shape, context=context, dropout=0.0))
    elif family == "glm":
        model = GLM(GLMConfig(**shape, context=context, dropout=0.0))
    elif family == "lstm":
        model = LSTM(LSTMConfig(vocabulary, embedding=32, hidden=32, layers=2, inner=24, tie_output=True))
    elif family == "transformer":
        model = Transformer(TransformerConfig(**shape, feed_forward=64))
    else:
        model = T5(T5Config(**shape, head_dim=8, feed_forward=64))
    return model.eval()


def directory_of(family: str, folder: Path, *, context: int = 64) -> Path:
    families.save(model_of(family, context=context), tokenizer_of(family), folder / family)
    return folder / family


def recipe_of(directory: Path, task: dict[str, Any], data: dict[str, Any], **training: Any) -> FineTuningRecipe:
    """Settings with which a tiny model learns eight examples by heart in a second or two."""
    family = "bert" if directory.name in ("unilm", "roberta", "distilbert") else directory.name
    rate = {"t5": 1e-2, "lstm": 2e-2}.get(family, 3e-3)
    given = {
        "model": str(directory),
        "task": {"dropout": 0.0, "language_model": 0.0, **task},
        "data": data,
        "training": {"learning_rate": rate, "batch": 8, "steps": 60, "schedule": {"name": "constant"}, **training},
        "evaluation": {"every": 30},
    }
    given["training"]["epochs"] = None
    return build_recipe(given, (), family=family, parameters=1, examples=8)
