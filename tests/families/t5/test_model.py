"""T5 against the papers' sizes, the published buckets, and transformers' model on random weights."""

import pytest
import torch

from stemma.families.t5.model import PRESETS, T5, RelativeBias, T5Config, relative_bucket
from stemma.families.weights import build_empty
from stemma.layers.cross_attention import CrossAttention

SMALL = T5Config(vocabulary=61, hidden=24, heads=3, head_dim=10, layers=2, decoder_layers=3, feed_forward=40)

# Parameters of the published checkpoints, with 32,128 rows.
SIZES = {
    "small": 60_506_624,
    "base": 222_903_552,
    "large": 737_668_096,
    "3b": 2_851_598_336,
    "11b": 11_307_321_344,
    "1.1-small": 76_961_152,
    "1.1-base": 247_577_856,
    "1.1-large": 783_150_080,
    "1.1-xl": 2_849_757_184,
    "1.1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_sizes_are_the_published_ones(name, parameters):
    model = build_empty(lambda: T5(PRESETS[name]))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert PRESETS[name].tie_output == PRESETS[name].scale_output == (not PRESETS[name].gated)


def test_buckets_are_the_measured_ones():
    offsets = [-128, -64, -16, -8, -7, -1, 0, 1, 7, 8, 12, 16, 64, 127, 128]
    expected = [15, 14, 10, 8, 7, 1, 0, 17, 23, 24, 25, 26, 30, 31, 31]
    assert relative_bucket(torch.tensor(offsets), 32, 128, bidirectional=True).tolist() == expected
    offsets, expected = [-128, -64, -32, -16, -15, -1, 0, 1], [31, 26, 21, 16, 15, 1, 0, 0]
    assert relative_bucket(torch.tensor(offsets), 32, 128, bidirectional=False).tolist() == expected


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 20), (64, 500)])
def test_buckets_equal_transformers(bidirectional, buckets, most):
    from transformers.models.t5.modeling_t5 import T5Attention

    theirs = T5Attention._relative_position_bucket
    offsets = torch.arange(-600, 601)
    ours = relative_bucket(offsets, buckets, most, bidirectional)
    assert torch.equal(ours, theirs(offsets, bidirectional, buckets, most))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 1), (1, 9), (4, 9)])
def test_the_bias_of_each_pair_is_that_of_its_bucket(queries, keys, bidirectional):
    bias = RelativeBias(SMALL, bidirectional=bidirectional)
    torch.nn.init.normal_(bias.weight)
    found = bias(queries, keys)
    assert found.shape == (1, 3, queries, keys)
    for query in range(queries):
        for key in range(keys):
            offset = torch.tensor(key - (keys - queries + query))
            expected = bias.weight[relative_bucket(offset, 32, 128, bidirectional)]
            assert torch.equal(found[0, :, query, key], expected)


def some_pair(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 61, (rows, 17), generator=generator), torch.randint(2, 61, (rows, 9), generator=generator)


@pytest.fixture
def model() -> T5:
    torch.manual_seed(0)
    return T5(SMALL).eval()


def test_a_target_token_depends_on_the_source_and_those_before_it(model):
    source, target = some_pair(1)
    before = model(source, target)
    assert before.shape == (1, 9, 61)
    changed = target.clone()
    changed[0, 4] += 1
    moved = (model(source, changed) != before).any(-1)[0]
    assert moved.tolist() == [False] * 5 + [True] * 4
    source = source.clone()
    source[0, 16] = 3
    assert (model(source, target) != before).any(-1).all()


def test_padding_of_source_and_target_changes_nothing(model):
    source, target = some_pair()
    lengths, target_lengths = (17, 5, 1), (9, 3, 6)
    padding = torch.arange(17) < torch.tensor(lengths).unsqueeze(1)
    ragged = target.masked_fill(torch.arange(9) >= torch.tensor(target_lengths).unsqueeze(1), -100)
    together = model(source, ragged, source_padding=padding)
    for row, (length, target_length) in enumerate(zip(lengths, target_lengths, strict=True)):
        alone = model(source[row : row + 1, :length], target[row : row + 1, :target_length])
        torch.testing.assert_close(together[row, :target_length], alone[0], atol=1e-5, rtol=1e-5)


def test_packed_sources_are_encoded_apart(model):
    from stemma.layers.masks import Mask

    source, _ = some_pair(1)
    documents = torch.tensor([[0] * 6 + [1] * 11])
    packed = model.encode(source, Mask(document_ids=documents))
    torch.testing.assert_close(packed[:, :6], model.encode(source[:, :6]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 6:], model.encode(source[:, 6:]), atol=1e-5, rtol=1e-5)


def test_the_initialisation_has_the_reference_standard_deviations():
    torch.manual_seed(0)
    config = T5Config(vocabulary=640, hidden=96, heads=8, head_dim=32, layers=3, feed_forward=320, tie_output=False)
    model = T5(config)
    inner = 8 * 32
    expected = {
        "token_embedding.weight": 1.0,
        "output.weight": 96**-0.5,
        "decoder.blocks.1.attention.query.weight": (96 * 32) ** -0.5,
        "decoder.blocks.1.cross_attention.query.weight": (96 * 32) ** -0.5,
        "encoder.blocks.0.attention.key.weight": 96**-0.5,
        "decoder.blocks.2.cross_attention.value.weight": 96**-0.5,
        "encoder.blocks.0.attention.output.weight": inner**-0.5,
        "encoder.blocks.0.feed_forward.up.weight": 96**-0.5,
        "encoder.blocks.0.feed_forward.down.weight": 320**-0.5,
        "encoder.relative_bias.weight": 96**-0.5,
    }
    for name, std in expected.items():
        weight = model.get_parameter(name)
        tolerance = 4 / (2 * weight.numel()) ** 0.5  # four standard errors
        assert weight.std().item() == pytest.approx(std, rel=tolerance), name


def test_dropout_is_everywhere():
    torch.manual_seed(0)
    model = T5(T5Config(**{**SMALL.__dict__, "dropout": 0.5}))
    assert all(module.dropout == 0.5 for module in model.modules() if isinstance(module, CrossAttention))
    source, target = some_pair()
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))
