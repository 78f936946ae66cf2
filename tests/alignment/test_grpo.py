"""GRPO: groups, its loss, and that rewards rise without values."""

import numpy as np
import pytest
import torch
from policies import directory_of, encoded, metrics_of, policy_of, prompts_file, recipe_of, with_reading

from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.experience import divide, mask_of, recollect
from stemma.alignment.grpo import GRPO
from stemma.alignment.reading import Sample
from stemma.alignment.reinforce import reinforce
from stemma.alignment.reinforcement_recipe import GRPORecipe, PPORecipe
from stemma.alignment.rollouts import write_responses


@pytest.fixture
def setup(tmp_path):
    return directory_of("gpt", tmp_path), prompts_file(tmp_path)


def test_the_loss_by_plain_python(setup):
    """With the divergence in the loss (k3), and responses that weigh alike, as in the paper."""
    model, tokenizer = policy_of("gpt")
    other, _ = policy_of("gpt", scale=7.5)
    recipe = recipe_of(
        GRPORecipe,
        *setup,
        rollout={"samples": 2},
        update={"reduction": "sequence_mean"},
        reference={"coefficient": 0.3, "estimator": "k3"},
    )
    policy = with_reading(model, tokenizer, other)
    method = GRPO(policy, recipe, AdaptiveKL(0.3))
    prompts = encoded(tokenizer, 3)
    written = write_responses(model, tokenizer, prompts, seeds=range(3), longest=[6] * 3, samples=2)
    samples = [Sample(prompt, one.tokens) for prompt, group in zip(prompts, written, strict=True) for one in group]
    mask = mask_of([len(sample.response) for sample in samples], torch.device("cpu"))
    rng = np.random.default_rng(0)
    ((part,),) = divide(policy.reading, samples, minibatches=1, most_rows=None, rng=rng, device=torch.device("cpu"))
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, -1.0, 0.0])
    experience, reported = method.experience(recollect(policy, [part], mask), scores, [part], mask)
    loss, numbers = method.loss(part, experience, method.weights(mask)[part.rows])
    advantages = [-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4), 0, 0, -0.5 / (0.5**0.5 + 1e-4), 0.5 / (0.5**0.5 + 1e-4)]
    expected = 0.0
    for sample, advantage in zip(samples, advantages, strict=True):
        tokens = torch.tensor([[*sample.prompt, *sample.response]])
        first = len(sample.prompt)
        with torch.no_grad():
            ours, theirs = (
                m(tokens)[0, first - 1 : -1].log_softmax(-1).gather(1, tokens[0, first:, None]) for m in (model, other)
            )
        k3 = (theirs - ours).exp() - 1 + ours - theirs
        expected += float((-advantage + 0.3 * k3).mean()) / len(samples)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-4)
    assert reported["equal_groups"] == pytest.approx(1 / 3)
    assert float(numbers["approximate_kl"]) == float(numbers["clip_fraction"]) == 0


def test_rewards_rise(setup, tmp_path):
    recipe = recipe_of(GRPORecipe, *setup, training={"steps": 12, "learning_rate": 0.01}, rails={"kl": 1000})
    ended = reinforce(recipe, tmp_path / "out")
    rewards = [line["reward"] for line in metrics_of(tmp_path / "out")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.04
    assert ended.standing.updates == 12


def test_equal_rewards_teach_nothing(setup, tmp_path):
    """The advantages are all 0, and so are the gradients."""
    recipe = recipe_of(GRPORecipe, *setup, reward={"source": "policies:nothing"})
    reinforce(recipe, tmp_path / "out")
    lines = metrics_of(tmp_path / "out")
    assert [line["equal_groups"] for line in lines] == [1.0] * 4
    assert all(line["policy_gradient_norm"] == 0 == line["kl"] for line in lines)


def test_one_sample_is_no_group(setup):
    with pytest.raises(ValueError, match="rollout.samples"):
        recipe_of(GRPORecipe, *setup, rollout={"samples": 1})


def test_a_section_that_is_given_in_part_keeps_the_other_defaults(setup):
    recipe = recipe_of(GRPORecipe, *setup, rollout={"longest": 5, "samples": 3}, reference={"coefficient": 0.04})
    assert recipe.reference.estimator == "k3" and recipe.rollout.samples == 3
    assert GRPORecipe.model_fields["rollout"].default.samples == 8


def test_what_nothing_reads_is_refused(setup):
    with pytest.raises(ValueError, match=r"training.layer_decay is not used by learning from rewards"):
        recipe_of(GRPORecipe, *setup, training={"layer_decay": 0.9})
    with pytest.raises(ValueError, match=r"execution.compile is not used"):
        recipe_of(GRPORecipe, *setup, execution={"compile": True})
    with pytest.raises(ValueError, match=r"missing_end_score or missing_end_penalty, not both"):
        recipe_of(GRPORecipe, *setup, reward={"missing_end_score": 0.0, "missing_end_penalty": 1.0})
    with pytest.raises(ValueError, match=r"update.whiten_rewards needs at least 8 responses a rollout"):
        recipe_of(PPORecipe, *setup, update={"whiten_rewards": True}, training={"batch": 4})
