"""The peers of quantization.py: each reads prompts and then a token a row at a time, all through its own cache."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from stemma.data.tokenizers import Tokenizer
from stemma.families.mistral.model import Mistral

THREADS = torch.get_num_threads()


class Transformers:
    """Hugging Face transformers with its default cache, called without the checks of `generate`."""

    needs: tuple[str, ...] = ()
    precisions = ("float32", "bfloat16")

    def __init__(self, directory: Path, model: Mistral, precision: str) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, precision)
        ).eval()

    def start(self, prompts: torch.Tensor, new_tokens: int) -> None:
        self.prompts, self.cache = prompts, transformers.DynamicCache()

    def read(self) -> torch.Tensor:
        return self._next(self.prompts)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._next(tokens.unsqueeze(1))

    def end(self) -> None:
        del self.cache

    def _next(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)


class OpenVINO:
    """OpenVINO, exported and its weights compressed by optimum-intel with its own defaults."""

    needs = ("openvino", "optimum")
    precisions = ("float32", "bfloat16", "int8", "int4")

    def __init__(self, directory: Path, model: Mistral, precision: str) -> None:
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        bits = {"int8": 8, "int4": 4}.get(precision)
        how = None if bits is None else OVWeightQuantizationConfig(bits=bits, sym=bits == 8)
        hint = "bf16" if precision == "bfloat16" else "f32"
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": str(THREADS),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.model = OVModelForCausalLM.from_pretrained(
            directory, export=True, quantization_config=how, load_in_8bit=False if bits is None else None,
            ov_config=options,
        )  # fmt: skip

    def start(self, prompts: torch.Tensor, new_tokens: int) -> None:
        self.prompts, self.past, self.seen = prompts, None, torch.ones_like(prompts)

    def read(self) -> torch.Tensor:
        return self._next(self.prompts)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen = torch.cat([self.seen, torch.ones(len(tokens), 1, dtype=torch.long)], dim=1)
        return self._next(tokens.unsqueeze(1))

    def end(self) -> None:
        self.past = None

    def _next(self, tokens: torch.Tensor) -> torch.Tensor:
        output = self.model(input_ids=tokens, attention_mask=self.seen, past_key_values=self.past, use_cache=True)
        self.past = output.past_key_values
        return output.logits[:, -1].argmax(-1)


class LlamaCpp:
    """llama.cpp through llama-cpp-python, by its C functions: several sequences in one context."""

    needs = ("llama_cpp", "gguf")
    precisions = ("float32", "bfloat16", "int8", "int4")
    _PIECE = 512

    def __init__(self, directory: Path, model: Mistral, precision: str) -> None:
        import llama_cpp

        self.library, self.vocabulary = llama_cpp, model.config.vocabulary
        path = directory / f"{precision}.gguf"
        write_gguf(path, model, precision)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())

    def start(self, prompts: torch.Tensor, new_tokens: int) -> None:
        options = self.library.llama_context_default_params()
        rows, length = prompts.shape
        options.n_ctx, options.n_seq_max = rows * (length + new_tokens + 1), rows
        options.n_batch = options.n_ubatch = self._PIECE
        options.n_threads = options.n_threads_batch = THREADS
        self.context = self.library.llama_init_from_model(self.model, options)
        self.batch = self.library.llama_batch_init(self._PIECE, 0, 1)
        self.prompts, self.position = prompts.tolist(), length

    def read(self) -> torch.Tensor:
        chosen = []
        for row, tokens in enumerate(self.prompts):
            for start in range(0, len(tokens), self._PIECE):
                part = tokens[start : start + self._PIECE]
                self._decode([(token, start + i, row, start + i + 1 == len(tokens)) for i, token in enumerate(part)])
            chosen.append(self._likeliest(self.batch.n_tokens - 1))
        return torch.tensor(chosen)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._decode([(token, self.position, row, True) for row, token in enumerate(tokens.tolist())])
        self.position += 1
        return torch.tensor([self._likeliest(row) for row in range(len(tokens))])

    def end(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.context)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        batch.n_tokens = len(entries)
        for number, (token, position, row, wanted) in enumerate(entries):
            batch.token[number], batch.pos[number], batch.n_seq_id[number] = token, position, 1
            batch.seq_id[number][0], batch.logits[number] = row, wanted
        if self.library.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _likeliest(self, place: int) -> int:
        logits = self.library.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


def write_gguf(path: Path, model: Mistral, precision: str, tokenizer: Tokenizer | None = None) -> None:
    """Write a model as llama.cpp reads it, with its byte-level BPE tokenizer or without one."""
    import gguf

    config = model.config
    names = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
    kind = gguf.GGMLQuantizationType[names[precision]]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocabulary)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        types = gguf.TokenType
        ids = range(config.vocabulary)
        known = tokenizer.vocabulary
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([tokenizer.token(index) if index < known else f"<unused{index}>" for index in ids])
        writer.add_token_types(
            [
                types.UNUSED if index >= known else types.CONTROL if index in tokenizer.special else types.NORMAL
                for index in ids
            ]
        )
        merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_eos_token_id(tokenizer.separator)
        writer.add_add_bos_token(False)
    tensors = {"token_embd": model.token_embedding.weight, "output": model.output_weight}
    norms = {"output_norm": model.final_norm.weight}
    for number, block in enumerate(model.blocks):
        attention, feed_forward, prefix = block.attention, block.feed_forward, f"blk.{number}."
        norms |= {
            prefix + "attn_norm": block.attention_norm.weight,
            prefix + "ffn_norm": block.feed_forward_norm.weight,
        }
        tensors |= {
            prefix + "attn_q": _paired(attention.query.weight, config.heads),
            prefix + "attn_k": _paired(attention.key.weight, config.key_value_heads),
            prefix + "attn_v": attention.value.weight,
            prefix + "attn_output": attention.output.weight,
            prefix + "ffn_gate": feed_forward.gate.weight,
            prefix + "ffn_up": feed_forward.up.weight,
            prefix + "ffn_down": feed_forward.down.weight,
        }
    for name, tensor in norms.items():
        writer.add_tensor(name + ".weight", tensor.detach().float().numpy())
    for name, tensor in tensors.items():
        data = gguf.quants.quantize(np.ascontiguousarray(tensor.detach().float().numpy()), kind)
        writer.add_tensor(name + ".weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows in llama.cpp's order, in which the two numbers that are rotated together are neighbours."""
    outputs, inputs = weight.shape
    return weight.view(heads, 2, outputs // heads // 2, inputs).transpose(1, 2).reshape(outputs, inputs)
