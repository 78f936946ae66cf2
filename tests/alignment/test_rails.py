"""A run that goes wrong is stopped, and what it had is kept."""

import pytest
from policies import directory_of, prompts_file, recipe_of

from stemma import families
from stemma.alignment.rails import Rails, RunAway
from stemma.alignment.reinforce import reinforce
from stemma.alignment.reinforcement_recipe import GRPORecipe, PPORecipe
from stemma.training.state import newest_state

GOOD = {"kl": 1.0, "entropy": 2.0}


def rails() -> Rails:
    return Rails(kl=10.0, entropy=0.1, clip_fraction=0.5)


def test_divergence_entropy_and_numbers_that_are_none():
    watch = rails()
    watch.check_rollout(GOOD)
    watch.check_rollout({"kl": 9.9, "entropy": 0.21})
    with pytest.raises(RunAway, match=r"left its reference by 10.1 nats a response, more than 10 \(rails.kl\)"):
        watch.check_rollout({"kl": 10.1, "entropy": 2.0})
    with pytest.raises(RunAway, match=r"entropy fell from 2.000 to 0.190 nats a token, less than 0.1 of it"):
        watch.check_rollout({"kl": 1.0, "entropy": 0.19})
    with pytest.raises(RunAway, match="reward is nan"):
        watch.check_rollout({**GOOD, "reward": float("nan")})
    with pytest.raises(RunAway, match="policy loss is inf"):
        watch.check_update({"clip_fraction": 0.0, "policy_loss": float("inf")})


def test_clipping_must_go_on_for_three_rollouts():
    watch = rails()
    for share in (0.6, 0.6, 0.4, 0.6, 0.6):
        watch.check_update({"clip_fraction": share})
    with pytest.raises(RunAway, match=r"60% of the tokens were clipped, more than 50%"):
        watch.check_update({"clip_fraction": 0.6})


@pytest.mark.parametrize("kind", [PPORecipe, GRPORecipe])
def test_the_last_good_checkpoint_is_kept(kind, tmp_path):
    setup = directory_of("gpt", tmp_path), prompts_file(tmp_path)
    recipe = recipe_of(
        kind,
        *setup,
        training={"steps": 30, "learning_rate": 0.03},
        rails={"kl": 0.5},
        output={"save_every": 1, "keep": 1},
    )
    with pytest.raises(RunAway, match=r"stopped at step \d+: the policy has left its reference .* of step \d+, is in"):
        reinforce(recipe, tmp_path / "out")
    saved, damaged = newest_state(tmp_path / "out" / "training_state")
    assert saved is not None and not damaged
    last_good = families.load(tmp_path / "out")
    # The same recipe with wider rails goes on from there: it is not the checkpoint that is broken.
    wider = recipe.model_copy(update={"rails": recipe.rails.model_copy(update={"kl": 1e9, "clip_fraction": 1.0})})
    assert last_good is not None and wider.kl_limit == 1e9


def test_limits_follow_the_target():
    setup = ("model", "prompts")
    assert recipe_of(PPORecipe, *setup).kl_limit == 50
    assert recipe_of(PPORecipe, *setup, reference={"horizon": 100, "target": 3.0}).kl_limit == 30
    assert recipe_of(PPORecipe, *setup, rails={"kl": 7.0}).kl_limit == 7
