"""Adapters on disk against PEFT on transformers' models: the same logits, whoever trained them."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.training.adapters import load_adapter, save_adapter
from stemma.training.lora import LoRAConfig, add_lora, lora_layers, lora_parameters, merge_lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GPT_SIZES = dict(vocab_size=61, n_positions=24, n_embd=24, n_layer=2, n_head=3)
T5_SIZES = dict(vocab_size=61, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3, decoder_start_token_id=0)
BERT_SIZES = dict(
    vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=24,
)  # fmt: skip
MISTRAL_SIZES = dict(
    vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=40, max_position_embeddings=24, sliding_window=5,
)  # fmt: skip
THEIRS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT_SIZES)),
    "openai-gpt": lambda: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**GPT_SIZES)),
    "bert": lambda: transformers.BertForPreTraining(transformers.BertConfig(**BERT_SIZES)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**MISTRAL_SIZES)),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_SIZES)),
    "t5 1.1": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5_SIZES, num_decoder_layers=1, feed_forward_proj="gated-gelu")
    ),
}
TASKS = {
    "gpt2": "CAUSAL_LM", "openai-gpt": "CAUSAL_LM", "mistral": "CAUSAL_LM", "bert": None,
    "t5": "SEQ_2_SEQ_LM", "t5 1.1": "SEQ_2_SEQ_LM",
}  # fmt: skip
# Ours, and PEFT's targets for (nearly) the same.
TARGETS = {
    "all": ("all-linear", "all-linear"),
    "paper": (("query", "value"), {
        "gpt": ["c_attn"], "bert": ["query", "value"], "t5": ["q", "v"], "mistral": ["q_proj", "v_proj"],
    }),
    "down": (("down",), {
        "gpt": ["mlp.c_proj"], "bert": r".*layer\.\d+\.output\.dense", "t5": ["wo"], "mistral": ["down_proj"],
    }),
}  # fmt: skip
TOKENS = torch.arange(20).view(2, 10) * 3


def base(name: str, directory: Path) -> tuple[nn.Module, nn.Module]:
    """transformers' model of random weights and ours, both read from `directory`."""
    torch.manual_seed(0)
    theirs = THEIRS[name]()
    for key, parameter in theirs.named_parameters():
        is_norm = parameter.dim() == 1 and key.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_norm), std=0.2)
    theirs.save_pretrained(directory)
    return type(theirs).from_pretrained(directory).eval(), load(directory)


def their_logits(model: Any) -> Tensor:
    if model.config.model_type == "t5":
        shifted = torch.cat([torch.zeros(2, 1, dtype=torch.int64), TOKENS.flip(1)[:, :-1]], dim=1)
        return model(input_ids=TOKENS, decoder_input_ids=shifted).logits
    output = model(input_ids=TOKENS)
    return output.prediction_logits if "prediction_logits" in output else output.logits


def our_logits(model: nn.Module) -> Tensor:
    return model(TOKENS, TOKENS.flip(1)) if hasattr(model, "encode") else model(TOKENS)


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    """Adapters as after some training."""
    torch.manual_seed(1)
    add_lora(model, LoRAConfig(**{"rank": 2, "alpha": 3, **options}))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.b, std=0.3)
    return model.eval()


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", THEIRS)
def test_peft_reads_ours(name, targets, tmp_path):
    theirs, ours = base(name, tmp_path / "base")
    before = our_logits(ours)
    same(their_logits(theirs), before)
    adapted(ours, targets=TARGETS[targets][0])
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base", TASKS[name])
    with torch.no_grad():
        wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        same(their_logits(wrapped), our_logits(ours))
    assert (our_logits(ours) - before).abs().max() > 1e-2
    # No module got an empty adapter: the targets name exactly what was adapted.
    inside = {key for key in peft.get_peft_model_state_dict(wrapped) if "lora_" in key}
    assert inside == set(load_file(tmp_path / "adapter" / WEIGHTS))
    again = load(tmp_path / "base")
    assert load_adapter(again, tmp_path / "adapter") == {}
    same(our_logits(again), our_logits(ours))
    assert {n: layer.rank for n, layer in lora_layers(again).items()} == dict.fromkeys(lora_layers(ours), 2)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", THEIRS)
