"""Mistral checkpoints against Hugging Face transformers: same tensors, same logits, same gradients."""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.mistral.checkpoint import to_published
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.experts import load_balancing_loss
from stemma.layers.masks import Mask

from .reference import SHAPES, gradients_by_file_name, randomized, reference, saved_reference, some_tokens

SMALL = MistralConfig(
    vocabulary=70, context=40, layers=2, hidden=24, heads=4, key_value_heads=2, feed_forward=36, windows=(5,)
)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the scale of what is compared."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.abs().max()), 1e-3))


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("length", [4, 6, 40])  # shorter than the window of 6, as long, several times as long
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape: str, length: int, tmp_path: Path) -> None:
    theirs = saved_reference(shape, tmp_path)
    ours = load(tmp_path)
    assert not ours.training
    tokens = some_tokens(length)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    theirs = saved_reference(shape, tmp_path)
    ours, tokens = load(tmp_path), some_tokens(20)
    F.cross_entropy(theirs(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    hidden = ours.hidden(tokens)[:, :-1].flatten(0, 1)
    linear_cross_entropy(hidden, ours.output_weight, tokens[:, 1:].flatten()).backward()
    gradients = deepcopy(ours)
    for parameter, source in zip(gradients.parameters(), ours.parameters(), strict=True):
        assert source.grad is not None
        parameter.data = source.grad
    published, expected = dict(to_published(gradients)[1]), gradients_by_file_name(theirs)
    assert published.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(published[name], gradient)


@pytest.mark.parametrize("shape", ["mistral", "mixtral with window", "ministral"])
def test_rows_of_unequal_length(shape: str, tmp_path: Path) -> None:
    """Padded at the left as transformers generates, and at the right, where causality is the mask."""
    theirs = saved_reference(shape, tmp_path)
    ours, tokens = load(tmp_path), some_tokens(25)
    real = torch.arange(25) >= torch.tensor([[0], [3], [16]])
    positions = (real.cumsum(1) - 1).clamp_min(0)
    expected = theirs(tokens, attention_mask=real.long(), position_ids=positions).logits
    logits = ours(tokens, mask=Mask(causal=True, key_padding=real))
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)
    assert (ours(tokens)[2, 16:] - expected[2, 16:]).abs().max() > 0.01  # the mask does something
    for row, start in enumerate((0, 3, 16)):
        torch.testing.assert_close(ours(tokens[row : row + 1, start:])[0], expected[row, start:], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            ours(tokens.roll(-start, 1))[row, : 25 - start], expected[row, start:], rtol=0, atol=1e-5
        )


def test_the_load_balancing_loss_is_that_of_transformers(tmp_path: Path) -> None:
    theirs = saved_reference("mixtral", tmp_path)
    ours, tokens = load(tmp_path), some_tokens(20)
    expected = theirs(tokens, output_router_logits=True)
    _, routings = ours.hidden_and_routing(tokens)
    for routing, logits in zip(routings, expected.router_logits, strict=True):
        torch.testing.assert_close(routing, logits, rtol=0, atol=1e-5)
    loss = load_balancing_loss(torch.cat(routings), 2)  # all layers counted together, as there
    torch.testing.assert_close(loss, expected.aux_loss, rtol=1e-6, atol=1e-6)
    expected.aux_loss.backward()
    loss.backward()
    for number, block in enumerate(ours.blocks):
        assert_close(block.feed_forward.router.weight.grad, theirs.model.layers[number].mlp.gate.weight.grad)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "llama"])
def test_load_then_save_gives_the_same_files(shape: str, tmp_path: Path) -> None:
    theirs = saved_reference(shape, tmp_path / "theirs")
    save(load(tmp_path / "theirs"), None, tmp_path / "ours")
    expected, found = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    before = theirs.config.to_dict()
    after = transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_dict()
    for key in before.keys() - {"_name_or_path", "head_dim", "rope_theta"}:
        assert after[key] == before[key], key


