"""PPO: what a rollout becomes, against plain Python; what must hold exactly; and that rewards rise."""

import json

import numpy as np
import pytest
import torch
from policies import directory_of, encoded, metrics_of, policy_of, prompts_file, recipe_of, with_reading

from stemma import families
from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.experience import divide, mask_of, recollect
from stemma.alignment.ppo import PPO
from stemma.alignment.reading import Sample
from stemma.alignment.reinforce import reinforce
from stemma.alignment.reinforcement_recipe import PPORecipe
from stemma.alignment.reward_model import RewardModel
from stemma.alignment.rollouts import write_responses
from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError
from stemma.training.state import newest_state, open_tensors

WIDE = {"kl": 1000, "clip_fraction": 1.0}


@pytest.fixture
def setup(tmp_path):
    """A directory of a tiny GPT and a file of prompts."""
    return directory_of("gpt", tmp_path), prompts_file(tmp_path)


def weights_of(folder):
    saved, _ = newest_state(folder / "training_state")
    with open_tensors(saved.path) as stored:
        return {name: stored(name) for name in stored._names}


def test_rewards_advantages_and_losses_by_plain_python(setup):
    model, tokenizer = policy_of("gpt")
    reference, _ = policy_of("gpt", scale=7.5)
    recipe = recipe_of(PPORecipe, *setup, update={"value_coefficient": 0.5}, reference={"coefficient": 0.3})
    policy = with_reading(model, tokenizer, reference)
    torch.manual_seed(1)
    value = RewardModel(policy_of("gpt", scale=5.0)[0], policy.reading)
    ppo = PPO(policy, value, recipe, AdaptiveKL(0.3))
    prompts = encoded(tokenizer)
    written = write_responses(model, tokenizer, prompts, seeds=range(5), longest=[6] * 5)
    samples = [Sample(prompt, one.tokens) for prompt, (one,) in zip(prompts, written, strict=True)]
    mask = mask_of([len(sample.response) for sample in samples], torch.device("cpu"))
    dealt = divide(
        policy.reading, samples, minibatches=1, most_rows=2, rng=np.random.default_rng(0), device=torch.device("cpu")
    )
    recollection = recollect(policy, dealt[0], mask)
    scores = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0])
    experience, reported = ppo.experience(recollection, scores, dealt[0], mask)

    advantages, returns, values = [], [], []
    for row, sample in enumerate(samples):
        tokens = torch.tensor([[*sample.prompt, *sample.response]])
        first = len(sample.prompt) - 1
        with torch.no_grad():
            v = value.head(value.trunk.hidden(tokens))[0, first:-1, 0].tolist()
            logs = [
                m(tokens)[0, first:-1].log_softmax(-1).gather(1, tokens[0, first + 1 :, None])[:, 0].tolist()
                for m in (model, reference)
            ]
        r = [-0.3 * (a - b) for a, b in zip(*logs, strict=True)]
        r[-1] += scores[row].item()
        deltas = [r[t] + ([*v, 0.0])[t + 1] - v[t] for t in range(len(r))]
        own = [sum(0.95 ** (later - t) * deltas[later] for later in range(t, len(r))) for t in range(len(r))]
        advantages += own
        returns += [a + b for a, b in zip(own, v, strict=True)]
        values += v
    torch.testing.assert_close(experience.values[mask], torch.tensor(values), rtol=0, atol=1e-5)
    torch.testing.assert_close(experience.returns[mask], torch.tensor(returns), rtol=0, atol=1e-4)
    advantages = np.array(advantages)
    white = (advantages - advantages.mean()) / np.sqrt(advantages.var(ddof=1) + 1e-8)
    torch.testing.assert_close(experience.advantages[mask].double(), torch.tensor(white), rtol=0, atol=1e-4)
    explained = 1 - np.mean((np.array(values) - returns) ** 2) / np.var(returns)
    assert reported["explained_variance"] == pytest.approx(explained, abs=1e-3)

    # Before the first update the ratio is 1: the loss is minus the mean advantage, 0, and half the mean squared error.
    weights = ppo.weights(mask)
    found = [ppo.loss(part, experience, weights[part.rows]) for part in dealt[0]]
    total = sum(float(loss.detach()) for loss, _ in found)
    assert total == pytest.approx(0.5 * 0.5 * np.mean((np.array(values) - returns) ** 2), rel=1e-3)
    for name in ("clip_fraction", "value_clip_fraction", "approximate_kl"):
        assert sum(float(numbers[name]) for _, numbers in found) == 0


def test_without_a_learning_rate_nothing_ever_changes(setup, tmp_path):
    recipe = recipe_of(
        PPORecipe,
        *setup,
        training={"learning_rate": 1e-30, "steps": 3},
        update={"epochs": 2, "minibatches": 3},
        execution={"micro_batch": 2},
    )
    reinforce(recipe, tmp_path / "out")
    lines = metrics_of(tmp_path / "out")
    assert len(lines) == 3
    for line in lines:
        assert line["kl"] == line["approximate_kl"] == line["clip_fraction"] == line["value_clip_fraction"] == 0


