"""How BERT and its relatives are published by Hugging Face: keys of config.json and names of tensors.

BERT        Devlin et al. 2018
RoBERTa     Liu et al. 2019: positions begin behind the padding's number, no segments that differ, no sentence pairs;
            XLM-R (Conneau et al. 2020) and CamemBERT (Martin et al. 2020) are the same with other vocabularies
DistilBERT  Sanh et al. 2019: no segments, half of the layers
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Layout:
    """The names of one kind of checkpoint.

    Args:
        architecture: the class of transformers. encoder: how the names of the encoder's tensors begin.
        sizes: counts in config.json and what they are in ours; rest: its other values; activation: the key.
        defaults: of the configuration.
        outside: maps and norms outside of the blocks; embeddings: likewise of tables, without `.weight`.
        block: how names in the blocks begin, and what is in each.
        pooler, masked_head, next_sentence: how the names of these parts begin; None: it is not published.
        decoder: the output matrix. bias: the output's. pooler_of_classifiers: its name in a classifier of texts.
        expected: the parts that a pretrained checkpoint has.
        padding: the id that it must have, None: any. Positions begin behind it, at `first_position`.
    """

    architecture: str
    encoder: str
    sizes: Mapping[str, str]
    rest: Mapping[str, str]
    activation: str
    defaults: Mapping[str, Any]
    embeddings: Mapping[str, str]
    outside: Mapping[str, str]
    block: tuple[str, Mapping[str, str]]
    pooler: str
    masked_head: str
    next_sentence: str | None
    decoder: str
    bias: str
    pooler_of_classifiers: str
    expected: tuple[str, ...] = ("masked_head",)
    padding: int | None = None

    @property
    def first_position(self) -> int:
        """The row of the position embedding that a text's first token has."""
        return 0 if self.padding is None else self.padding + 1

    @property
    def keys(self) -> dict[str, str]:
        """The key of config.json for each of our sizes."""
        return {ours: theirs for theirs, ours in self.sizes.items()}

    def names(self, layers: int) -> dict[str, str]:
        """Return the published name and ours of every parameter but the output's matrix and bias."""
        maps = dict(self.outside)
        begin, block = self.block
        for layer in range(layers):
            maps |= {f"{begin}.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in block.items()}
        if self.next_sentence is not None:
            maps[self.next_sentence] = "next_sentence.dense"
        names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in self.embeddings.items()}
        return names | {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in maps.items() for part in _PARTS}


_BERT_BLOCK = {
    **{f"attention.self.{part}": f"attention.{part}" for part in ("query", "key", "value")},
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}


def _encoder(begin: str) -> dict[str, Any]:
    """Return what BERT and RoBERTa name alike."""
    return {
        "encoder": begin,
        "embeddings": {
            f"{begin}embeddings.word_embeddings": "embeddings.token",
            f"{begin}embeddings.position_embeddings": "embeddings.position",
            f"{begin}embeddings.token_type_embeddings": "embeddings.segment",
        },
        "block": (f"{begin}encoder.layer", _BERT_BLOCK),
        "pooler": f"{begin}pooler.dense",
    }


BERT = Layout(
    architecture="BertForPreTraining",
    sizes={
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
        "type_vocab_size": "segments",
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "num_attention_heads": "heads",
        "intermediate_size": "feed_forward",
    },
    rest={
        "layer_norm_eps": "norm_epsilon",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "initial_std",
    },
    activation="hidden_act",
    defaults={
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "hidden_act": "gelu",
    },
    outside={
        "bert.embeddings.LayerNorm": "embeddings.norm",
        "bert.pooler.dense": "pooler.dense",
        "cls.predictions.transform.dense": "masked_head.dense",
        "cls.predictions.transform.LayerNorm": "masked_head.norm",
    },
    masked_head="cls.predictions.",
    next_sentence="cls.seq_relationship",
    decoder="cls.predictions.decoder",
    bias="cls.predictions.bias",
    pooler_of_classifiers="bert.pooler.dense",
    expected=("pooler", "masked_head", "next_sentence"),
    **_encoder("bert."),
)

ROBERTA = replace(
    BERT,
    architecture="RobertaForMaskedLM",
    outside={
        "roberta.embeddings.LayerNorm": "embeddings.norm",
        "roberta.pooler.dense": "pooler.dense",
        "lm_head.dense": "masked_head.dense",
        "lm_head.layer_norm": "masked_head.norm",
    },
    masked_head="lm_head.",
    next_sentence=None,
    decoder="lm_head.decoder",
    bias="lm_head.bias",
    pooler_of_classifiers="classifier.dense",
    expected=("masked_head",),
    padding=1,
    **_encoder("roberta."),
)

DISTILBERT = Layout(
    architecture="DistilBertForMaskedLM",
    encoder="distilbert.",
    sizes={
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
        "n_layers": "layers",
        "dim": "hidden",
        "n_heads": "heads",
        "hidden_dim": "feed_forward",
    },
    rest={"dropout": "dropout", "attention_dropout": "attention_dropout", "initializer_range": "initial_std"},
    activation="activation",
    defaults={
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "n_layers": 6,
        "dim": 768,
        "n_heads": 12,
        "hidden_dim": 3072,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "initializer_range": 0.02,
        "activation": "gelu",
    },
    embeddings={
        "distilbert.embeddings.word_embeddings": "embeddings.token",
        "distilbert.embeddings.position_embeddings": "embeddings.position",
    },
    outside={
        "distilbert.embeddings.LayerNorm": "embeddings.norm",
        "pre_classifier": "pooler.dense",
        "vocab_transform": "masked_head.dense",
        "vocab_layer_norm": "masked_head.norm",
    },
    block=(
        "distilbert.transformer.layer",
        {
            **{f"attention.{part[0]}_lin": f"attention.{part}" for part in ("query", "key", "value")},
            "attention.out_lin": "attention.output",
            "sa_layer_norm": "attention_norm",
            "ffn.lin1": "feed_forward.up",
            "ffn.lin2": "feed_forward.down",
            "output_layer_norm": "feed_forward_norm",
        },
    ),
    pooler="pre_classifier",
    masked_head="vocab_",
    next_sentence=None,
    decoder="vocab_projector",
    bias="vocab_projector.bias",
    pooler_of_classifiers="pre_classifier",
)

LAYOUTS: dict[str, Layout] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": replace(ROBERTA, architecture="XLMRobertaForMaskedLM"),
    "camembert": replace(ROBERTA, architecture="CamembertForMaskedLM"),
    "distilbert": DISTILBERT,
}
