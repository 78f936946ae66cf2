"""The frameworks that are compared: same tokenizer, documents, tokens and, within 2 %, parameters."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma import families
from stemma.data.tokenizers import Tokenizer
from stemma.families.bert import tokens as bert_tokens
from stemma.families.glm import tokens as glm_tokens
from stemma.families.t5 import tokens as t5_tokens
from stemma.families.weights import build_empty
from stemma.training.recipe import Recipe

# The learning rate of each was chosen from 5e-4, 1e-3 and 2e-3 by the held-out loss of its own objective (seed 1,
# 410,000 tokens of the default corpus, hidden 128), and falls with the width as Adam's best does (Yang et al. 2022).
_RATED_HIDDEN = 128


@dataclass(frozen=True)
class Arm:
    """One framework.

    Args:
        label: for people. family: ours. model: fields of its configuration beside width and depth.
        layers: of the stack, as a multiple of the comparison's. size: parameters, as a multiple of the comparison's.
        objective, training: of the recipe. note: what a reader should know.
    """

    label: str
    family: str
    model: Mapping[str, Any] = field(default_factory=dict)
    layers: float = 1.0
    size: float = 1.0
    objective: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


_T5_MODEL = {"dropout": 0.0, "tie_output": True, "scale_output": True, "gated": False, "activation": "relu"}
_WINDOW = 16  # of a comparison's texts of 64 tokens or more
# Rotary positions have no parameters, so that long texts can be read at no cost.
_MISTRAL_MODEL = {"key_value_heads": 2, "context": 1024, "tie_output": True, "windows": (None,)}
_MISTRAL_TRAINING = {"learning_rate": 2e-3, "betas": [0.9, 0.95]}
_GLM = {"name": "blank-infilling", "token": 0.5, "sentence": 0.2, "document": 0.3, "task_masks": True}

ARMS: dict[str, Arm] = {
    "gpt": Arm("GPT", "gpt", training={"learning_rate": 2e-3, "betas": [0.9, 0.95]}),
    "bert": Arm(
        "BERT",
        "bert",
        objective={"name": "masked", "examples": "full_sentences", "separate_documents": True},
        training={"learning_rate": 2e-3, "betas": [0.9, 0.98]},
        note="masked tokens only, texts packed without next-sentence prediction (as RoBERTa)",
    ),
    "t5": Arm(
        "T5",
        "t5",
        model=_T5_MODEL,
        layers=0.5,
        objective={"name": "span-corruption"},
        training={"learning_rate": 2e-3, "betas": [0.9, 0.98]},
        note="half of the layers in the encoder, half in the decoder",
    ),
    "t5-twice": Arm(
        "T5 ×2",
        "t5",
        model=_T5_MODEL,
        size=2.0,
        objective={"name": "span-corruption"},
        training={"learning_rate": 2e-3, "betas": [0.9, 0.98]},
        note="twice the parameters: as many layers as the others in the encoder, and as many in the decoder",
    ),
    "glm": Arm(
        "GLM",
        "glm",
        objective=_GLM,
        training={"learning_rate": 1e-3, "betas": [0.9, 0.98]},
        note="short spans, sentences and long spans in the proportion 5 : 2 : 3",
    ),
    "glm-in-order": Arm(
        "GLM, spans in the order of the text",
        "glm",
        objective={**_GLM, "shuffle": False},
        training={"learning_rate": 1e-3, "betas": [0.9, 0.98]},
        note="the ablation without shuffling",
    ),
    "glm-one-position": Arm(
        "GLM without the second position",
        "glm",
        model={"block_positions": False},
        objective=_GLM,
        training={"learning_rate": 1e-3, "betas": [0.9, 0.98]},
        note="the ablation in which a token of a blank does not know its place in the blank",
    ),
    "unilm": Arm(
        "UniLM",
        "unilm",
        objective={"name": "cloze-mixture"},
        training={"learning_rate": 2e-3, "betas": [0.9, 0.98]},
        note="in the style of UniLM: one BERT under bidirectional, causal, reversed and prefix masks in turn",
    ),
    "mistral": Arm(
        "Mistral, full attention", "mistral", model=_MISTRAL_MODEL, training=_MISTRAL_TRAINING, note="without a window"
    ),
    "mistral-window": Arm(
        "Mistral, sliding window",
        "mistral",
        model={**_MISTRAL_MODEL, "windows": (_WINDOW,)},
        training=_MISTRAL_TRAINING,
        note=f"every layer sees {_WINDOW} tokens",
    ),
    "mixtral": Arm(
        "Mixtral",
        "mistral",
        model={**_MISTRAL_MODEL, "experts": 8},
        training=_MISTRAL_TRAINING,
        note="8 experts, of which a token meets 2; as many parameters as the others are active for a token",
    ),
    "mixtral-uneven": Arm(
        "Mixtral without balancing",
        "mistral",
        model={**_MISTRAL_MODEL, "experts": 8},
        objective={"load_balancing": 0.0, "router_z": 0.0},
        training=_MISTRAL_TRAINING,
        note="the ablation without the losses that keep the experts in use",
    ),
}


@dataclass(frozen=True)
class Scale:
    """How large the models are, and how long they are trained.

    Args:
        layers, hidden, heads: of a decoder-only model. vocabulary: of the tokenizer before special tokens.
        steps, batch, length: of pretraining; the tokens of text are their product.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    steps: int
    batch: int = 8
    length: int = 64

    @property
    def context(self) -> int:
        """Tokens that every model can read: a text, and what blanks and special tokens add."""
        return self.length * 5 // 4 + 32

    @property
    def tokens(self) -> int:
        """Tokens of text that every model is trained on."""
        return self.steps * self.batch * self.length


