"""Prepacked weights give the model's own results, and leave the model as it was."""

import copy
import logging

import pytest
import torch

from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference import streaming
from stemma.inference.decoder import Decoder
from stemma.inference.prepacked import prepacked

VARIANTS = {
    "gpt1": {"norm": "post"},
    "gpt2": {},
    "gpt3": {"attention_pattern": ("dense", "banded"), "band": 3},
    "untied, padded, erf": {"tie_output": False, "vocabulary_multiple": 64, "vocabulary": 300, "activation": "gelu"},
    "relu": {"activation": "relu"},
}

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")),
    reason="this build of PyTorch has no oneDNN",
)


@pytest.fixture(params=[True, False], ids=["streamed", "laid out anew"], autouse=True)
def streamed(request, monkeypatch):
    """Whether weights are read as they lie, where this processor can."""
    if not request.param:
        monkeypatch.setattr(streaming, "streams", lambda kind: False)
    return request.param and streaming.streams("float32")


@needs_onednn
@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_results_are_the_models_own(make_model, variant, rows, release):
    """For as few rows as the products are made for, and for more."""
    model = make_model(**VARIANTS[variant])
    before = copy.deepcopy(model.state_dict())
    few = torch.randint(0, 300, (rows, 1), generator=torch.Generator().manual_seed(0))
    many = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(few), model(many)
        with prepacked(model, rows, release=release):
            assert "logits" in vars(model)
            packed = model(few), model(many)
            with prepacked(model, rows):  # inside another one: nothing to do, and nothing undone at its end
                pass
            assert "logits" in vars(model)
        for ours, own in zip(packed, expected, strict=True):
            assert torch.allclose(ours, own, atol=1e-4) and own.std() > 0.5
        assert torch.equal(model(few), expected[0]) and torch.equal(model(many), expected[1])
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@needs_onednn
@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("experts", [0, 3])
def test_grouped_queries_gates_and_experts(experts, rows, release, streamed):
    torch.manual_seed(0)
    config = MistralConfig(
        vocabulary=97, layers=2, hidden=32, heads=4, key_value_heads=2, feed_forward=48, windows=(6,), experts=experts
    )
    model = Mistral(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
        before = copy.deepcopy(model.state_dict())
        few = torch.randint(0, 97, (rows, 1), generator=torch.Generator().manual_seed(0))
        many = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))
        expected = model(few), model(many)
        with prepacked(model, rows, release=release):
            joined = release or not streamed
            assert all(("project" in vars(block.attention)) == joined for block in model.blocks)
            for ours, own in zip((model(few), model(many)), expected, strict=True):
                assert torch.allclose(ours, own, atol=1e-4) and own.std() > 0.5
        assert torch.equal(model(few), expected[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@needs_onednn
@pytest.mark.parametrize("rows", [1, 8])
def test_bfloat16_is_no_less_exact(make_model, rows):
    model = make_model().to(torch.bfloat16)
    reference = make_model()
    reference.load_state_dict(model.state_dict())  # the rounded weights, in float32
    tokens = torch.randint(0, 300, (rows, 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = reference(tokens)
        error = (model(tokens).float() - exact).abs().mean()
        with prepacked(model, rows):
            packed = model(tokens)
            assert packed.dtype == torch.bfloat16
            assert (packed.float() - exact).abs().mean() < 1.2 * error < 0.1 * exact.std()


@needs_onednn
def test_released_weights_are_not_kept_twice_and_come_back_trainable(make_model):
    model = make_model()
    with prepacked(model, 1, release=True):
        assert all(linear.weight.numel() == 0 for linear in model.modules() if isinstance(linear, torch.nn.Linear))
    model.train()(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.shape == parameter.shape for parameter in model.parameters()
    )


@needs_onednn
def test_the_model_is_its_own_again_after_an_error(make_model):
    model = make_model()
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), prepacked(model, 1, release=True):
        raise KeyboardInterrupt
    assert "logits" not in vars(model)
    assert all("forward" not in vars(module) and "project" not in vars(module) for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda model: model.train(), "training mode"),
        (lambda model: model.half(), "no faster product for torch.float16"),
        (lambda model: model.to("meta"), "not on a CPU"),
    ],
)
def test_where_packing_is_impossible_the_model_keeps_its_own_products(make_model, caplog, prepare, reason):
    model = prepare(make_model())
    with caplog.at_level(logging.INFO), prepacked(model, 1):
        assert "logits" not in vars(model)
    assert reason in caplog.text


@needs_onednn
def test_packing_is_announced(make_model, caplog, streamed):
    with caplog.at_level(logging.INFO), prepacked(make_model(), 8):
        pass
    # Queries, keys and values, joint or not, attention's output, and two maps of the feed-forward in two layers; the
    # logits.
    expected = "13 packed products: StreamedProduct" if streamed else "9 packed products: OneDNNProduct"
    assert f"decoding with {expected}, for 8 rows" in caplog.text


@needs_onednn
def test_weights_are_held_twice_only_if_there_is_room(make_model, monkeypatch, streamed):
    model = make_model()
    size = sum(parameter.nbytes for parameter in model.parameters())
    little = (0, True, False) if streamed else (2 * size - 1, False, True)  # streamed weights are never held twice
    for free, packed, released in ((2 * size, True, False), little):
        monkeypatch.setattr("stemma.inference.prepacked._free_memory", lambda free=free: free)
        with prepacked(model, 1):
            assert ("logits" in vars(model)) == packed
        with prepacked(model, 1, release=None):
            assert (model.blocks[0].feed_forward.up.weight.numel() == 0) == released


@needs_onednn
def test_decoding_with_prepacked_weights(make_model):
    model = make_model(3)
    prompts = [[5, 6, 7], [8, 9]]
    logits = []
    for packed in (False, True):
        decoder = Decoder(model, prompts, new_tokens=5)
        with prepacked(model, 2) if packed else torch.no_grad():
            steps = [decoder.read_prompts(), *(decoder.step(torch.tensor([i, i + 50])) for i in range(4))]
        logits.append(torch.stack(steps))
    assert torch.allclose(*logits, atol=1e-3)
