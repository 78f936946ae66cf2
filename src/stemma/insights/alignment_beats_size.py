"""Is a small model that was aligned preferred to a much larger one that was not? (Ouyang et al. 2022, section 4.1)"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stemma.alignment.instruct import PPO, SFT, align_all
from stemma.evaluation.intervals import Interval, over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_all, values
from stemma.insights.docstring_policies import (
    alignment_of,
    asked,
    continued,
    pretrained,
    true_rewards,
    unseen,
    with_examples,
)
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.workers import Interrupted, Report, Reporter


def work(job: Job, report: Report) -> dict[str, Any]:
    """Pretrain a model; align the small one; return what its responses are worth, prompt by prompt."""
    settings, display = job.settings, Reporter(job.name, report, "pretraining")
    model = pretrained(
        settings, job.arm, job.folder / "pretrained", text=settings["text"], seed=job.seed, display=display
    )
    items = unseen(settings["prompts"])
    given: dict[str, Any] = {"seed": job.seed, "temperature": settings["temperature"]}
    found = {
        "pretrained": true_rewards(model, items, continued(items), **given),
        "few_shot": true_rewards(model, items, with_examples(items, job.seed), **given),
    }
    if job.arm == "small":
        display.stage = "aligning"
        out = job.folder / "aligned"
        recipe = alignment_of(settings, model, out, job.seed)
        if align_all(recipe, out, display=display).signal is not None:
            raise Interrupted
        found |= {name: true_rewards(out / step, items, asked(items), **given) for name, step in _STEPS.items()}
    return found


_STEPS = {"demonstrated": SFT, "aligned": PPO}


def win_rate(ours: list[float], theirs: list[float]) -> float:
    """Return the share of the prompts where ours is worth more, an even one counted half."""
    return float((1 + np.sign(np.subtract(ours, theirs))).mean() / 2)


def decide(results: Results) -> Decision:
    """Decide by the harder of the two opponents."""

    def against(ours: tuple[str, str], theirs: tuple[str, str]) -> Interval:
        pairs = zip(*(values(results, arm, _of(name)) for arm, name in (ours, theirs)), strict=True)
        return over_seeds([win_rate(*pair) for pair in pairs])

    aligned, larger, prompted = ("small", "aligned"), ("large", "pretrained"), ("large", "few_shot")
    rates = {
        "aligned over the larger one": against(aligned, larger),
        "aligned over the larger one with examples": against(aligned, prompted),
    }
    outcome, effect = by_all(rates.values(), 0.5)
    details = {
        "demonstrated only, over the larger one with examples": against(("small", "demonstrated"), prompted),
        "aligned over demonstrated only": against(aligned, ("small", "demonstrated")),
        "the larger one over the small one, both with examples": against(prompted, ("small", "few_shot")),
    }
    return Decision(outcome, effect, details=rates | details)


def _of(name: str) -> Any:
    return lambda measures: measures[name]


def _mean(name: str) -> Any:
    return lambda measures: float(np.mean(measures[name])) if name in measures else None


def _settings(**changed: Any) -> Mapping[str, Any]:
    return {
        **{"text": "python", "vocabulary": 1024, "small": [2, 48, 4], "large": [4, 128, 4], "steps": 3000},
        **{"rollouts": 100, "prompts": 256, "temperature": 0.7},
        **changed,
    }


EXPERIMENT = Experiment(
    arms={"small": "small, then aligned", "large": "over 8 times larger"},
    scales={
        "small": _settings(),
        "medium": _settings(vocabulary=4096, small=[4, 192, 6], large=[12, 512, 8], steps=12000, rollouts=200),
    },
    work=work,
    columns=(
        Column("true reward, as pretrained", "plain", _mean("pretrained")),
        Column("... with examples in the prompt", "shots", _mean("few_shot")),
        Column("... after demonstrations", "SFT", _mean("demonstrated")),
        Column("... after PPO", "PPO", _mean("aligned")),
    ),
)

CLAIM = Claim(
    name="alignment-beats-size",
    source="Ouyang et al. 2022, section 4.1, figure 1",
    hypothesis="a small model that learned from demonstrations and preferences is preferred to a many times larger one "
    "that was only pretrained, also when that one is shown examples",
    varied="the size of the model (more than eight times the parameters), and whether it was aligned",
    controlled="pretraining (text, tokens, order, tokenizer, rate), the prompts, of modules unseen in alignment, the "
    "temperature; a line break ends what the unaligned model writes",
    decides="share of the prompts where the response of the small, aligned model has the higher true reward, against "
    "the larger model and against it with examples; reproduced if both intervals lie above a half, "
    "not reproduced if one lies below",
    decide=decide,
    experiment=EXPERIMENT,
)