def test_rewards_rise(setup, tmp_path):
    recipe = recipe_of(PPORecipe, *setup, training={"steps": 10, "batch": 32, "learning_rate": 0.01}, rails=WIDE)
    ended = reinforce(recipe, tmp_path / "out")
    rewards = [line["reward"] for line in metrics_of(tmp_path / "out")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.04
    assert ended.reason == "finished" and ended.standing.updates == 40
    assert load_tokenizer(tmp_path / "out").vocabulary
    published, stored = families.load(tmp_path / "out"), weights_of(tmp_path / "out")
    for name, parameter in published.named_parameters():
        assert parameter.equal(stored[f"model.policy.{name}"])


def test_a_run_that_was_killed_ends_where_an_undisturbed_one_does(setup, tmp_path, monkeypatch):
    import policies

    options = {
        "training": {"steps": 6, "ema": 0.9},
        "update": {"epochs": 2, "minibatches": 2},
        "reference": {"horizon": 100, "target": 0.01},
        "rails": {"kl": 1000},
    }
    recipe = recipe_of(PPORecipe, *setup, **options)
    reinforce(recipe, tmp_path / "whole")
    honest, calls = policies.vowels, []

    def dies(episodes):
        calls.append(len(episodes))
        if len(calls) == 7:  # one of them was the evaluation of step 0
            raise KeyboardInterrupt
        return honest(episodes)

    monkeypatch.setattr(policies, "vowels", dies)
    with pytest.raises(KeyboardInterrupt):
        reinforce(recipe, tmp_path / "killed")
    assert newest_state(tmp_path / "killed" / "training_state")[0].step == 4
    monkeypatch.setattr(policies, "vowels", honest)
    reinforce(recipe, tmp_path / "killed")
    one, other = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "killed")
    coefficients = [line["coefficient"] for line in metrics_of(tmp_path / "whole")]
    assert coefficients[0] == 0.05 and coefficients[-1] > 0.05


def test_adapters_share_the_weights_with_the_reference(setup, tmp_path):
    recipe = recipe_of(PPORecipe, *setup, lora={"rank": 2}, training={"steps": 3, "learning_rate": 0.02})
    reinforce(recipe, tmp_path / "out")
    lines = metrics_of(tmp_path / "out")
    assert lines[0]["kl"] == 0 and lines[-1]["kl"] > 0
    before, after, stored = families.load(setup[0]), families.load(tmp_path / "out"), weights_of(tmp_path / "out")
    for name, parameter in before.named_parameters():
        kept = f"model.policy.{name}" if f"model.policy.{name}" in stored else None
        base = f"model.policy.{name.replace('.weight', '.base.weight').replace('.bias', '.base.bias')}"
        assert stored[kept or base].equal(parameter)  # none of the base's weights has moved
    moved = [name for name, parameter in after.named_parameters() if not before.get_parameter(name).equal(parameter)]
    assert moved and all(".attention." in name or ".feed_forward." in name for name in moved)


def test_values_begin_as_the_reward_model(setup, tmp_path):
    directory, prompts = setup
    model, tokenizer = families.load(directory), load_tokenizer(directory)
    torch.manual_seed(5)
    reward = RewardModel(model, with_reading(model, tokenizer).reading)
    reward.save(tokenizer, tmp_path / "reward")
    recipe = recipe_of(
        PPORecipe, directory, prompts, reward={"source": str(tmp_path / "reward")}, training={"learning_rate": 1e-30}
    )
    reinforce(recipe, tmp_path / "out")
    assert weights_of(tmp_path / "out")["model.value.head.weight"].equal(reward.head.weight)
    assert all(abs(line["value"]) > 0.01 for line in metrics_of(tmp_path / "out"))
    recipe = recipe_of(PPORecipe, directory, prompts, training={"learning_rate": 1e-30})
    reinforce(recipe, tmp_path / "zeros")
    assert all(abs(line["value"]) < 1e-20 for line in metrics_of(tmp_path / "zeros"))


def test_a_reward_model_of_other_tokens_is_refused(setup, tmp_path):
    model, tokenizer = policy_of("t5")
    RewardModel(model, with_reading(model, tokenizer).reading).save(tokenizer, tmp_path / "reward")
    with pytest.raises(InputError, match="its tokenizer is not the policy's"):
        reinforce(recipe_of(PPORecipe, *setup, reward={"source": str(tmp_path / "reward")}), tmp_path / "out")
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.mark.parametrize("family", ["mixtral", "glm", "t5"])
def test_every_family_learns_from_rewards(family, tmp_path):
    recipe = recipe_of(PPORecipe, directory_of(family, tmp_path), prompts_file(tmp_path), training={"steps": 2})
    reinforce(recipe, tmp_path / "out")
    lines = metrics_of(tmp_path / "out")
    assert lines[0]["kl"] == 0 and lines[1]["kl"] > 0
    families.load(tmp_path / "out")


def test_what_is_evaluated_is_written_down(setup, tmp_path):
    reinforce(recipe_of(PPORecipe, *setup, evaluation={"every": 2, "shown": 1}), tmp_path / "out")
    lines = metrics_of(tmp_path / "out", "held_out_reward")
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[0]["held_out_samples"][0].keys() == {"prompt", "response", "reward", "ended"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"


def test_a_missing_end_is_punished_by_the_score(setup, tmp_path):
    recipe = recipe_of(
        PPORecipe,
        *setup,
        reward={"source": "policies:nothing", "missing_end_score": -3.0, "missing_end_penalty": None},
        training={"steps": 1},
        rollout={"longest": 2},
    )
    reinforce(recipe, tmp_path / "out")
    (line,) = metrics_of(tmp_path / "out")
    assert line["reward"] == 1 and line["score"] == pytest.approx(line["ended"] * 1 + (1 - line["ended"]) * -3)
    assert line["ended"] < 1