def test_we_read_pefts(name, targets, tmp_path):
    theirs, ours = base(name, tmp_path / "base")
    kinds = TARGETS[targets][1]
    kind = next((kind for kind in ("gpt", "bert", "t5", "mistral") if kind in name), None)
    options = dict(r=3, lora_alpha=5, fan_in_fan_out=kind == "gpt", init_lora_weights=False)
    target_modules = kinds if isinstance(kinds, str) else kinds[kind]
    config = peft.LoraConfig(target_modules=target_modules, task_type=TASKS[name], **options)
    wrapped = peft.get_peft_model(theirs, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    before = our_logits(ours)
    assert load_adapter(ours, tmp_path / "adapter") == {}
    same(our_logits(ours), their_logits(wrapped))
    assert (our_logits(ours) - before).abs().max() > 1e-2
    assert {p for p in ours.parameters() if p.requires_grad} == set(lora_parameters(ours))
    save_adapter(ours, tmp_path / "again", tmp_path / "base", TASKS[name])
    first, second = (load_file(tmp_path / folder / WEIGHTS) for folder in ("adapter", "again"))
    assert first.keys() == second.keys()
    for tensor in first:
        same(second[tensor], first[tensor])
    same(our_logits(merge_lora(ours)), their_logits(wrapped))


def test_ranks_and_alphas_by_module(tmp_path):
    theirs, ours = base("t5", tmp_path / "base")
    patterns = dict(rank_pattern={"q": 5, "decoder.block.0.layer.0.SelfAttention.v": 1}, alpha_pattern={"wi": 20})
    config = peft.LoraConfig(
        target_modules=["q", "v", "wi"],
        r=3,
        init_lora_weights=False,
        use_rslora=True,
        task_type="SEQ_2_SEQ_LM",
        **patterns,
    )
    wrapped = peft.get_peft_model(theirs, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    load_adapter(ours, tmp_path / "adapter")
    same(our_logits(ours), their_logits(wrapped))
    save_adapter(ours, tmp_path / "again", tmp_path / "base", "SEQ_2_SEQ_LM")
    again = peft.PeftModel.from_pretrained(type(theirs).from_pretrained(tmp_path / "base"), tmp_path / "again").eval()
    same(their_logits(again), our_logits(ours))


def test_a_head_beside_the_adapters(tmp_path):
    _, ours = base("bert", tmp_path / "base")
    adapted(ours)
    torch.manual_seed(2)
    head = {"classifier.weight": torch.randn(3, 24), "classifier.bias": torch.randn(3)}
    pooler = {"bert.pooler.dense.weight": torch.randn(24, 24), "bert.pooler.dense.bias": torch.randn(24)}
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base", "SEQ_CLS", extra=head | pooler)
    classifier = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    wrapped = peft.PeftModel.from_pretrained(classifier, tmp_path / "adapter").eval()
    state = torch.tanh(
        ours.hidden(TOKENS)[:, 0] @ pooler["bert.pooler.dense.weight"].T + pooler["bert.pooler.dense.bias"]
    )
    logits = state @ head["classifier.weight"].T + head["classifier.bias"]
    same(wrapped(input_ids=TOKENS).logits, logits)
    wrapped.save_pretrained(tmp_path / "again")  # and as PEFT itself writes it
    for folder in ("adapter", "again"):
        model = load(tmp_path / "base")
        extra = load_adapter(model, tmp_path / folder)
        assert extra.keys() == (head | pooler).keys()
        for name, tensor in (head | pooler).items():
            same(extra[name], tensor)
        same(model.hidden(TOKENS), ours.hidden(TOKENS))


@pytest.mark.parametrize(
    "name, kind, task, head",
    [
        ("gpt2", "AutoModel", "FEATURE_EXTRACTION", {}),
        ("gpt2", "AutoModelForSequenceClassification", "SEQ_CLS", {"score.weight": [2, 24]}),
        ("bert", "AutoModel", "FEATURE_EXTRACTION", {}),
        (
            "bert",
            "AutoModelForTokenClassification",
            "TOKEN_CLS",
            {"classifier.weight": [2, 24], "classifier.bias": [2]},
        ),
        ("t5", "AutoModel", "FEATURE_EXTRACTION", {}),
        ("t5", "AutoModelForSequenceClassification", "SEQ_CLS", {}),
        ("t5", "AutoModelForQuestionAnswering", "QUESTION_ANS", {"qa_outputs.weight": [2, 24], "qa_outputs.bias": [2]}),
    ],
)
def test_every_tensor_finds_its_module_in_the_class_of_a_task(name, kind, task, head, tmp_path):
    _, ours = base(name, tmp_path / "base")
    extra = {key: torch.randn(shape) for key, shape in head.items()}
    save_adapter(adapted(ours), tmp_path / "adapter", tmp_path / "base", task, extra=extra)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "base")
    inside = peft.get_peft_model_state_dict(peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    stored = load_file(tmp_path / "adapter" / WEIGHTS)
    assert stored.keys() == inside.keys()
    for key, tensor in stored.items():
        same(inside[key], tensor)
    assert load_adapter(load(tmp_path / "base"), tmp_path / "adapter").keys() == head.keys()


@pytest.mark.parametrize(
    "build",
    [
        lambda: GLM(GLMConfig(layers=2, hidden=24, heads=3, vocabulary=61, context=16)),
        lambda: BERT(BERTConfig(layers=2, hidden=24, heads=3, vocabulary=61, context=16, segments=6)),
        lambda: GPT(
            GPTConfig(layers=2, hidden=24, heads=3, vocabulary=61, attention_pattern=("dense", "banded"), band=4)
        ),
    ],
)
@pytest.mark.parametrize("targets", ["all-linear", ("query",), ("key", "value", "up")])
@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_round_trip_where_transformers_has_no_such_model(build, targets, task, tmp_path):
    torch.manual_seed(0)
    save(build(), None, tmp_path / "base")
    ours, again = load(tmp_path / "base"), load(tmp_path / "base")
    save_adapter(adapted(ours, targets=targets), tmp_path / "adapter", "somebody/something", task)
    load_adapter(again, tmp_path / "adapter")
    same(our_logits(again), our_logits(ours))
    for (name, one), (other_name, other) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        same(one, other)


def saved(tmp_path: Path) -> Path:
    _, ours = base("gpt2", tmp_path / "base")
    save_adapter(adapted(ours), tmp_path / "adapter", tmp_path / "base", "CAUSAL_LM")
    return tmp_path / "adapter"


def refused(folder: Path, message: str) -> None:
    model = load(folder.parent / "base")
    with pytest.raises(InputError, match=message) as error:
        load_adapter(model, folder)
    assert "\n" not in str(error.value)
    assert not lora_layers(model) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "LOHA"}, r"adapter_config.json: peft_type is 'LOHA', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"r": None}, "no usable r and lora_alpha"),
        ({"rank_pattern": {"(": 3}}, "no usable r and lora_alpha"),
        ({"r": 7, "rank_pattern": {}}, r"lora_A.weight' is float32 \[6, 24\], .* make it float \[7, 24\]"),
    ],
)
def test_configurations_of_other_adapters(change, message, tmp_path):
    folder = saved(tmp_path)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | change))
    refused(folder, message)


