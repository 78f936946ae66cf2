"""From a recipe to a policy that earns more: checkpoint, prompts, reward, values, trainer."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma import families
from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.conversations import Renderer
from stemma.alignment.experience import Policy
from stemma.alignment.grpo import GRPO
from stemma.alignment.ppo import PPO
from stemma.alignment.pretraining_mix import PretrainingMix
from stemma.alignment.prompts import fingerprint_of, read_both, rendered
from stemma.alignment.reading import Reading, reading_of
from stemma.alignment.recipe import read_recipe
from stemma.alignment.reinforcement import Ended, Method, ReinforcementTrainer, RewardTask
from stemma.alignment.reinforcement_recipe import DECISIVE, GRPORecipe, PPORecipe, ReinforcementRecipe
from stemma.alignment.reward_model import RewardModel, load_reward_model
from stemma.alignment.rewards import Reward, is_function, load_function
from stemma.alignment.rollouts import require_room
from stemma.alignment.stage import Pupil, merged, save_language_model, workplace
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.inference.chat_template import ChatTemplate
from stemma.training.batches import derived_seed
from stemma.training.lora import LoRAConfig, add_lora
from stemma.training.objective import Display
from stemma.training.progress import Silent
from stemma.training.run_directory import claim
from stemma.training.saving import holding


def reinforce(
    recipe: ReinforcementRecipe, out: Path, *, overwrite: bool = False, display: Display | None = None
) -> Ended:
    """Train a policy by PPO or GRPO into the directory `out`, or go on where an earlier run of it stopped there.

    Raises:
        InputError: a checkpoint, prompts, a reward or settings that cannot be used.
        RunAway: the policy ran away, or its entropy collapsed; the last good checkpoint is intact.
        OSError: the last checkpoint could not be written.
    """
    shown = display or Silent()
    with workplace(out, recipe) as workers:
        # What cannot be trained leaves the directory for the corrected command.
        method, task, publish, lines = _build(recipe, shown, workers.device)
        kind = type(recipe)
        saved = claim(
            out,
            recipe,
            overwrite=overwrite,
            say=shown.say,
            read=lambda path: read_recipe(kind, path),
            decisive=DECISIVE,
        )
        for line in lines:
            shown.say(line)
        trainer = ReinforcementTrainer(method, task, recipe, out, publish=publish, display=shown, saved=saved)
        if saved is not None:
            shown.say(f"resuming   from step {saved.step:,}")
        return trainer.run()


def reward_of(source: str, tokenizer: Tokenizer, device: torch.device | None = None) -> Reward:
    """Return what judges episodes: a function by its name, or a reward model by its directory.

    Raises:
        InputError: neither is there, or the reward model reads other tokens than the policy writes.
    """
    if is_function(source):
        return load_function(source)
    model, own = load_reward_model(source, device=device)
    _same_tokens(source, own, tokenizer)

    def judge(episodes: Any) -> list[float]:
        scores: list[float] = model.score([episode.sample for episode in episodes]).tolist()
        return scores

    return judge


def _build(
    recipe: ReinforcementRecipe, display: Display, device: torch.device
) -> tuple[Method, RewardTask, Callable[[Mapping[str, Tensor], Path], None], list[str]]:
    directory = resolve(recipe.model)
    model, tokenizer = families.load(directory, dtype=torch.float32, device=device), load_tokenizer(directory)
    reading = reading_of(model, tokenizer)
    renderer = Renderer(model, tokenizer, reading.end, ChatTemplate.read(directory))
    rows, others = read_both(recipe.prompts.source, recipe.prompts.held_out)
    prompts, held_out = rendered(rows, renderer), rendered(others, renderer)
    require_room(model, [prompt.tokens for prompt in [*prompts, *held_out]], recipe.rollout.longest)
    reward = reward_of(recipe.reward.source, tokenizer, device)
    torch.manual_seed(derived_seed(recipe.seed))
    value = _value_model(recipe, model, tokenizer, reading) if isinstance(recipe, PPORecipe) else None
    reference = None
    if recipe.lora is None:
        reference = deepcopy(model)  # computed as the policy is, see `Policy.states_of`
    else:
        config = LoRAConfig(**recipe.lora.model_dump())
        add_lora(model, config)
        if value is not None:
            add_lora(value, config, trainable=["head"])
    policy = Policy(model.eval(), reading, reference, tokenizer.vocabulary, recipe.rollout.temperature)
    controller = AdaptiveKL(recipe.reference.coefficient, recipe.reference.target, recipe.reference.horizon)
    method: Method
    if isinstance(recipe, PPORecipe):
        assert value is not None
        method = PPO(policy, value.to(device), recipe, controller)
    else:
        assert isinstance(recipe, GRPORecipe)
        method = GRPO(policy, recipe, controller)
    mix = None
    if recipe.pretraining is not None:
        mix = PretrainingMix(model, tokenizer, recipe.pretraining, recipe.seed, display)
    fingerprints = {"prompts": fingerprint_of([*prompts, *held_out]), "tokenizer": tokenizer.fingerprint}
    if mix is not None:
        fingerprints["pretraining"] = mix.fingerprint
    task = RewardTask(tokenizer, prompts, held_out, reward, mix, fingerprints)
    trained = sum(parameter.numel() for parameter in method.model.parameters() if parameter.requires_grad)
    lines = [
        f"prompts    {recipe.prompts.source}: {len(prompts):,} to train on, {len(held_out):,} held out",
        f"reward     {recipe.reward.source}",
        f"policy     {recipe.model}: {trained:,} parameters trained{' with the values' if value is not None else ''}",
    ]
    return method, task, _publisher(Pupil(model, tokenizer, reading, renderer)), lines


def _value_model(recipe: PPORecipe, model: Any, tokenizer: Tokenizer, reading: Reading) -> RewardModel:
    """Return the model of the values: a reward model (Ouyang et al. 2022), or the policy under a head of zeros."""
    source = recipe.value
    if source is None and not is_function(recipe.reward.source):
        source = recipe.reward.source
    if source is not None:
        value, own = load_reward_model(source)
        _same_tokens(source, own, tokenizer)
        return value
    value = RewardModel(deepcopy(model), reading)
    nn.init.zeros_(value.head.weight)
    return value


def _same_tokens(source: str, own: Tokenizer, tokenizer: Tokenizer) -> None:
    if own.pad is not None:  # which a reward model was given if it had none, and which no text has
        tokenizer = tokenizer.with_special_tokens(pad_token=own.token(own.pad))
    if own.fingerprint != tokenizer.fingerprint:
        raise InputError(f"{source}: its tokenizer is not the policy's, so it cannot read what the policy writes")


def _publisher(pupil: Pupil) -> Callable[[Mapping[str, Tensor], Path], None]:
    """Return what writes weights of the policy as a checkpoint directory; adapters are merged into them."""

    def publish(weights: Mapping[str, Tensor], directory: Path) -> None:
        with holding(pupil.model, weights):
            save_language_model(pupil, merged(pupil.model), directory)

    return publish
