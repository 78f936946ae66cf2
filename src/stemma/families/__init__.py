"""The branches of the tree: one folder a family, and the dictionary through which the rest of the library meets them.

A family is found by its own name when a model is built, by `model_type` when a checkpoint directory is loaded, and by
its class when a model is saved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stemma.errors import InputError, closest
from stemma.families.bert import checkpoint as bert_checkpoint
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.model import PRESETS as BERT_PRESETS
from stemma.families.bert.objective import MaskedLanguageModel
from stemma.families.directory import (
    SHARD_BYTES,
    StoredTensors,
    read_config,
    replace_checkpoint,
    resolve,
    write_json,
    write_weights,
)
from stemma.families.dispatch import with_article
from stemma.families.elmo import checkpoint as elmo_checkpoint
from stemma.families.elmo import published as elmo_published
from stemma.families.elmo.model import PRESETS as ELMO_PRESETS
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.elmo.objective import BidirectionalLM
from stemma.families.glm import checkpoint as glm_checkpoint
from stemma.families.glm import original as glm_original
from stemma.families.glm.likelihood import LeftToRight
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.model import PRESETS as GLM_PRESETS
from stemma.families.glm.objective import BlankInfilling
from stemma.families.gpt import checkpoint as gpt_checkpoint
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.gpt.model import PRESETS as GPT_PRESETS
from stemma.families.gpt.objective import Causal
from stemma.families.image_classification import ImageClassification
from stemma.families.lstm import checkpoint as lstm_checkpoint
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.lstm.model import PRESETS as LSTM_PRESETS
from stemma.families.lstm.objective import CarriedCausal, SequenceAutoencoder
from stemma.families.mistral import checkpoint as mistral_checkpoint
from stemma.families.mistral import native as mistral_native
from stemma.families.mistral.model import PRESETS as MISTRAL_PRESETS
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.mistral.objective import RoutedCausal
from stemma.families.resnet import checkpoint as resnet_checkpoint
from stemma.families.resnet.model import PRESETS as RESNET_PRESETS
from stemma.families.resnet.model import ResNet, ResNetConfig
from stemma.families.t5 import checkpoint as t5_checkpoint
from stemma.families.t5.model import PRESETS as T5_PRESETS
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.objective import PrefixLM, SpanCorruption
from stemma.families.transformer import checkpoint as transformer_checkpoint
from stemma.families.transformer.model import PRESETS as TRANSFORMER_PRESETS
from stemma.families.transformer.model import Transformer, TransformerConfig
from stemma.families.transformer.objective import Translation
from stemma.families.unilm.model import PRESETS as UNILM_PRESETS
from stemma.families.unilm.objective import ClozeMixture
from stemma.families.vit import checkpoint as vit_checkpoint
from stemma.families.vit import google as vit_google
from stemma.families.vit import timm as vit_timm
from stemma.families.vit.model import PRESETS as VIT_PRESETS
from stemma.families.vit.model import ViT, ViTConfig
from stemma.layers.lora import LoRALinear

if TYPE_CHECKING:
    from stemma.data.image_preprocessing import Preprocessing
    from stemma.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Family:
    """One branch: what it is made of, how it is trained, and how it is written to disk.

    Args:
        config: frozen dataclass of the architecture. model: `model(config)` builds the module, with `.config`.
        presets: named configurations. objectives: named classes with `example`, `counts` and `loss`.
        model_types: what "model_type" in config.json may say.
        to_published: model -> (config.json's content, iterator of published name and tensor).
        from_published: (config.json's content, tensors, dtype=, device=) -> model.
        write_beside: (model, tokenizer, folder) writes further files, of a layout that other code reads; None: none.
    """

    config: type
    model: type[nn.Module]
    presets: Mapping[str, Any]
    objectives: Mapping[str, Callable[..., Any]]
    model_types: tuple[str, ...]
    to_published: Callable[..., Any]
    from_published: Callable[..., nn.Module]
    write_beside: Callable[..., None] | None = None


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        config=GPTConfig,
        model=GPT,
        presets=GPT_PRESETS,
        objectives={"causal": Causal},
        model_types=gpt_checkpoint.MODEL_TYPES,
        to_published=gpt_checkpoint.to_published,
        from_published=gpt_checkpoint.from_published,
    ),
    "bert": Family(
        config=BERTConfig,
        model=BERT,
        presets=BERT_PRESETS,
        objectives={"masked": MaskedLanguageModel},
        model_types=bert_checkpoint.MODEL_TYPES,
        to_published=bert_checkpoint.to_published,
        from_published=bert_checkpoint.from_published,
    ),
    "glm": Family(
        config=GLMConfig,
        model=GLM,
        presets=GLM_PRESETS,
        objectives={"blank-infilling": BlankInfilling, "left-to-right": LeftToRight},
        model_types=glm_checkpoint.MODEL_TYPES,
        to_published=glm_checkpoint.to_published,
        from_published=glm_checkpoint.from_published,
    ),
    "lstm": Family(
        config=LSTMConfig,
        model=LSTM,
        presets=LSTM_PRESETS,
        objectives={"causal": CarriedCausal, "autoencoder": SequenceAutoencoder},
        model_types=lstm_checkpoint.MODEL_TYPES,
        to_published=lstm_checkpoint.to_published,
        from_published=lstm_checkpoint.from_published,
    ),
    "mistral": Family(
        config=MistralConfig,
        model=Mistral,
        presets=MISTRAL_PRESETS,
        objectives={"causal": RoutedCausal},
        model_types=mistral_checkpoint.MODEL_TYPES,
        to_published=mistral_checkpoint.to_published,
        from_published=mistral_checkpoint.from_published,
    ),
    "t5": Family(
        config=T5Config,
        model=T5,
        presets=T5_PRESETS,
        objectives={"span-corruption": SpanCorruption, "prefix-lm": PrefixLM},
        model_types=t5_checkpoint.MODEL_TYPES,
        to_published=t5_checkpoint.to_published,
        from_published=t5_checkpoint.from_published,
    ),
    "transformer": Family(
        config=TransformerConfig,
        model=Transformer,
        presets=TRANSFORMER_PRESETS,
        objectives={"translation": Translation},
        model_types=transformer_checkpoint.MODEL_TYPES,
        to_published=transformer_checkpoint.to_published,
        from_published=transformer_checkpoint.from_published,
    ),
    # Published and loaded as the BERT that it is, with six segments.
    "unilm": Family(
        config=BERTConfig,
        model=BERT,
        presets=UNILM_PRESETS,
        objectives={"cloze-mixture": ClozeMixture},
        model_types=(),
        to_published=bert_checkpoint.to_published,
        from_published=bert_checkpoint.from_published,
    ),
    "elmo": Family(
        config=ELMoConfig,
        model=ELMo,
        presets=ELMO_PRESETS,
        objectives={"bidirectional": BidirectionalLM},
        model_types=elmo_checkpoint.MODEL_TYPES,
        to_published=elmo_checkpoint.to_published,
        from_published=elmo_checkpoint.from_published,
        write_beside=elmo_published.write_beside,
    ),
    "vit": Family(
        config=ViTConfig,
        model=ViT,
        presets=VIT_PRESETS,
        objectives={"classification": ImageClassification},
        model_types=vit_checkpoint.MODEL_TYPES,
        to_published=vit_checkpoint.to_published,
        from_published=vit_checkpoint.from_published,
    ),
    "resnet": Family(
        config=ResNetConfig,
        model=ResNet,
        presets=RESNET_PRESETS,
        objectives={"classification": ImageClassification},
        model_types=resnet_checkpoint.MODEL_TYPES,
        to_published=resnet_checkpoint.to_published,
        from_published=resnet_checkpoint.from_published,
    ),
}

# Families of models that read images and no text.
IMAGE_FAMILIES = ("vit", "resnet")
# Families of vectors that are no modules: `stemma.data.vectors.WordVectors` loads them.
WORD_VECTORS = ("word2vec", "glove")


def family(name: str) -> Family:
    """Return a family by our name for it ("gpt") or by a `model_type` ("gpt2").

    Raises:
        InputError: no such family (names the nearest).
    """
    by_name = FAMILIES | {model_type: branch for branch in FAMILIES.values() for model_type in branch.model_types}
    if name not in by_name:
        raise InputError(f"no model family '{name}'{closest(name, by_name)}, expected one of {', '.join(by_name)}")
    return by_name[name]


def family_of(model: nn.Module) -> Family:
    """Return the family of a model, by its class.

    Raises:
        InputError: it is of none.
    """
    branch = next((branch for branch in FAMILIES.values() if isinstance(model, branch.model)), None)
    if branch is None:
        raise InputError(f"cannot tell the family of {with_article(model)}: expected {', '.join(FAMILIES)}")
    return branch


def reads_images(model: nn.Module) -> bool:
    """Return whether a model is of one of `IMAGE_FAMILIES`."""
    return isinstance(model, tuple(FAMILIES[name].model for name in IMAGE_FAMILIES))


def load(
    path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> nn.Module:
    """Load a checkpoint directory, ours or Hugging Face's, as a model in eval mode with `.config`.

    Args:
        path_or_hub_id: a folder with config.json and weights, or an id on the Hugging Face hub; or a published .npz of
            ViT's authors.
        dtype: of the parameters, default: as stored. device: default: the CPU.
    Raises:
        InputError: no such checkpoint, an unknown family or configuration, weights that are broken or do not fit.
    """
    if Path(path_or_hub_id).suffix == ".npz":
        return vit_google.load_npz(path_or_hub_id, dtype=dtype, device=device).eval()
    directory = resolve(path_or_hub_id)
    if vit_timm.is_timm(directory):
        return vit_timm.load_timm(directory, dtype=dtype, device=device).eval()
    if glm_original.is_original(directory):
        return glm_original.load_original(directory, dtype=dtype, device=device).eval()
    if mistral_native.is_native(directory):
        return mistral_native.load_native(directory, dtype=dtype, device=device).eval()
    if elmo_published.is_published(directory):
        return elmo_published.load_published(directory, dtype=dtype, device=device).eval()
    config = read_config(directory)
    if config["model_type"] in WORD_VECTORS:
        raise InputError(f"{directory}: vectors of words ({config['model_type']}), and this asks for a model of text")
    branch = family(config["model_type"])
    return branch.from_published(config, StoredTensors(directory), dtype=dtype, device=device).eval()


def save(
    model: nn.Module,
    tokenizer: "Tokenizer | None",
    directory: str | Path,
    *,
    preprocessing: "Preprocessing | None" = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Publish a model: config.json, generation_config.json, the weights and the tokenizer's files.

    One that reads images has preprocessor_config.json in place of the last and of generation_config.json.

    transformers loads the directory where it knows the architecture; allennlp reads an ELMo's options.json and weights,
    which stand beside where h5py is installed. An older checkpoint there is replaced so that a
    crash at any moment leaves no directory that loads wrongly (see `replace_checkpoint`).

    Args:
        model: of one of `FAMILIES`. tokenizer: None saves the model alone. preprocessing: of one that reads images.
        shard_bytes: weights larger than this are split into several files.
    Raises:
        InputError: the model is of no known family or has adapters, the tokenizer has more ids than the model, or the
            directory cannot be created.
        OSError: it could not be written (a full disk); the checkpoint that was there is untouched.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise InputError(
            f"{with_article(model)} with adapters is no checkpoint: merge them first (training.lora.merge_lora), or "
            "save them alone (training.adapters.save_adapter)"
        )
    branch = family_of(model)
    config, tensors = branch.to_published(model)
    of_images = reads_images(model)
    if tokenizer is not None and of_images:
        raise InputError(f"a {type(model).__name__} reads images and has no tokenizer")
    vocabulary: Any = getattr(model.config, "vocabulary", None)
    if tokenizer is not None and tokenizer.vocabulary > vocabulary:
        raise InputError(f"the tokenizer has {tokenizer.vocabulary} ids, more than the model's {vocabulary}")
    ends, padding = _special_ids(tokenizer)
    if "pad_token_id" in config and config["pad_token_id"] is None and tokenizer is not None:
        config["pad_token_id"] = tokenizer.pad
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    with replace_checkpoint(Path(directory)) as staging:
        write_json(staging / "config.json", {**config, **({} if of_images else ends), "dtype": dtype})
        if not of_images:
            write_json(staging / "generation_config.json", {**ends, "pad_token_id": padding, **_start(config)})
        if preprocessing is not None:
            preprocessing.save(staging)
        write_weights(tensors, staging, shard_bytes)
        if tokenizer is not None:
            tokenizer.save(staging)
        if branch.write_beside is not None:
            branch.write_beside(model, tokenizer, staging)


def _start(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the decoder of an encoder-decoder begins with; transformers looks for it beside the other ids."""
    return {key: config[key] for key in ("decoder_start_token_id",) if key in config}


def _special_ids(tokenizer: "Tokenizer | None") -> tuple[dict[str, int | None], int | None]:
    """Return the ids that begin and end a text, None where the tokenizer has none (OpenAI's GPT-1), and the padding."""
    try:
        separator = None if tokenizer is None else tokenizer.separator
    except InputError:
        separator = None
    padding = separator if tokenizer is None or tokenizer.pad is None else tokenizer.pad
    return {"bos_token_id": separator, "eos_token_id": separator}, padding
