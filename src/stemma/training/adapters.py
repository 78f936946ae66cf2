"""Adapters on disk in the layout of Hugging Face PEFT (github.com/huggingface/peft).

    adapter_config.json          rank, alpha and the adapted modules of transformers' model
    adapter_model.safetensors    base_model.model.<transformers' module>.lora_A.weight, float [rank, in],
                                 base_model.model.<transformers' module>.lora_B.weight, float [out, rank]

    base_model.model.<embedding>.token_adapter.trainable_tokens_delta    float [tokens, width]: rows of single tokens

Where a checkpoint keeps queries, keys and values in one matrix and we in three, three updates of ranks r are published
as one of rank 3r: its A is theirs above each other, its B is block-diagonal. The other way, all three share A.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stemma.errors import InputError, closest
from stemma.families import family_of
from stemma.families.bert import checkpoint as bert_checkpoint
from stemma.families.bert.layouts import LAYOUTS
from stemma.families.bert.model import BERT
from stemma.families.directory import read_config
from stemma.families.glm import checkpoint as glm_checkpoint
from stemma.families.glm.model import GLM
from stemma.families.gpt import checkpoint as gpt_checkpoint
from stemma.families.gpt.model import GPT
from stemma.families.mistral import checkpoint as mistral_checkpoint
from stemma.families.mistral.model import Mistral
from stemma.families.t5 import checkpoint as t5_checkpoint
from stemma.families.t5.model import T5
from stemma.families.weights import Stored, refuse_set
from stemma.files import write_whole
from stemma.layers.linear import Linear
from stemma.layers.lora import LoRALinear
from stemma.training.lora import lora_layers, refuse_second, replace_module

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")

_BEGIN = "base_model.model."
# How the paths of BERT's heads and its relatives' begin, which stand beside the stack.
_BESIDE = ("cls.", "lm_head.", "vocab_", "pre_classifier")
_ROWS = ".token_adapter.trainable_tokens_delta"  # values, whatever the name says
# What transformers' classes with a head call the stack inside them.
_STACKS = ("transformer.", "glm.", *dict.fromkeys(layout.encoder for layout in LAYOUTS.values()))
# Options of PEFT by which an adapter computes something else than LoRA.
_UNSUPPORTED = (
    "use_dora", "lora_bias", "layer_replication", "target_parameters", "use_bdlora",
    "alora_invocation_tokens", "use_qalora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
# Beginnings that change the base's weights too, which the adapter does not hold.
_CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save_adapter(
    model: nn.Module,
    directory: str | Path,
    base: str | Path,
    task_type: str | None = None,
    *,
    extra: Mapping[str, Tensor] | None = None,
    tokens: Sequence[int] = (),
) -> None:
    """Write the adapters of a model so that PEFT and `load_adapter` put them onto the same base checkpoint.

    Args:
        model: of one of the families; where a head is round it, what is inside. base: folder or hub id of its weights.
        task_type: PEFT's word for the class of transformers that it is for; None: the class of pretraining.
        extra: further trained tensors (a head) by their published names: PEFT's `modules_to_save`.
        tokens: of a GPT, ids whose embeddings the base does not have: PEFT's `trainable_token_indices`, for which its
            model must have been given as many tokens (`resize_token_embeddings`).
    Raises:
        InputError: a model without adapters, an unknown task type, or a base whose queries we hold scaled.
        OSError: it could not be written; what was there is untouched.
    """
    if task_type is not None and task_type not in TASK_TYPES:
        raise InputError(f"lora: task_type is {task_type!r}, expected one of {', '.join(TASK_TYPES)}")
    _refuse_scaled(model, base)
    table, layers, stack = _table(model), lora_layers(model), _stack(model, task_type)
    updates = {}
    for path, row in table.items():
        parts = [layers.get(name) for name in row.parameters]
        if any(parts):
            updates[path] = _join(parts, [model.get_submodule(name) for name in row.parameters])
    if not updates:
        raise InputError(f"lora: the {type(model).__name__} has no adapters to save")
    tensors = {_BEGIN + name: tensor for name, tensor in (extra or {}).items()}
    for path, (a, b, _) in updates.items():
        begin = _BEGIN + ("" if path.startswith(_BESIDE) else stack) + path
        tensors |= {f"{begin}.lora_A.weight": a, f"{begin}.lora_B.weight": b}
    matrices = _token_matrices(model) if tokens else {}
    if task_type not in (None, "CAUSAL_LM"):
        matrices.pop("lm_head", None)  # transformers' class has none
    for path, name in matrices.items():
        begin = _BEGIN + ("" if path == "lm_head" else stack) + path
        tensors[begin + _ROWS] = model.get_parameter(name)[list(tokens)]
    targets = _shortest_names(updates, table)
    sizes = {path: (len(a), alpha) for path, (a, _, alpha) in updates.items()}
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    ranks, alphas = _patterns(sizes, targets, (rank, alpha))
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": next(iter(layers.values())).dropout.p,
        "target_modules": sorted(set(targets.values())),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": any(table[path].transposed for path in updates),
        "modules_to_save": sorted({_saved_whole(name) for name in extra}) if extra else None,
        "inference_mode": True,
    }
    if matrices:
        content["trainable_token_indices"] = {path: list(tokens) for path in matrices}
    directory = Path(directory)
    _create(directory)
    with write_whole(directory / WEIGHTS) as weights, write_whole(directory / CONFIG) as config:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        weights.write_bytes(save(stored, metadata={"format": "pt"}))
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # A crash between the two renames leaves no weights, rather than old ones under a new configuration.
        (directory / WEIGHTS).unlink(missing_ok=True)


def load_adapter(model: nn.Module, directory: str | Path) -> dict[str, Tensor]:
    """Put the adapters of a folder, ours or PEFT's, onto a model with the weights of their base, in place.

    As after `add_lora`, only the adapters are trainable; the model is unchanged if there is an error.

    Returns:
        The folder's other tensors (PEFT's `modules_to_save`) by their published names.
    Raises:
        InputError: no adapter there, one of another kind than LoRA, or one that does not fit the model.
    """
    refuse_second(model)
    directory = Path(directory)
    config, tensors = _read_config(directory / CONFIG), _read_tensors(directory / WEIGHTS)
    _refuse_scaled(model, config.get("base_model_name_or_path") or "")
    table, file = _table(model), directory / WEIGHTS
    extra, pairs = _pair(tensors, table, file)
    updates = []
    for path, (begin, pair) in pairs.items():
        bases = [model.get_submodule(name) for name in table[path].parameters]
        rank, scale = _rank_and_scale(config, begin.removeprefix(_BEGIN), directory / CONFIG)
        sizes = [base.out_features for base in bases if isinstance(base, Linear)]
        shapes = {"A": [rank, bases[0].in_features], "B": [sum(sizes), rank]}
        for kind, shape in shapes.items():
            name = f"{begin}.lora_{kind}.weight"
            if kind not in pair:
                raise InputError(f"{file}: tensor '{name}' is missing")
            if list(pair[kind].shape) != shape or not pair[kind].is_floating_point():
                found = f"{pair[kind].dtype} {list(pair[kind].shape)}".removeprefix("torch.")
                raise InputError(f"{file}: tensor '{name}' is {found}, model and {CONFIG} make it float {shape}")
        updates.append((table[path].parameters, scale, _split(pair["A"], pair["B"].split(sizes))))
    rows = _take_rows(config, extra, model, file)
    dropout = float(config.get("lora_dropout") or 0.0)
    model.requires_grad_(False)
    for names, scale, parts in updates:
        _apply(model, names, scale, parts, dropout)
    with torch.no_grad():
        for parameter, ids, values in rows:
            parameter[ids] = values.to(parameter)
    return extra


def _table(model: nn.Module) -> dict[str, Stored]:
    """Return, by the names of transformers' modules inside the stack, the linear layers of ours that they hold.

    `parameters` of the rows are names of modules here. An output projection with padding is no part of it.
    """
    family_of(model)
    layers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear | LoRALinear) and not name.endswith(".base")
    }
    rows = {}
    encoder = LAYOUTS[model.config.relative].encoder if isinstance(model, BERT) else ""
    for stored in _published(model, sorted(layers)):
        names = tuple(name.removesuffix(".weight") for name in stored.parameters)
        if stored.rows is None and layers.issuperset(names):
            path = stored.name.removesuffix(".weight").removeprefix(encoder)
            rows[path] = Stored(path, names, stored.transposed)
    return rows


def _published(model: Any, layers: Sequence[str]) -> list[Stored]:
    match model:
        case GPT() if gpt_checkpoint.published_type(model.config) != gpt_checkpoint.OWN_TYPE:
            return gpt_checkpoint.table(model.config)
        case GLM():
            return glm_checkpoint.table(model.config)
        case Mistral() if mistral_checkpoint.published_type(model.config) != mistral_checkpoint.OWN_TYPE:
            return mistral_checkpoint.table(model.config)
        case T5():
            return t5_checkpoint.table(model.config)
        case BERT():
            return bert_checkpoint.table(model.config)
    return [Stored(f"{name}.weight", (f"{name}.weight",)) for name in layers if name.startswith("blocks.")]


def _token_matrices(model: nn.Module) -> dict[str, str]:
    """Return, by transformers' names of a GPT's modules with a row for each token, our parameters."""
    rows = {
        row.name.removesuffix(".weight"): row.parameters[0] for row in _published(model, []) if row.rows is not None
    }
    if rows:
        return rows
    own = [name for name, _ in model.named_parameters() if name in ("token_embedding.weight", "output.weight")]
    return {name.removesuffix(".weight"): name for name in own}


def _take_rows(
    config: Mapping[str, Any], extra: dict[str, Tensor], model: nn.Module, file: Path
) -> list[tuple[nn.Parameter, list[int], Tensor]]:
    """Take the embeddings of single tokens out of `extra`; return with each matrix which of its rows they are."""
    wanted = config.get("trainable_token_indices") or {}
    matrices = _token_matrices(model) if isinstance(model, GPT) else {}
    given = wanted if isinstance(wanted, dict) else {next(iter(matrices), "the embedding"): wanted}
    found = []
    for path, ids in given.items():
        own = path.removeprefix("transformer.")
        name = next((name for name in extra if name.endswith(f"{own}{_ROWS}")), None)
        if own not in matrices or name is None:
            raise InputError(f"{file.parent / CONFIG}: trainable_token_indices of '{path}', which is not to be found")
        parameter, values = model.get_parameter(matrices[own]), extra.pop(name)
        if list(values.shape) != [len(ids), parameter.shape[1]] or not values.is_floating_point():
            raise InputError(
                f"{file}: tensor '{name}' is {list(values.shape)}, expected {[len(ids), parameter.shape[1]]}"
            )
        if max(ids) >= len(parameter):
            raise InputError(f"{file}: token {max(ids)} is trained, and the model has {len(parameter)}")
        found.append((parameter, list(ids), values))
    return found


def _stack(model: Any, task_type: str | None) -> str:
    """Return how the names of a stack's modules begin in transformers' class for a task."""
    bare = task_type == "FEATURE_EXTRACTION"
    match model:
        case GPT() if gpt_checkpoint.published_type(model.config) != gpt_checkpoint.OWN_TYPE:
            return "" if bare else "transformer."
        case BERT():
            return "" if bare else LAYOUTS[model.config.relative].encoder
        case T5():
            return "transformer." if task_type in ("SEQ_CLS", "TOKEN_CLS") else ""
        case GLM():
            return "" if bare or task_type is None else "glm."
    return ""


def _join(parts: Sequence[LoRALinear | None], modules: Sequence[Any]) -> tuple[Tensor, Tensor, float]:
    """Return A [rank, in], B [out, rank] and alpha of one update for maps side by side, None where there is none."""
    adapted = [part for part in parts if part is not None]
    columns: dict[nn.Parameter, slice] = {}
    for part in adapted:
        if part.a not in columns:  # shared ones are there once
            start = max((used.stop for used in columns.values()), default=0)
            columns[part.a] = slice(start, start + part.rank)
    a = torch.cat([shared.detach() for shared in columns])
    blocks = []
    for layer, module in zip(parts, modules, strict=True):
        block = a.new_zeros(len(module.weight) if layer is None else len(layer.b), len(a))
        if layer is not None:
            block[:, columns[layer.a]] = layer.b.detach() * (layer.scale / adapted[0].scale)
        blocks.append(block)
    alpha = adapted[0].scale * len(a)
    return a, torch.cat(blocks), round(alpha) if math.isclose(alpha, round(alpha)) else alpha


def _split(a: Tensor, blocks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | None]:
    """Undo `_join`: return each map's A and B, None for one without an update; the same A where it cannot be split."""
    used = torch.stack([block.ne(0).any(dim=0) for block in blocks])  # [maps, rank]
    if len(blocks) == 1 or not bool((used.sum(dim=0) == 1).all()):
        return [(a, block) for block in blocks]
    return [(a[mine], block[:, mine]) if mine.any() else None for mine, block in zip(used, blocks, strict=True)]


