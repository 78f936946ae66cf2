"""The published layout of ELMo: options.json and HDF5 files, as allenai/bilm-tf writes and allennlp reads them.

options.json               sizes
*weights.hdf5              characters, convolutions, highways, LSTMs; TensorFlow's [in, out], gates i, j, f, o
*softmax_weights.hdf5      the softmax, where there is one: softmax/W [words, projection], softmax/b
vocab*.txt                 its words, one a line
"""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.hdf5 import read_hdf5, write_hdf5
from stemma.errors import InputError
from stemma.families.directory import read_json
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.elmo.words import CHARACTERS
from stemma.families.weights import build_empty
from stemma.files import write_whole

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

OPTIONS, WEIGHTS, SOFTMAX, VOCABULARY = "options.json", "lm_weights.hdf5", "softmax_weights.hdf5", "vocab.txt"
# Where each of our gates stands among TensorFlow's: input, candidate, forget, output.
_ORDER = (0, 2, 3, 1)


def is_published(directory: Path) -> bool:
    """Return whether a folder holds an ELMo in the published layout, and no config.json."""
    return not (directory / "config.json").is_file() and bool(list(directory.glob("*options.json")))


def load_published(
    directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> ELMo:
    """Load options.json and the weights beside it; with a softmax where that is there too.

    Raises:
        InputError: options of another model, several or no weights, tensors that are missing or do not fit, h5py not
            installed.
    """
    options = _only(directory, "*options.json")
    softmax = [path for path in directory.glob("*.hdf5") if path.name.endswith("softmax_weights.hdf5")]
    weights = [path for path in directory.glob("*weights.hdf5") if path not in softmax]
    if len(weights) != 1 or len(softmax) > 1:
        raise InputError(
            f"{directory}: {len(weights)} files *weights.hdf5 of a biLM, expected one beside {options.name}"
        )
    tensors = read_hdf5(weights[0])
    outputs = read_hdf5(softmax[0]) if softmax else {}
    if softmax and not {"softmax/W", "softmax/b"} <= outputs.keys():
        raise InputError(f"{softmax[0]}: holds {', '.join(outputs) or 'nothing'}, expected softmax/W and softmax/b")
    config = config_of(read_json(options), options, vocabulary=len(outputs["softmax/W"]) if outputs else 0)
    model = build_empty(lambda: ELMo(config))
    _require_shapes(model, {**tensors, **outputs}, weights[0], options)
    parameters = _parameters(config, {**tensors, **outputs})
    state = {name: value.to(dtype=dtype or torch.float32, device=device or "cpu") for name, value in parameters}
    model.load_state_dict(state, assign=True)
    return model


def config_of(options: Mapping[str, Any], where: Path, vocabulary: int = 0) -> ELMoConfig:
    """Return the configuration that options.json describes.

    Raises:
        InputError: a key is missing, or a model that this library does not compute.
    """
    try:
        lstm, characters = options["lstm"], options["char_cnn"]
        number = characters.get("n_characters", CHARACTERS + 1)
        if number != CHARACTERS + 1:
            raise InputError(
                f"{where}: n_characters is {number}, expected {CHARACTERS + 1}"
                + (" (261 is what it is in training; set it to 262 to use the model)" if number == CHARACTERS else "")
            )
        for group, key in (
            (lstm, "projection_dim"),
            (lstm, "n_layers"),
            (lstm, "dim"),
            (characters["embedding"], "dim"),
        ):
            if type(group[key]) is not int or group[key] < 1:
                raise InputError(f"{where}: {key} is {group[key]!r}, expected a positive whole number")
        return ELMoConfig(
            vocabulary=vocabulary,
            characters=characters["embedding"]["dim"],
            filters=tuple((width, filters) for width, filters in characters["filters"]),
            highways=characters.get("n_highway") or 0,
            activation=_activation(characters.get("activation", "relu"), where),
            longest_word=characters["max_characters_per_token"],
            projection=lstm["projection_dim"],
            layers=lstm["n_layers"],
            cell=lstm["dim"],
            cell_clip=lstm.get("cell_clip"),
            projection_clip=lstm.get("proj_clip"),
            residual=bool(lstm.get("use_skip_connections")),
            dropout=options.get("dropout", 0.1),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: not the options of an ELMo ({type(error).__name__}: {error})") from error


def write_beside(model: ELMo, tokenizer: "Tokenizer | None", directory: Path) -> None:
    """Write the published layout into a checkpoint directory where that can be done: an LSTM, with h5py installed."""
    if model.config.architecture == "lstm" and find_spec("h5py") is not None:
        words = None if tokenizer is None else [tokenizer.token(row) for row in range(model.config.outputs)]
        save_published(model, directory, words)


def save_published(model: ELMo, directory: Path, words: list[str] | None = None) -> None:
    """Write options.json, the weights and, where there is one, the softmax and its `words`, one for each row.

    Raises:
        InputError: a Transformer or a gated CNN, for which there is no such layout; h5py not installed.
        OSError: it could not be written.
    """
    config = model.config
    if config.architecture != "lstm":
        raise InputError(f"an ELMo of architecture {config.architecture} has no published layout, only an LSTM has")
    options = {
        "lstm": {
            "cell_clip": config.cell_clip,
            "proj_clip": config.projection_clip,
            "use_skip_connections": config.residual,
            "n_layers": config.layers,
            "projection_dim": config.projection,
            "dim": config.cell,
        },
        "char_cnn": {
            "embedding": {"dim": config.characters},
            "filters": [list(each) for each in config.filters],
            "n_highway": config.highways,
            "n_characters": CHARACTERS + 1,
            "max_characters_per_token": config.longest_word,
            "activation": config.activation,
        },
        "dropout": config.dropout,
    }
    if config.outputs:
        options["n_tokens_vocab"] = config.outputs
    tensors = {name: tensor.cpu().numpy() for name, tensor in _tensors(model)}
    outputs = {name: tensors.pop(name) for name in list(tensors) if name.startswith("softmax/")}
    for file, content in ((WEIGHTS, tensors), (SOFTMAX, outputs)):
        if content:
            write_hdf5(directory / file, content.items())
    if words is not None:
        with write_whole(directory / VOCABULARY) as temporary:
            temporary.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    with write_whole(directory / OPTIONS) as temporary:
        temporary.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")


def _only(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{directory}: {len(found)} files {pattern}, expected one")
    return found[0]


def _activation(name: str, where: Path) -> Any:
    if name not in ("relu", "tanh"):
        raise InputError(f"{where}: activation is '{name}', expected relu or tanh")
    return name


def _require_shapes(model: ELMo, tensors: Mapping[str, np.ndarray], path: Path, options: Path) -> None:
    for name, expected in _tensors(model):
        if name not in tensors:
            raise InputError(f"{path}: tensor '{name}' is missing")
        if tensors[name].shape != expected.shape:
            raise InputError(
                f"{path}: {name} is {list(tensors[name].shape)}, {options.name} makes it {list(expected.shape)}"
            )


def _parameters(config: ELMoConfig, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    """Yield our parameters, by name, of the tensors of a file."""

    def take(name: str) -> Tensor:
        return torch.from_numpy(tensors[name])

    yield "words.embedding.weight", take("char_embed")
    for index in range(len(config.filters)):
        yield f"words.convolutions.{index}.weight", take(f"CNN/W_cnn_{index}").squeeze(0).permute(2, 1, 0).contiguous()
        yield f"words.convolutions.{index}.bias", take(f"CNN/b_cnn_{index}")
    for ours, theirs in _affine(config).items():
        yield f"{ours}.weight", take(theirs[0]).t().contiguous()
        yield f"{ours}.bias", take(theirs[1])
    for layer in range(config.layers):
        parts = [[take(name) for name in _lstm_names(direction, layer)] for direction in range(2)]
        weights, biases, projections = zip(*parts, strict=True)
        joined = torch.stack([_gates(weight.t(), config.cell) for weight in weights])
        bias = torch.stack([_gates(bias, config.cell) for bias in biases])
        bias[:, config.cell : 2 * config.cell] += 1.0  # which TensorFlow adds to the forget gates as it computes
        ours = f"context.layers.{layer}"
        yield f"{ours}.input_weight", joined[..., : config.projection].contiguous()
        yield f"{ours}.recurrent_weight", joined[..., config.projection :].contiguous()
        yield f"{ours}.bias", bias
        yield f"{ours}.projection_weight", torch.stack([weight.t() for weight in projections])
    if config.outputs:
        yield "output.weight", take("softmax/W")
        yield "output.bias", take("softmax/b")


def _tensors(model: ELMo) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the files, by name: what `_parameters` reads."""
    config, own = model.config, {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    yield "char_embed", own["words.embedding.weight"]
    for index in range(len(config.filters)):
        yield f"CNN/W_cnn_{index}", own[f"words.convolutions.{index}.weight"].permute(2, 1, 0).unsqueeze(0)
        yield f"CNN/b_cnn_{index}", own[f"words.convolutions.{index}.bias"]
    for ours, theirs in _affine(config).items():
        yield theirs[0], own[f"{ours}.weight"].t()
        yield theirs[1], own[f"{ours}.bias"]
    for layer in range(config.layers):
        part = f"context.layers.{layer}"
        joined = torch.cat([own[f"{part}.input_weight"], own[f"{part}.recurrent_weight"]], -1)
        bias = own[f"{part}.bias"].clone()
        bias[:, config.cell : 2 * config.cell] -= 1.0
        for direction in range(2):
            names = _lstm_names(direction, layer)
            yield names[0], _ungates(joined[direction], config.cell).t()
            yield names[1], _ungates(bias[direction], config.cell)
            yield names[2], own[f"{part}.projection_weight"][direction].t()
    if config.outputs:
        yield "softmax/W", own["output.weight"]
        yield "softmax/b", own["output.bias"]


def _affine(config: ELMoConfig) -> dict[str, tuple[str, str]]:
    """Return our linear layers and the published names of weight and bias."""
    layers = {}
    for index in range(config.highways):
        for ours, theirs in (("gate", "carry"), ("transform", "transform")):
            group = f"CNN_high_{index}"
            layers[f"words.highways.{index}.{ours}"] = (f"{group}/W_{theirs}", f"{group}/b_{theirs}")
    layers["words.projection"] = ("CNN_proj/W_proj", "CNN_proj/b_proj")
    return layers


def _lstm_names(direction: int, layer: int) -> tuple[str, str, str]:
    cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
    return f"{cell}/W_0", f"{cell}/B", f"{cell}/W_P_0"


def _gates(tensor: Tensor, cell: int) -> Tensor:
    """Bring TensorFlow's gates, along the first dimension, into our order: input, forget, output, candidate."""
    parts = tensor.split(cell)
    return torch.cat([parts[place] for place in _ORDER])


def _ungates(tensor: Tensor, cell: int) -> Tensor:
    parts = tensor.split(cell)
    return torch.cat([parts[_ORDER.index(place)] for place in range(4)])
