"""ELMo in NumPy, from the published tensors by their published names, one word and one step at a time.

As allenai/bilm-tf computes: ids one higher than in training, a zero row for 0, gates i, j, f, o, the
forget gate's bias not stored, states carried on where they are handed back in.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


def random_weights(options: dict[str, Any], seed: int = 0) -> Tensors:
    """Return tensors of the shapes that the options make, large enough for clips to matter."""
    rng = np.random.default_rng(seed)
    lstm, characters = options["lstm"], options["char_cnn"]
    dimensions, total = characters["embedding"]["dim"], sum(number for _, number in characters["filters"])
    shapes: dict[str, tuple[int, ...]] = {"char_embed": (261, dimensions)}
    for k, (width, number) in enumerate(characters["filters"]):
        shapes |= {f"CNN/W_cnn_{k}": (1, width, dimensions, number), f"CNN/b_cnn_{k}": (number,)}
    for k in range(characters["n_highway"]):
        for part in ("carry", "transform"):
            shapes |= {f"CNN_high_{k}/W_{part}": (total, total), f"CNN_high_{k}/b_{part}": (total,)}
    width, cell = lstm["projection_dim"], lstm["dim"]
    shapes |= {"CNN_proj/W_proj": (total, width), "CNN_proj/b_proj": (width,)}
    for direction in range(2):
        for layer in range(lstm["n_layers"]):
            name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            shapes |= {f"{name}/W_0": (2 * width, 4 * cell), f"{name}/B": (4 * cell,), f"{name}/W_P_0": (cell, width)}
    return {name: (rng.standard_normal(shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}


def write(directory: Path, options: dict[str, Any], tensors: Tensors) -> None:
    import h5py

    (directory / "options.json").write_text(json.dumps(options))
    with h5py.File(directory / "lm_weights.hdf5", "w") as file:
        for name, tensor in tensors.items():
            file[name] = tensor


class Reference:
    """`layers(sentence)` of a model; it carries its states on, as the original does, until `reset`."""

    def __init__(self, options: dict[str, Any], tensors: Tensors) -> None:
        self.options, self.tensors = options, {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self.reset()

    def reset(self) -> None:
        lstm = self.options["lstm"]
        self.states = {
            (direction, layer): (np.zeros(lstm["projection_dim"]), np.zeros(lstm["dim"]))
            for direction in range(2)
            for layer in range(lstm["n_layers"])
        }

    def word(self, ids: list[int]) -> np.ndarray:
        """The vector of one word from its ids (those of training)."""
        tensors, characters = self.tensors, self.options["char_cnn"]
        table = np.concatenate([np.zeros((1, tensors["char_embed"].shape[1])), tensors["char_embed"]])
        longest = characters["max_characters_per_token"]
        embedded = table[np.array(ids + [260] * (longest - len(ids))) + 1]
        parts = []
        for k, (width, _) in enumerate(characters["filters"]):
            weight = tensors[f"CNN/W_cnn_{k}"][0]
            windows = [
                np.einsum("wd,wdn->n", embedded[start : start + width], weight) for start in range(longest - width + 1)
            ]
            highest = np.max(windows, 0) + tensors[f"CNN/b_cnn_{k}"]
            parts.append(np.maximum(highest, 0) if characters["activation"] == "relu" else np.tanh(highest))
        x = np.concatenate(parts)
        for k in range(characters["n_highway"]):
            high = f"CNN_high_{k}"
            gate = sigmoid(x @ tensors[f"{high}/W_carry"] + tensors[f"{high}/b_carry"])
            new = np.maximum(x @ tensors[f"{high}/W_transform"] + tensors[f"{high}/b_transform"], 0)
            x = gate * new + (1 - gate) * x
        return x @ tensors["CNN_proj/W_proj"] + tensors["CNN_proj/b_proj"]

    def layers(self, words: list[str]) -> np.ndarray:
        """[1 + layers, words, 2 * width]."""
        longest = self.options["char_cnn"]["max_characters_per_token"]
        ids = [[258, 256, 259], *([258, *w.encode()[: longest - 2], 259] for w in words), [258, 257, 259]]
        vectors = np.stack([self.word(one) for one in ids])
        directions = [self._direction(0, vectors), [layer[::-1] for layer in self._direction(1, vectors[::-1])]]
        layers = [np.concatenate([vectors, vectors], 1)]
        layers += [np.concatenate(pair, 1) for pair in zip(*directions, strict=True)]
        return np.stack(layers)[:, 1:-1]

    def _direction(self, direction: int, x: np.ndarray) -> list[np.ndarray]:
        lstm, outputs = self.options["lstm"], []
        for layer in range(lstm["n_layers"]):
            name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            hidden, cell = self.states[direction, layer]
            steps = []
            for step in x:
                gates = np.concatenate([step, hidden]) @ self.tensors[f"{name}/W_0"] + self.tensors[f"{name}/B"]
                i, j, f, o = np.split(gates, 4)
                cell = clip(sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(j), lstm["cell_clip"])
                hidden = clip(sigmoid(o) * np.tanh(cell) @ self.tensors[f"{name}/W_P_0"], lstm["proj_clip"])
                steps.append(hidden)
            self.states[direction, layer] = hidden, cell
            below, x = x, np.stack(steps)
            if lstm["use_skip_connections"] and layer:
                x = x + below
            outputs.append(x)
        return outputs


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def clip(x: np.ndarray, largest: float | None) -> np.ndarray:
    return x if largest is None else np.clip(x, -largest, largest)