@torch.no_grad()
def _apply(
    model: nn.Module,
    names: Sequence[str],
    scale: float,
    parts: Sequence[tuple[Tensor, Tensor] | None],
    dropout: float,
) -> None:
    shared: dict[int, nn.Parameter] = {}
    for name, part in zip(names, parts, strict=True):
        base = model.get_submodule(name)
        if part is None or not isinstance(base, Linear):
            continue
        a, b = part
        layer = LoRALinear(base, len(a), scale * len(a), dropout)
        layer.b.copy_(b)
        layer.a.copy_(a)
        layer.a = shared.setdefault(id(a), layer.a)
        replace_module(model, name, layer)


def _pair(
    tensors: Mapping[str, Tensor], table: Mapping[str, Stored], file: Path
) -> tuple[dict[str, Tensor], dict[str, tuple[str, dict[str, Tensor]]]]:
    """Return the tensors that are not LoRA's, and by the stack's module the name in the file and its A and B."""
    extra: dict[str, Tensor] = {}
    pairs: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"({re.escape(_BEGIN)}(.+))\.lora_([AB])\.weight", name)
        if match is None and "lora_" not in name and name.startswith(_BEGIN):
            extra[name.removeprefix(_BEGIN)] = tensor
            continue
        paths = [match[2].removeprefix(stack) for stack in ("", *_STACKS)] if match else []
        path = next((path for path in paths if path in table), None)
        if match is None or path is None:
            hint = closest(min(paths, key=len), table) if paths else ""
            raise InputError(f"{file}: tensor '{name}' belongs to no linear layer of the model{hint}")
        pairs.setdefault(path, (match[1], {}))[1][match[3]] = tensor
    if not pairs:
        raise InputError(f"{file}: no tensors of LoRA, expected names like '{_BEGIN}....lora_A.weight'")
    return extra, pairs