def test_tensors_that_do_not_fit(tmp_path):
    folder = saved(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    one, prefix = "h.1.attn.c_attn.lora_B.weight", "base_model.model.transformer."
    wide = {**tensors, prefix + one: torch.zeros(73, 6)}
    lost = {name: tensor for name, tensor in tensors.items() if name != prefix + one}
    third = {**tensors, prefix + "h.2.attn.c_attn.lora_A.weight": torch.zeros(6, 24)}
    vectors = {**tensors, prefix + "h.1.attn.c_attn.lora_magnitude_vector": torch.zeros(72)}
    for content, message in (
        (wide, rf"{WEIGHTS}: tensor '{prefix}{one}' is float32 \[73, 6\], .* make it float \[72, 6\]"),
        (lost, rf"{WEIGHTS}: tensor '{prefix}{one}' is missing"),
        (
            third,
            rf"'{prefix}h.2.attn.c_attn.lora_A.weight' belongs to no linear layer.*did you mean 'h.\d.attn.c_attn'",
        ),
        (vectors, "lora_magnitude_vector' belongs to no linear layer"),
        ({prefix + "wte.weight": torch.zeros(2)}, "no tensors of LoRA"),
    ):
        save_file(content, folder / WEIGHTS)
        refused(folder, message)
    (folder / WEIGHTS).write_bytes(b"half")
    refused(folder, "truncated or not a safetensors file")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(folder, f"no {WEIGHTS}, the only file")
    (folder / CONFIG).write_text("{")
    refused(folder, "not JSON")
    (folder / CONFIG).unlink()
    refused(folder, "cannot be read")


def test_what_cannot_be_saved(tmp_path):
    _, ours = base("gpt2", tmp_path / "base")
    with pytest.raises(InputError, match="has no adapters to save"):
        save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(InputError, match="task_type is 'LM', expected one of CAUSAL_LM"):
        save_adapter(adapted(ours), tmp_path / "adapter", tmp_path / "base", "LM")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"scale_attn_by_inverse_layer_idx": True}))
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx is True"):
        save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(InputError, match="a GPT with adapters is no checkpoint: merge them first"):
        save(ours, None, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    save(merge_lora(ours), None, tmp_path / "whole")
