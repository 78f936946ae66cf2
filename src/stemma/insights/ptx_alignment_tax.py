"""What does alignment cost, and do gradients of pretraining pay it back? (Ouyang et al. 2022, sections 3.5 and 4.2)"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stemma import families
from stemma.data.corpora import CorpusSource
from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError
from stemma.evaluation.intervals import over_seeds
from stemma.evaluation.likelihood import score_text
from stemma.insights import docstring_policies
from stemma.insights.claims import Claim, Decision, Outcome, Results, values
from stemma.insights.docstring_policies import alignment_of, asked, practise, true_rewards, unseen
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.lineage import TEXT, write_text
from stemma.insights.workers import Report, Reporter

HELD_OUT = "held_out.jsonl"
KEPT, AS_GOOD = 0.02, 0.95  # of the loss, and of the reward


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Divide the text, and make the policy and the reward model that the jobs begin with."""
    write_held_out(write_text(settings, shared), settings, shared)
    docstring_policies.prepare(settings, shared, str(shared / TEXT))


def write_held_out(rest: Sequence[str], settings: Mapping[str, Any], shared: Path) -> None:
    """Write `settings["documents"]` of the documents that are left over.

    Raises:
        InputError: none is left.
    """
    if not rest:
        raise InputError(f"{settings['text']}: no document is left beyond {settings['bytes']:,} bytes to measure on")
    lines = [json.dumps({"text": text}) for text in rest[: settings["documents"]]]
    (shared / HELD_OUT).write_text("\n".join(lines) + "\n", encoding="utf-8")


def work(job: Job, report: Report) -> dict[str, Any]:
    """Run PPO, with or without gradients of pretraining; return what became of the language model and the reward."""
    settings, shared = job.settings, job.shared
    overrides = [f"ppo.training.lr={settings['rate']}"]
    if job.arm == "ptx":
        overrides.append(
            f"ppo.pretraining={{source: '{shared / TEXT}', coefficient: {settings['coefficient']}, "
            f"batch: {settings['batch']}, length: {settings['length']}}}"
        )
    recipe = alignment_of(settings, shared / "pretrained", shared, job.seed, *overrides).ppo
    folder = practise(recipe, job.folder / "ppo", Reporter(job.name, report, "PPO"))
    report((job.name, "measuring", 0, 0, {}))
    items = unseen(settings["prompts"])
    return {
        "start_loss": loss_of(shared / "sft", shared / HELD_OUT),
        "loss": loss_of(folder, shared / HELD_OUT),
        "reward": float(np.mean(true_rewards(folder, items, asked(items), seed=job.seed))),
    }


def loss_of(model: Path, text: Path) -> float:
    """Return a model's loss of a token of a text, in nats."""
    return score_text(families.load(model), load_tokenizer(model), CorpusSource(str(text))).loss


def tax(measures: Mapping[str, float]) -> float:
    """Return by what share of itself the loss rose."""
    return measures["loss"] / measures["start_loss"] - 1


def decide(results: Results) -> Decision:
    """Decide by the loss with gradients of pretraining, where the loss without them rises."""
    alone, mixed = (values(results, arm, tax) for arm in ("ppo", "ptx"))
    rewards = (values(results, arm, lambda measures: float(measures["reward"])) for arm in ("ptx", "ppo"))
    cost, rest = over_seeds(alone), over_seeds(mixed)
    saved = over_seeds([one - other for one, other in zip(alone, mixed, strict=True)])
    ratio = over_seeds([one / other for one, other in zip(*rewards, strict=True)])
    details = {"tax of PPO": cost, "tax of PPO-ptx": rest, "true reward of PPO-ptx over that of PPO": ratio}
    if cost.low <= 0:
        return Decision("undecided", saved, "the loss under PPO does not rise, so there is no tax to pay back", details)
    outcome: Outcome = "undecided"
    if saved.low > 0 and rest.high < KEPT and ratio.low > AS_GOOD:
        outcome = "reproduced"
    elif saved.high < 0 or rest.low > KEPT or ratio.high < AS_GOOD:
        outcome = "not reproduced"
    return Decision(outcome, saved, details=details)


def _settings(**changed: Any) -> Mapping[str, Any]:
    return {
        **{"text": "python", "bytes": 10_000_000, "documents": 40, "vocabulary": 1024, "size": [2, 128, 4]},
        **{"steps": 3000, "rollouts": 100, "rate": 1e-4, "prompts": 256},
        **{"coefficient": 1.0, "batch": 8, "length": 128},
        **changed,
    }


EXPERIMENT = Experiment(
    arms={"ppo": "PPO", "ptx": "PPO-ptx"},
    scales={
        "small": _settings(),
        "medium": _settings(vocabulary=4096, size=[6, 256, 8], steps=8000, rollouts=300),
    },
    work=work,
    prepare=prepare,
    columns=(
        Column("rise of the loss of unseen text", "tax", tax, more=False),
        Column("loss of a token of unseen text", "", lambda measures: measures["loss"], more=False),
        Column("true reward", "reward", lambda measures: measures["reward"]),
    ),
)

CLAIM = Claim(
    name="ptx-alignment-tax",
    source="Ouyang et al. 2022, sections 3.5 and 4.2, figures 29 and 33",
    hypothesis="learning from rewards makes a model worse at what it was pretrained for; gradients of pretraining "
    "mixed into every update keep that, at about the same reward",
    varied="whether gradients of pretraining are mixed in",
    controlled="the policy and the reward model that PPO begins with, prompts, rollouts, updates, rate, seeds",
    decides=f"by what share the loss of unseen text rises, PPO minus PPO-ptx; reproduced if this lies above 0, "
    f"PPO-ptx's rise below {KEPT:.0%}, and its true reward above {AS_GOOD:.0%} of PPO's; not reproduced if one of "
    "these lies on the other side; undecided if the loss under PPO does not rise",
    decide=decide,
    experiment=EXPERIMENT,
)