def _saved_whole(name: str) -> str:
    """Return the module of a tensor that PEFT saves: of a RoBERTa's classifier, which has two layers, all of it."""
    return "classifier" if name.startswith("classifier.") else name.rpartition(".")[0]


def _shortest_names(updates: Mapping[str, Any], table: Mapping[str, Stored]) -> dict[str, str]:
    """Return for each module the shortest end of its name that no module without an update has."""
    others = [path for path in table if path not in updates]
    short = {}
    for path in updates:
        words = path.split(".")
        ends = (".".join(words[start:]) for start in range(len(words) - 1, -1, -1))
        short[path] = next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))
    return short


def _patterns(
    sizes: Mapping[str, tuple[int, float]], targets: Mapping[str, str], usual: tuple[int, float]
) -> tuple[dict[str, int], dict[str, float]]:
    """Return the ranks and alphas that are not the usual ones: by target, or by module where a target has several."""
    by_target: dict[str, set[tuple[int, float]]] = {}
    for path, target in targets.items():
        by_target.setdefault(target, set()).add(sizes[path])
    different = {
        target if len(by_target[target]) == 1 else path: sizes[path]
        for path, target in targets.items()
        if sizes[path] != usual
    }
    ranks = {name: rank for name, (rank, _) in different.items()}
    return ranks, {name: alpha for name, (_, alpha) in different.items()}