def common_tokenizer(tokenizer: Tokenizer, sentinels: int = 0) -> Tokenizer:
    """Return the tokenizer with the special tokens of all families, so that every model has the same vocabulary.

    Args:
        sentinels: numbered blanks of GLM, for the ablation that tells them apart.
    """
    tokenizer = bert_tokens.prepare_tokenizer(tokenizer)
    tokenizer = glm_tokens.prepare_tokenizer(tokenizer, sentinels)
    return t5_tokens.prepare_tokenizer(tokenizer)


def configurations(arms: Sequence[Arm], scale: Scale, vocabulary: int) -> list[Any]:
    """Return each arm's configuration, with feed-forward networks so wide that all have the same number of parameters.

    The measure is GLM's, whose networks are 4 * hidden wide as in the paper.
    """
    glm = _config(ARMS["glm"], scale, vocabulary)
    target = count_parameters("glm", glm)
    return [_fitted(arm, scale, vocabulary, round(arm.size * target)) for arm in arms]


def count_parameters(family: str, config: Any) -> int:
    """Return the number of parameters of a model, tied ones counted once, without building it."""
    branch = families.family(family)
    return sum(parameter.numel() for parameter in build_empty(lambda: branch.model(config)).parameters())


def recipe_of(arm: Arm, config: Any, scale: Scale, *, tokenizer: str, source: Mapping[str, Any], seed: int) -> Recipe:
    """Return the recipe by which an arm is pretrained."""
    model = {name: value for name, value in vars(config).items() if name != "vocabulary"}
    training = {
        "steps": scale.steps,
        "batch": scale.batch,
        "length": scale.length,
        "weight_decay": 0.01,
        "schedule": {"name": "cosine", "warmup": 0.1, "final": 0.05},
        **arm.training,
        "learning_rate": arm.training["learning_rate"] * _RATED_HIDDEN / scale.hidden,
    }
    return Recipe.model_validate(
        {
            "family": arm.family,
            "model": model,
            "objective": dict(arm.objective),
            "tokenizer": {"path": tokenizer},
            "data": dict(source),
            "training": training,
            "evaluation": {"every": max(scale.steps // 10, 1), "tokens": 4096},
            "output": {"save_every": max(scale.steps // 4, 1), "keep": 1, "log_every": max(scale.steps // 50, 1)},
            "seed": seed,
        }
    )


def _config(arm: Arm, scale: Scale, vocabulary: int) -> Any:
    kind = families.family(arm.family).config
    fields = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {
        "vocabulary": vocabulary,
        "context": scale.context,
        "layers": max(round(arm.layers * scale.layers), 1),
        "hidden": scale.hidden,
        "heads": scale.heads,
        "head_dim": scale.hidden // scale.heads,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "segments": 6 if arm.family == "unilm" else 2,
        "initial_std": 0.02 * (768 / scale.hidden) ** 0.5,
        "vocabulary_multiple": 1,
        **arm.model,
    }
    return kind(**{name: value for name, value in given.items() if name in fields})


def _fitted(arm: Arm, scale: Scale, vocabulary: int, target: int) -> Any:
    config = _config(arm, scale, vocabulary)
    if not hasattr(config, "feed_forward"):
        return config
    # The count is linear in the width; of experts those count that a token meets.
    met = {"experts": config.experts_per_token} if getattr(config, "experts", 0) else {}
    low, high = (count_parameters(arm.family, replace(config, feed_forward=width, **met)) for width in (8, 16))
    width = 8 * round((target - low) / (high - low)) + 8
    return replace(config, feed_forward=max(width, 8))
