"""What decides a run of PPO or GRPO."""

from pydantic import Field, model_validator

from stemma.alignment.advantages import GroupScale
from stemma.alignment.policy_losses import Estimator, Reduction
from stemma.finetuning.recipe import LoRARecipe
from stemma.training.recipe import DataRecipe, EvaluationRecipe, OutputRecipe, RunRecipe, Section

# Sections that decide the resulting weights.
DECISIVE = (
    *("model", "value", "lora", "prompts", "reward", "rollout", "update", "reference", "pretraining"),
    *("training", "seed"),
)
LEAST_TO_WHITEN = 8  # responses, as OpenAI's code asks for


class PromptsRecipe(Section):
    """What the policy answers.

    Args:
        source: JSONL, CSV, TSV or Parquet whose rows have a `prompt` (a text, or a list of messages), or a data set,
            "hf:owner/name[:config][:split]"; what else is in a row is seen by the reward function.
        held_out: another, or the share of the prompts that are only evaluated on.
    """

    source: str
    held_out: str | float = 0.1


class RewardSourceRecipe(Section):
    """What a response is worth.

    Args:
        source: a reward model's directory, or a function, "module:function" or "file.py:function" (see `rewards`).
        missing_end_score: what a response that did not end is worth, whatever its reward (Ziegler et al. 2019);
            default: -1. missing_end_penalty: what is taken off its reward instead.
    """

    source: str
    missing_end_score: float | None = None
    missing_end_penalty: float | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "RewardSourceRecipe":
        if self.missing_end_score is not None and self.missing_end_penalty is not None:
            raise ValueError("give missing_end_score or missing_end_penalty, not both")
        return self


