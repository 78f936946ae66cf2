"""Small models of transformers in which every parameter matters, and their twins here."""

from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

_SMALL = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
    pad_token_id=None,
)  # fmt: skip
SHAPES = {
    "mistral": ("mistral", dict(sliding_window=6)),
    "mistral, wide heads": ("mistral", dict(sliding_window=5, head_dim=12, num_key_value_heads=1)),
    "mistral without window": (
        "mistral", dict(sliding_window=None, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    ),
    "mistral, tied": ("mistral", dict(sliding_window=64, tie_word_embeddings=True, num_key_value_heads=4)),
    "llama": ("llama", dict(num_key_value_heads=4, rms_norm_eps=1e-3)),
    "mixtral": ("mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "mixtral with window": ("mixtral", dict(num_local_experts=5, num_experts_per_tok=3, sliding_window=6)),
    "ministral": (
        "ministral",
        dict(
            sliding_window=6, num_hidden_layers=3, head_dim=8,
            rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
}  # fmt: skip


def reference(shape: str, **extra: object) -> nn.Module:
    model_type, options = SHAPES[shape]
    config = transformers.AutoConfig.for_model(model_type, **{**_SMALL, **options, **extra})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return randomized(model)


def saved_reference(shape: str, directory: Path, **extra: object) -> nn.Module:
    model = reference(shape, **extra)
    model.save_pretrained(directory)
    return model


def randomized(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name:
                parameter += 1.0
    return model.eval()


def some_tokens(length: int, batch: int = 3, vocabulary: int = 97) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def gradients_by_file_name(model: nn.Module) -> dict[str, Tensor]:
    """The gradients under the names of a file, where transformers 5 holds an expert's matrices in one tensor."""
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if name.endswith("mlp.gate.weight"):
            gradients[name.replace("mlp.gate", "block_sparse_moe.gate")] = gradient
        elif name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(gradient):
                begin = name.replace("mlp.experts.gate_up_proj", f"block_sparse_moe.experts.{expert}.")
                gradients[f"{begin}w1.weight"], gradients[f"{begin}w3.weight"] = both.chunk(2)
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(gradient):
                begin = name.replace("mlp.experts.down_proj", f"block_sparse_moe.experts.{expert}.")
                gradients[f"{begin}w2.weight"] = down
        else:
            gradients[name] = gradient
    return gradients