def _read_config(path: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what is not plain LoRA."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a folder of an adapter") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise InputError(f"{path}: peft_type is {kind!r}, expected 'LORA'")
    refuse_set(config, _UNSUPPORTED, path)
    if (bias := config.get("bias", "none")) != "none":
        raise InputError(f"{path}: bias is {bias!r}, expected 'none'")
    begin = config.get("init_lora_weights")
    if isinstance(begin, str) and begin.startswith(_CHANGING_THE_BASE):
        raise InputError(f"{path}: init_lora_weights is {begin!r}, which changes the base's weights too")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path.parent}: no {path.name}, the only file that weights of adapters are read from")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from error


def _rank_and_scale(config: Mapping[str, Any], path: str, file: Path) -> tuple[int, float]:
    """Return rank and scale of a module's update, by the rules of PEFT."""
    try:
        values = {}
        for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            found = (
                value for name, value in (config.get(patterns) or {}).items() if re.match(rf"(.*\.)?({name})$", path)
            )
            values[key] = next(found, config[key])
        rank, alpha = int(values["r"]), float(values["lora_alpha"])
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise InputError(
            f"{file}: no usable r and lora_alpha for '{path}' ({type(error).__name__}: {error})"
        ) from error


def _refuse_scaled(model: nn.Module, base: str | Path) -> None:
    """Refuse a base whose queries we hold multiplied by what transformers does to the scores: updates would differ."""
    if not isinstance(model, GPT) or not str(base):
        return
    path = Path(base) / "config.json"
    if not path.is_file():  # an id of the hub
        return
    config = read_config(Path(base))
    for key, usual in (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True)):
        if config.get("model_type") == "gpt2" and config.get(key, usual) != usual:
            raise InputError(f"{path}: {key} is {config[key]}, for which adapters are not supported")


def _create(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot write an adapter here ({error.strerror})") from error