OWN_CONFIGS = {
    "mistral": SMALL,
    "no window": replace(SMALL, windows=(None,), rope_theta=5e5),
    "wide heads, tied": replace(SMALL, head_dim=10, tie_output=True, key_value_heads=1),
    "window in some layers": replace(SMALL, layers=3, windows=(None, 5)),
    "mixtral": replace(SMALL, windows=(None,), experts=3),
    "mixtral with window": replace(SMALL, experts=4, experts_per_token=1),
}


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
@pytest.mark.parametrize("name", OWN_CONFIGS)
def test_transformers_loads_what_we_save(name: str, shard_bytes: int, tmp_path: Path) -> None:
    ours = randomized(Mistral(OWN_CONFIGS[name]))
    save(ours, None, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes == 10**9)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens = some_tokens(40, vocabulary=70)
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=1e-5)
    again = load(tmp_path)
    assert torch.equal(again(tokens), ours(tokens))
    assert theirs.config.eos_token_id is None


@pytest.mark.parametrize(
    "config",
    [replace(SMALL, windows=(3, 5)), replace(SMALL, windows=(5, None), experts=2)],
    ids=["windows of two sizes", "experts behind differing layers"],
)
def test_what_transformers_cannot_compute_has_a_type_of_its_own(config: MistralConfig, tmp_path: Path) -> None:
    ours = randomized(Mistral(config))
    save(ours, None, tmp_path)
    again = load(tmp_path)
    assert again.config == config
    tokens = some_tokens(30, vocabulary=70)
    assert torch.equal(again(tokens), ours(tokens))
    with pytest.raises(ValueError, match="stemma-mistral"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a half-split map in the order of Mistral's own files."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def write_native(model: torch.nn.Module, directory: Path, files: int) -> None:
    """Write a transformers model as Mistral's own releases are."""
    config = model.config
    theirs = {"q": "wq", "k": "wk", "v": "wv", "o": "wo", "gate": "w1", "down": "w2", "up": "w3"}
    model.save_pretrained(directory / "hf")
    tensors = {}
    for name, tensor in stored(directory / "hf").items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".")
        match parts:
            case ["layers", n, "self_attn", projection]:
                kind = projection.removesuffix("_proj")
                heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(kind)
                tensors[f"layers.{n}.attention.{theirs[kind]}.weight"] = (
                    interleaved(tensor, heads) if heads else tensor.clone()
                )
            case ["layers", n, "mlp", projection]:
                tensors[f"layers.{n}.feed_forward.{theirs[projection.removesuffix('_proj')]}.weight"] = tensor
            case ["layers", n, "block_sparse_moe", *rest]:
                tensors[f"layers.{n}.feed_forward.{'.'.join(rest)}.weight"] = tensor
            case ["layers", n, "input_layernorm"]:
                tensors[f"layers.{n}.attention_norm.weight"] = tensor
            case ["layers", n, "post_attention_layernorm"]:
                tensors[f"layers.{n}.ffn_norm.weight"] = tensor
            case [other]:
                tensors[{"embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output"}[other] + ".weight"] = (
                    tensor
                )
    parameters = {
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers,
        "head_dim": config.hidden_size // config.num_attention_heads, "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps, "vocab_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
    }  # fmt: skip
    if config.sliding_window:
        parameters["sliding_window"] = config.sliding_window
    if config.model_type == "mixtral":
        parameters["moe"] = {"num_experts": config.num_local_experts, "num_experts_per_tok": config.num_experts_per_tok}
    (directory / "params.json").write_text(json.dumps(parameters))
    names = sorted(tensors)
    for number in range(files):
        suffix = "" if files == 1 else f".{number:02d}"
        save_file(
            {name: tensors[name] for name in names[number::files]}, directory / f"consolidated{suffix}.safetensors"
        )


@pytest.mark.parametrize(("shape", "files"), [("mistral", 1), ("mixtral", 3), ("mistral without window", 2)])
def test_mistrals_own_layout(shape: str, files: int, tmp_path: Path) -> None:
    theirs, tokens = reference(shape), some_tokens(30)
    write_native(theirs, tmp_path, files)
    ours = load(tmp_path)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    query = ours.blocks[0].attention.query.weight
    own = load_file(
        next(path for path in sorted(tmp_path.glob("cons*")) if "layers.0.attention.wq.weight" in load_file(path))
    )
    assert not torch.equal(query, own["layers.0.attention.wq.weight"])  # the rows were put into another order


