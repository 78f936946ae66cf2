"""GLM's two published layouts, in and out, against the plain computation on their tensors."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import stemma
from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.families import save
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.original import is_original, load_original
from stemma.families.glm.tokens import prepare_tokenizer
from stemma.layers.masks import Mask

from . import reference

CONFIG = {
    "model_type": "glm",
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 90,
    "max_sequence_length": 16,
    "block_position_encoding": True,
}
TENSORS = reference.random_tensors(layers=2, hidden=32, vocabulary=90, context=16)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(90, (2, 12), generator=torch.Generator().manual_seed(0))
    context_lengths = torch.tensor([5, 8])
    positions = torch.zeros(2, 2, 12, dtype=torch.int64)
    for row, length in enumerate(context_lengths.tolist()):
        positions[row, 0, :length], positions[row, 0, length:] = torch.arange(length), 2
        positions[row, 1, length:] = torch.arange(1, 13 - length)
    return tokens, positions, context_lengths


def assert_computes_the_same(model: torch.nn.Module) -> None:
    tokens, positions, context_lengths = batch()
    expected = reference.logits(TENSORS, 4, tokens, positions, context_lengths)
    logits = model(tokens, positions, Mask(causal=True, prefix_lengths=context_lengths))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert not model.training


@pytest.mark.parametrize("prefix", ["", "glm."])
@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
def test_hugging_face_layout(prefix: str, form: str, tmp_path: Path) -> None:
    tensors = {prefix + name: tensor for name, tensor in TENSORS.items()}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if form == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    elif form == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        files = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
        for file in set(files.values()):
            torch.save({name: tensors[name] for name in names if files[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_computes_the_same(stemma.load(tmp_path))


def test_what_is_saved_is_the_published_layout(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file(TENSORS, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(CONFIG))
    save(stemma.load(tmp_path / "in"), None, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert_computes_the_same(stemma.load(tmp_path / "out"))


def test_a_directory_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(train_tokenizer(["the family tree of models " * 30], "bpe", vocabulary=270))
    config = GLMConfig(
        vocabulary=tokenizer.vocabulary, context=32, layers=1, hidden=16, heads=2, block_positions=False, dropout=0.0
    )
    model = GLM(replace(config, vocabulary_multiple=64)).eval()
    assert model.token_embedding.weight.shape[0] % 64 == 0 and tokenizer.vocabulary % 64
    save(model, tokenizer, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["word_embeddings.weight"].shape == (tokenizer.vocabulary, 16)  # without padding
    assert stored["transformer.position_embeddings.weight"].shape == (32, 16)
    assert "transformer.block_position_embeddings.weight" not in stored
    again = stemma.load(tmp_path)
    assert again.config == config
    tokens = torch.arange(20).unsqueeze(0)
    assert torch.equal(again(tokens), model(tokens))
    assert stemma.load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_encoding": True}, "relative_encoding is set"),
        ({"spell_length": 3}, "spell_length is set"),
        ({"output_dropout_prob": 0.3}, "output_dropout_prob 0.3"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_attention_heads": 5}, r"hidden \(32\) must be a multiple of heads \(5\)"),
        ({"max_sequence_length": 17}, r"position_embeddings.weight' is \[17, 32\], the config makes it \[18, 32\]"),
        ({"vocab_size": 96}, r"word_embeddings.weight' is \[90, 32\], the config makes it \[96, 32\]"),
        ({"num_layers": 3}, r"\(and 11 more\) is missing"),
        ({"block_position_encoding": False}, "block_position_embeddings.weight' is not part of the model"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict, message: str, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(InputError, match=message):
        stemma.load(tmp_path)


def test_glm_4_is_not_this_glm(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "glm", "num_hidden_layers": 40, "hidden_size": 4096})
    )
    with pytest.raises(InputError, match="GLM-4"):
        stemma.load(tmp_path)


# The authors' own layout.


def split(name: str, tensor: Tensor, parts: int) -> list[Tensor]:
    """Divide a tensor among model-parallel workers, written down independently of the reader, tensor by tensor."""
    if "query_key_value" in name:
        query, key, value = tensor.split(len(tensor) // 3)
        rows = len(query) // parts
        return [
            torch.cat([part[worker * rows : (worker + 1) * rows] for part in (query, key, value)])
            for worker in range(parts)
        ]
    if name == "word_embeddings.weight" or "dense_h_to_4h" in name:
        rows = len(tensor) // parts
        return [tensor[worker * rows : (worker + 1) * rows].clone() for worker in range(parts)]
    if name.endswith(".dense.weight") or "dense_4h_to_h.weight" in name:
        columns = tensor.shape[1] // parts
        return [tensor[:, worker * columns : (worker + 1) * columns].clone() for worker in range(parts)]
    return [tensor.clone() for _ in range(parts)]


def write_original(folder: Path, parts: int = 1, tag: str = "150000", **extra: object) -> None:
    """Write what `save_checkpoint` of the authors' code does, generator states included."""
    (folder / tag).mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(tag)
    states = {
        "iteration": 150000,
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "optimizer": None,
        "csr_tensor_module_names": set(),
        **extra,
    }
    for worker in range(parts):
        module = {name: split(name, tensor, parts)[worker] for name, tensor in TENSORS.items()}
        torch.save({"module": module, **states}, folder / tag / f"mp_rank_{worker:02d}_model_states.pt")


