"""What does leaving the reference buy, and when does it stop being worth it? (Ouyang et al. 2022, figure 34 and section
3.5; Stiennon et al. 2020, section 4.3: a learned reward that is optimised too far)"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stemma.alignment.docstring_task import true_reward
from stemma.alignment.rewards import Episode
from stemma.evaluation.intervals import over_seeds, paired_over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_all, values
from stemma.insights.docstring_policies import alignment_of, metrics_of, practise, prepare
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.parts import Curves, Series
from stemma.insights.workers import Report, Reporter

FREE, ADAPTIVE = "0", "adaptive"
FIXED = ("0.01", "0.03", "0.1", "0.3")
TARGET, HORIZON = 4.0, 500  # of the adaptive coefficient: nats, episodes


def work(job: Job, report: Report) -> dict[str, Any]:
    """Run PPO with one coefficient; return divergence and both rewards over the run."""
    settings = job.settings
    overrides = [
        *(f"ppo.training.lr={settings['rate']}", "ppo.training.schedule={name: constant}"),
        *("ppo.rails.kl=1e9", "ppo.rails.entropy=0", "ppo.rails.clip_fraction=1"),  # to run away is what is looked at
        *(f"ppo.evaluation.{key}={settings['prompts']}" for key in ("prompts", "shown")),
        f"ppo.evaluation.every={settings['every']}",
    ]
    if job.arm == ADAPTIVE:
        overrides += [f"ppo.reference.target={TARGET}", f"ppo.reference.horizon={HORIZON}"]
    else:
        overrides.append(f"ppo.reference.coefficient={job.arm}")
    recipe = alignment_of(settings, job.shared / "pretrained", job.shared, job.seed, *overrides).ppo
    return curve_of(metrics_of(practise(recipe, job.folder / "ppo", Reporter(job.name, report, "PPO"))))


def curve_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return, of each evaluation but the last, the divergence in nats of a response, and both mean rewards.

    An evaluation is of the weights that write the rollout after it, whose divergence is known.
    """
    kl = {line["step"] - 1: line["kl"] for line in metrics if "kl" in line}
    found: dict[str, list[float]] = {"kl": [], "proxy": [], "true": []}
    for line in metrics:
        if "held_out_samples" in line and line["step"] in kl:
            samples = line["held_out_samples"]
            episodes = [Episode(sample["prompt"], sample["response"], sample["ended"]) for sample in samples]
            for name, value in (
                ("kl", kl[line["step"]]),
                ("proxy", line["held_out_reward"]),
                ("true", float(np.mean(true_reward(episodes)))),
            ):
                found[name].append(value)
    return found


def late(name: str) -> Any:
    """Return what gives the mean of a measure over the last third of the evaluations."""
    return lambda measures: float(np.mean(measures[name][-max(len(measures[name]) // 3, 1) :]))


def decide(results: Results) -> Decision:
    """Decide by the true reward at no cost of leaving the reference, against some cost that the other seeds choose."""
    true = {arm: np.array(values(results, arm, late("true"))) for arm in (FREE, *FIXED)}
    proxy = {arm: values(results, arm, late("proxy")) for arm in (FREE, *FIXED)}
    seeds = range(len(true[FREE]))
    chosen = [max(FIXED, key=lambda arm: float(np.delete(true[arm], seed).mean())) for seed in seeds]
    best = [float(true[arm][seed]) for seed, arm in enumerate(chosen)]
    fall = paired_over_seeds(best, true[FREE].tolist())
    rise = paired_over_seeds(best, values(results, FREE, lambda measures: measures["true"][0]))
    fooled = paired_over_seeds(proxy[FREE], [proxy[arm][seed] for seed, arm in enumerate(chosen)])
    outcome, _ = by_all([fall, rise, fooled])
    details = {
        "true reward, best coefficient minus the beginning": rise,
        "learned reward, no cost minus best coefficient": fooled,
        "divergence of the adaptive coefficient, as a multiple of its target": over_seeds(
            [value / TARGET for value in values(results, ADAPTIVE, late("kl"))]
        ),
    }
    return Decision(outcome, fall, details=details)


def charts(results: Results) -> list[Curves]:
    """Return both rewards against the root of the divergence, means over the seeds."""
    return [
        Curves(
            [_line(results, arm, label, name) for arm, label in EXPERIMENT.arms.items()],
            x_label="root of the divergence from the reference, in nats of a response",
            y_label=f"{title} reward",
            caption=f"{title} reward on unseen prompts as PPO goes on",
        )
        for name, title in (("proxy", "learned"), ("true", "true"))
    ]


def _line(results: Results, arm: str, label: str, name: str) -> Series:
    runs = [results["measures"][f"{arm}-{seed}"] for seed in results["plan"]["seeds"]]
    kl, reward = (np.mean([run[key] for run in runs], axis=0).tolist() for key in ("kl", name))
    return Series(label, [math.sqrt(max(value, 0.0)) for value in kl], reward)


def _settings(**changed: Any) -> Mapping[str, Any]:
    return {
        **{"text": "python", "vocabulary": 1024, "size": [2, 128, 4], "steps": 3000},
        **{"rollouts": 151, "every": 10, "prompts": 128, "rate": 3e-4},
        **changed,
    }


EXPERIMENT = Experiment(
    arms={arm: f"coefficient {arm}" for arm in (FREE, *FIXED, ADAPTIVE)},
    scales={
        "small": _settings(),
        "medium": _settings(vocabulary=4096, size=[6, 256, 8], steps=8000, rollouts=501, every=25, rate=1e-4),
    },
    work=work,
    prepare=prepare,
    columns=(
        Column("learned reward, last third", "learned", late("proxy")),
        Column("true reward, last third", "true", late("true")),
        Column("true reward, at best", "best", lambda measures: max(measures["true"])),
        Column("divergence in nats of a response", "KL", late("kl"), more=False),
    ),
    charts=charts,
)

CLAIM = Claim(
    name="kl-reward-frontier",
    source="Ouyang et al. 2022, section 3.5; Stiennon et al. 2020, section 4.3, figure 5",
    hypothesis="the less it costs to leave the reference, the higher the learned reward; the true reward rises, and "
    "turns down where the learned one is optimised too far",
    varied="the coefficient of the divergence from the reference",
    controlled="the policy and the reward model that PPO begins with, prompts, rollouts, updates, rate, seeds",
    decides="true reward in the last third of the evaluations: with the cost that is best in the other seeds, minus "
    "with no cost; reproduced if its interval lies above 0, as do those of that best one minus the beginning, and of "
    "the learned reward with no cost minus with that cost; not reproduced if one of the three lies below",
    decide=decide,
    experiment=EXPERIMENT,
)