def test_the_interleaved_order_is_that_of_complex_numbers(tmp_path: Path) -> None:
    """Scores by the native code's own arithmetic: pairs (2i, 2i + 1) of the interleaved maps as complex numbers."""
    theirs = reference("mistral")
    query, key = (getattr(theirs.model.layers[0].self_attn, f"{kind}_proj").weight.detach() for kind in "qk")
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    angles = torch.arange(7.0)[:, None] * 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def complex_rotated(weight: Tensor, heads: int) -> Tensor:
        pairs = (x @ interleaved(weight, heads).T).view(7, heads, 4, 2)
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(2)  # [length, heads, head_dim]

    from stemma.layers.rotary import rotary_angles, rotate

    ours = [
        rotate((x @ weight.T).view(7, heads, 8).transpose(0, 1), rotary_angles(torch.arange(7), 8, 10000.0))
        for weight, heads in ((query, 4), (key, 2))
    ]
    native = [complex_rotated(query, 4), complex_rotated(key, 2)]
    for head in range(4):
        expected = native[0][:, head] @ native[1][:, head // 2].T
        torch.testing.assert_close(ours[0][head] @ ours[1][head // 2].T, expected, rtol=0, atol=1e-5)


def test_older_configurations_and_files(tmp_path: Path) -> None:
    """`rope_theta` at the top, frequencies among the tensors, as transformers 4 wrote them."""
    theirs = saved_reference("mistral without window", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 1e6, "rope_scaling": None}))
    tensors = {**stored(tmp_path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = some_tokens(30)
    torch.testing.assert_close(load(tmp_path)(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rotary positions of type 'yarn'",
        ),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, expected silu"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"num_key_value_heads": 3}, r"heads \(4\) must be a multiple of key_value_heads \(3\)"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types differ"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"head_dim": 16}, r"q_proj.weight' is \[32, 32\], the config makes it \[64, 32\]"),
        ({"num_hidden_layers": 3}, r"'model.layers.2.input_layernorm.weight' \(and 8 more\) is missing"),
        ({"tie_word_embeddings": True}, "'lm_head.weight' differs"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change: dict, message: str, tmp_path: Path) -> None:
    saved_reference("mistral", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": None}, "params.json: n_heads is None"),
        ({"sliding_window": [4, 8]}, "sliding_window is a list"),
        ({"vision_encoder": {"a": 1}}, "vision_encoder is set"),
        ({"n_layers": 3}, "'model.layers.2.input_layernorm.weight'"),
    ],
)
def test_native_releases_that_cannot_be_computed(change: dict, message: str, tmp_path: Path) -> None:
    write_native(reference("mistral"), tmp_path, 1)
    path = tmp_path / "params.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "consolidated.safetensors").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_heads": 4}))
    with pytest.raises(InputError, match="no weights, expected consolidated.safetensors"):
        load(tmp_path)


_MEASURED = """
import sys, torch, stemma
from pathlib import Path
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
stemma.load(sys.argv[2])  # whatever is imported only now
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
model = stemma.load(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
weights = sum(parameter.nbytes for parameter in model.parameters())
print((resident("VmHWM") - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory")
@pytest.mark.parametrize(
    ("stored_as", "loaded_as"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
@pytest.mark.parametrize("native", [False, True])
def test_loading_takes_little_more_memory_than_the_weights(
    stored_as: str, loaded_as: str, native: bool, tmp_path: Path
) -> None:
    """Of the page cache's pages too, whatever the file's dtype: at most the tensor at hand beside the weights."""
    config = MistralConfig(
        vocabulary=2000, layers=20, hidden=512, heads=8, key_value_heads=2, feed_forward=1536, windows=(64,)
    )
    model = Mistral(config).to(getattr(torch, stored_as))
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 > 2e8
    save(model, None, tmp_path)
    save(Mistral(SMALL), None, tmp_path / "small")
    if native:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        write_native(theirs, tmp_path, 2)
        (tmp_path / "config.json").unlink()
    command = [sys.executable, "-c", _MEASURED, str(tmp_path), str(tmp_path / "small"), loaded_as]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.9 < ratio < 1.1, ratio