@pytest.mark.parametrize("parts", [1, 2])
def test_original_layout(parts: int, tmp_path: Path) -> None:
    write_original(tmp_path, parts)
    assert is_original(tmp_path) and is_original(tmp_path / "150000")
    for folder in (tmp_path, tmp_path / "150000"):
        assert_computes_the_same(load_original(folder, heads=4).eval())


def test_load_recognises_it_and_heads_are_64_wide(tmp_path: Path) -> None:
    tensors = reference.random_tensors(layers=1, hidden=128, vocabulary=20, context=8)
    (tmp_path / "blocklm").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("blocklm\n")
    torch.save({"module": tensors}, tmp_path / "blocklm" / "mp_rank_00_model_states.pt")
    model = stemma.load(tmp_path, dtype=torch.bfloat16)
    assert model.config == GLMConfig(vocabulary=20, context=8, layers=1, hidden=128, heads=2)
    assert not model.training and model.output_weight.dtype == torch.bfloat16
    save(stemma.load(tmp_path), None, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_old_torch_files(tmp_path: Path) -> None:
    """Torch 1.5 and before wrote no archives."""
    (tmp_path / "1").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    path = tmp_path / "1" / "mp_rank_00_model_states.pt"
    torch.save({"module": TENSORS}, path, _use_new_zipfile_serialization=False)
    assert_computes_the_same(load_original(tmp_path, heads=4).eval())


class Scaler:
    """Stands for DeepSpeed's classes in a training state."""


def test_objects_in_a_pickle_are_refused_until_trusted(tmp_path: Path) -> None:
    write_original(tmp_path, loss_scaler=Scaler())
    with pytest.raises(InputError, match=r"refused, it holds .*Scaler.*trust_pickle=True"):
        stemma.load(tmp_path)
    assert_computes_the_same(load_original(tmp_path, heads=4, trust_pickle=True).eval())


def test_original_layouts_that_are_broken(tmp_path: Path) -> None:
    write_original(tmp_path, 2)
    with pytest.raises(InputError, match="cannot tell the attention heads"):
        stemma.load(tmp_path)
    first, second = sorted((tmp_path / "150000").iterdir())
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated or not a torch file"):
        load_original(tmp_path, heads=4)
    second.write_bytes(content)
    first.unlink()
    with pytest.raises(InputError, match=r"mp_rank_00_model_states\.pt is missing"):
        load_original(tmp_path, heads=4)
    torch.save({"module": {"word_embeddings.weight": torch.zeros(45, 32)}}, first)
    with pytest.raises(InputError, match="in some workers' files only"):
        load_original(tmp_path, heads=4)
    torch.save(torch.zeros(3), first)
    with pytest.raises(InputError, match="expected a dictionary with the tensors under 'module'"):
        load_original(tmp_path, heads=4)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("../elsewhere")
    with pytest.raises(InputError, match=r"names '\.\./elsewhere'"):
        stemma.load(tmp_path)
