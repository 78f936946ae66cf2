"""The Transformer by its paper: positions, sizes, norms, what sees what, and PyTorch's own Transformer as a twin."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from stemma.errors import InputError
from stemma.families.transformer.model import PRESETS, Transformer, TransformerConfig
from stemma.families.weights import build_empty
from stemma.layers.positions import sinusoids

TINY = TransformerConfig(vocabulary=50, hidden=16, heads=2, layers=2, feed_forward=32, dropout=0.0, padding=49)


def made(config: TransformerConfig, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(config).eval()


def test_positions_are_the_paper_s_formula() -> None:
    table = sinusoids(40, 6, torch.device("cpu"))
    for position in (0, 1, 7, 39):
        for index in range(3):
            angle = position / 10000 ** (2 * index / 6)
            assert float(table[position, 2 * index]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[position, 2 * index + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("preset", "millions"), [("base", 63.0), ("big", 214.2)])
def test_sizes_are_those_of_table_3(preset: str, millions: float) -> None:
    """Its 65 and 213 million, with 37,000 tokens and biases in the feed-forward alone."""
    model = build_empty(lambda: Transformer(replace(PRESETS[preset], vocabulary_multiple=1)))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.filterwarnings("ignore:.*nested_tensor")
@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_states_are_those_of_pytorch_s_transformer(norm: str) -> None:
    ours = made(replace(TINY, norm=norm, attention_bias=True))
    theirs = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True, norm_first=norm == "pre").eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name in ("encoder", "decoder"):
            stack, twin = getattr(ours, name), getattr(theirs, name)
            for block, layer in zip(stack.blocks, twin.layers, strict=True):
                attentions = [(block.attention, layer.self_attn)]
                norms = [block.attention_residual.norm]
                if name == "decoder":
                    attentions.append((block.cross_attention, layer.multihead_attn))
                    norms.append(block.cross_attention_residual.norm)
                norms.append(block.feed_forward_residual.norm)
                for mine, other in attentions:
                    maps = (mine.query, mine.key, mine.value)
                    other.in_proj_weight.copy_(torch.cat([one.weight for one in maps]))
                    other.in_proj_bias.copy_(torch.cat([one.bias for one in maps]))
                    other.out_proj.load_state_dict(mine.output.state_dict())
                layer.linear1.load_state_dict(block.feed_forward.up.state_dict())
                layer.linear2.load_state_dict(block.feed_forward.down.state_dict())
                for number, one in enumerate(norms, start=1):
                    getattr(layer, f"norm{number}").load_state_dict(one.state_dict())
            if norm == "pre":
                twin.norm.load_state_dict(stack.final_norm.state_dict())
            else:
                twin.norm = nn.Identity()
    source, target = torch.randint(0, 49, (2, 9)), torch.randint(0, 49, (2, 5))
    padding = torch.arange(9) < torch.tensor([[9], [4]])
    read = torch.cat([torch.full((2, 1), 49), target[:, :-1]], dim=1)
    table = sinusoids(9, 16, torch.device("cpu"))
    embedded = [4 * ours.token_embedding(tokens) + table[: tokens.shape[1]] for tokens in (source, read)]
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    hidden = {"src_key_padding_mask": ~padding, "memory_key_padding_mask": ~padding}
    with torch.no_grad():
        expected = theirs(*embedded, tgt_mask=causal, **hidden)
        found = ours.hidden(source, target, source_padding=padding)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        logits = expected @ ours.token_embedding.weight[:50].T
        torch.testing.assert_close(ours(source, target, source_padding=padding), logits, rtol=0, atol=1e-5)


def test_a_target_sees_what_is_before_it_and_all_of_its_source_but_padding() -> None:
    model = made(TINY)
    source, target = torch.randint(1, 49, (2, 9)), torch.randint(1, 49, (2, 6))
    padding = torch.arange(9) < torch.tensor([[9], [4]])
    before = model(source, target, source_padding=padding)
    later = target.clone()
    later[:, 3] += 1
    assert torch.equal(model(source, later, source_padding=padding)[:, :4], before[:, :4])
    assert not torch.equal(model(source, later, source_padding=padding)[:, 4], before[:, 4])
    other = source.clone()
    other[1, 4:] = 0
    torch.testing.assert_close(model(other, target, source_padding=padding), before, rtol=0, atol=1e-6)
    alone = model(source[1:, :4], target[1:])
    torch.testing.assert_close(alone, before[1:], rtol=0, atol=1e-5)
    last = source.clone()
    last[0, 8] += 1
    assert not torch.allclose(model(last, target, source_padding=padding)[0, 0], before[0, 0])


def test_weights_begin_as_in_tensor2tensor() -> None:
    model = made(replace(TINY, vocabulary=4000, hidden=64, feed_forward=256, attention_bias=True))
    assert float(model.token_embedding.weight.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    model.requires_grad_(False)
    up, query = model.encoder.blocks[0].feed_forward.up, model.decoder.blocks[1].cross_attention.query
    assert float(up.weight.abs().max()) == pytest.approx(math.sqrt(6 / (64 + 256)), rel=0.01)
    assert float(up.bias.abs().max()) == float(query.bias.abs().max()) == 0


def test_a_decoder_begins_with_zeros_which_training_leaves() -> None:
    """As tensor2tensor's and Marian's do; CTranslate2 takes it for granted."""
    model = made(TINY).train()
    assert float(model.token_embedding.weight[49].detach().abs().max()) == 0
    hidden = model.hidden(torch.randint(0, 49, (2, 6)), torch.randint(0, 49, (2, 5)))
    model.logits(hidden).logsumexp(-1).sum().backward()
    gradient = model.token_embedding.weight.grad
    assert float(gradient[49].abs().max()) == 0 and float(gradient[:49].abs().sum(1).min()) > 0


def test_sizes_that_do_not_fit_are_refused() -> None:
    for sizes in ({"hidden": 20, "heads": 3}, {"hidden": 15, "heads": 5}):
        with pytest.raises(InputError, match="must be even and a multiple of heads"):
            replace(TINY, **sizes)