class RolloutRecipe(Section):
    """How the policy writes.

    Args:
        longest: most tokens of a response. temperature: of rollout and update alike. samples: responses to a prompt.
        stop: strings that end a response.
    """

    longest: int = Field(default=64, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    samples: int = Field(default=1, gt=0)
    stop: tuple[str, ...] = ()


class UpdateRecipe(Section):
    """epochs: passes over a rollout. minibatches: updates in each. clip: how far ratios may be from 1."""

    epochs: int = Field(default=1, gt=0)
    minibatches: int = Field(default=1, gt=0)
    clip: float = Field(default=0.2, gt=0)


class PPOUpdateRecipe(UpdateRecipe):
    """Schulman et al. 2017, with the settings of Ziegler et al. 2019.

    Args:
        value_clip: how far values may be from what they were. value_coefficient: of their loss.
        discount, decay: gamma and lambda of the advantages.
        whiten, whiten_rewards: scale advantages, or the rewards of tokens, to variance 1 in each rollout.
    """

    epochs: int = Field(default=4, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    discount: float = Field(default=1.0, gt=0, le=1)
    decay: float = Field(default=0.95, ge=0, le=1)
    whiten: bool = True
    whiten_rewards: bool = False


class GRPOUpdateRecipe(UpdateRecipe):
    """Shao et al. 2024. scale: of the advantages, see `advantages.group_advantages`. reduction: see
    `policy_losses.loss_weights`."""

    scale: GroupScale = "group"
    reduction: Reduction = "token_mean"


class ReferenceRecipe(Section):
    """How dear it is to leave the policy that the run began with.

    Args:
        coefficient: of the divergence from it: of PPO in the rewards, of GRPO in the loss.
        estimator: of the divergence (see `policy_losses.kl_estimate`).
        target, horizon: nats of a response that an adaptive coefficient aims at, and how fast (see
            `controllers.AdaptiveKL`); horizon null: the coefficient stays.
    """

    coefficient: float = Field(default=0.05, ge=0)
    estimator: Estimator = "k1"
    target: float = Field(default=6.0, gt=0)
    horizon: int | None = Field(default=None, gt=0)


class PretrainingRecipe(DataRecipe):
    """Gradients of pretraining mixed into every update: PPO-ptx (Ouyang et al. 2022, section 3.5, equation 2).

    Args:
        source and so on: the corpus, as in recipes of pretraining; what is held out there is held out here.
        coefficient: of its loss, a mean over tokens; 27.8 in the paper, whose losses are scaled otherwise.
        batch: sequences of an update. length: tokens of each.
    """

    coefficient: float = Field(default=1.0, gt=0)
    batch: int = Field(default=8, gt=0)
    length: int = Field(default=128, gt=1)


class RailsRecipe(Section):
    """When to stop because it has gone wrong.

    Args:
        kl: nats of a response; default: ten times the target of an adaptive coefficient, else 50.
        entropy: share of what it was at first. clip_fraction: of tokens, three rollouts in a row.
    """

    kl: float | None = Field(default=None, gt=0)
    entropy: float = Field(default=0.1, ge=0, lt=1)
    clip_fraction: float = Field(default=0.5, gt=0, le=1)


class ReinforcementEvaluationRecipe(EvaluationRecipe):
    """Responses to held-out prompts: prompts: how many. shown: how many of them are shown."""

    every: int = Field(default=10, gt=0)
    prompts: int = Field(default=64, gt=0)
    shown: int = Field(default=2, ge=0)


class ReinforcementOutputRecipe(OutputRecipe):
    """What is written and how often, in rollouts."""

    save_every: int = Field(default=10, gt=0)
    log_every: int = Field(default=1, gt=0)


class ReinforcementRecipe(RunRecipe):
    """What PPO and GRPO share. `training.steps` counts rollouts, `training.batch` the prompts of one.

    Args:
        model: checkpoint directory or hub id of the policy to begin with, which is the reference too.
        lora: train adapters only; null: all weights.
    """

    model: str
    lora: LoRARecipe | None = None
    prompts: PromptsRecipe
    reward: RewardSourceRecipe
    rollout: RolloutRecipe = RolloutRecipe()
    update: UpdateRecipe = UpdateRecipe()
    reference: ReferenceRecipe = ReferenceRecipe()
    pretraining: PretrainingRecipe | None = None
    rails: RailsRecipe = RailsRecipe()
    evaluation: ReinforcementEvaluationRecipe = ReinforcementEvaluationRecipe()
    output: ReinforcementOutputRecipe = ReinforcementOutputRecipe()

    @model_validator(mode="after")
    def _what_is_read(self) -> "ReinforcementRecipe":
        others = {
            "training": ("ramp", "length", "epochs", "layer_decay", "average"),
            "evaluation": ("tokens", "patience"),
            "execution": ("compile", "checkpoint_activations"),
        }
        for section, names in others.items():
            given = next((name for name in names if getattr(getattr(self, section), name)), None)
            if given is not None:
                raise ValueError(f"{section}.{given} is not used by learning from rewards")
        return self

    @property
    def kl_limit(self) -> float:
        """Nats of a response at which the run stops."""
        if self.rails.kl is not None:
            return self.rails.kl
        return 50.0 if self.reference.horizon is None else 10 * self.reference.target


class PPORecipe(ReinforcementRecipe):
    """A whole recipe of PPO. value: the reward model that values begin as; default: the one of the rewards, or, with a
    function, the policy under a head of zeros."""

    update: PPOUpdateRecipe = PPOUpdateRecipe()
    value: str | None = None

    @model_validator(mode="after")
    def _enough_to_whiten(self) -> "PPORecipe":
        if self.update.whiten_rewards and self.training.batch * self.rollout.samples < LEAST_TO_WHITEN:
            raise ValueError(f"update.whiten_rewards needs at least {LEAST_TO_WHITEN} responses a rollout")
        return self


class GroupRolloutRecipe(RolloutRecipe):
    """How the policy writes; advantages compare the responses to one prompt."""

    samples: int = Field(default=8, gt=1)


class LossReferenceRecipe(ReferenceRecipe):
    """How dear it is to leave the first policy; the divergence is part of the loss."""

    coefficient: float = Field(default=0.0, ge=0)
    estimator: Estimator = "k3"


class GRPORecipe(ReinforcementRecipe):
    """A whole recipe of GRPO."""

    update: GRPOUpdateRecipe = GRPOUpdateRecipe()
    rollout: GroupRolloutRecipe = GroupRolloutRecipe()
    reference: LossReferenceRecipe = LossReferenceRecipe()
