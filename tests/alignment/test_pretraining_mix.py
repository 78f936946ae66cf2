"""PPO-ptx: the gradients of pretraining come on top of the policy's own."""

from contextlib import nullcontext

import pytest
import torch
from policies import directory_of, metrics_of, policy_of, prompts_file, recipe_of

from stemma.alignment.pretraining_mix import PretrainingMix
from stemma.alignment.reinforce import reinforce
from stemma.alignment.reinforcement_recipe import PPORecipe, PretrainingRecipe
from stemma.errors import InputError
from stemma.training.progress import Silent

TEXT = "the quick brown fox jumps over the lazy dog while the cat sings to Anna . " * 40


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("\n\n".join([TEXT] * 4))
    return {"source": str(tmp_path / "corpus.txt"), "documents": "paragraph", "batch": 2, "length": 16, "held_out": 0.0}


@pytest.mark.parametrize("family", ["gpt", "mixtral", "glm", "t5"])
def test_gradients_are_added(family, corpus):
    model, tokenizer = policy_of(family)
    mix = PretrainingMix(model, tokenizer, PretrainingRecipe(**corpus, coefficient=0.7), 1, Silent())
    weight = model.output_weight
    (3.0 * weight.sum()).backward()
    reported = mix.add_gradients(model, 0, nullcontext)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    (batch,) = mix.batches.micro_batches(0)
    loss, _ = mix.objective.loss(model, batch)
    (3.0 * model.output_weight.sum() + 0.7 * loss).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5)
    assert reported["pretraining_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert reported["reward_gradient_norm"] == pytest.approx(3.0 * weight.numel() ** 0.5, rel=1e-4)


def test_a_policy_keeps_its_pretraining(corpus, tmp_path):
    """The same rewards, with and without: the loss of the text falls where it is mixed in."""
    setup = directory_of("gpt", tmp_path), prompts_file(tmp_path)
    losses = []
    for name, coefficient in (("little", 1e-6), ("much", 1.0)):
        recipe = recipe_of(PPORecipe, *setup, training={"steps": 5}, pretraining={**corpus, "coefficient": coefficient})
        reinforce(recipe, tmp_path / name)
        losses.append([line["pretraining_loss"] for line in metrics_of(tmp_path / name)])
    assert losses[1][-1] < losses[0][-1] - 0.3


def test_sequences_must_fit(corpus):
    model, tokenizer = policy_of("gpt", context=8)
    with pytest.raises(InputError, match=r"pretraining.length: 16 tokens, more than the model's context of 8"):
        PretrainingMix(model, tokenizer, PretrainingRecipe(**corpus), 1, Silent())
