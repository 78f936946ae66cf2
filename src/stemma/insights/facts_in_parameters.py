"""Are facts that a text states found in the parameters? (Petroni et al. 2019: language models as knowledge bases.)"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from stemma import families
from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.evaluation.intervals import over_seeds, paired_over_seeds
from stemma.files import write_whole
from stemma.insights.arms import ARMS, Scale, common_tokenizer, configurations, recipe_of
from stemma.insights.claims import Claim, Decision, Outcome, Results, values
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.parts import Curves, Series
from stemma.insights.stated_facts import EXPOSURES, OBJECTS, state_facts
from stemma.insights.workers import Interrupted, Report, Reporter
from stemma.probing.facts_run import probe
from stemma.probing.facts_scores import precision_at
from stemma.probing.facts_selection import Asked, select
from stemma.training.pretrain import pretrain

OBJECTS_EACH = 16  # of a relation
CHANCE = 1 / OBJECTS_EACH
MARGIN = 0.1
_NAMES = ("bert", "gpt", "glm")


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Learn the tokenizer that all use, from the statements of no seed that is run."""
    # Every object often enough to become one token.
    objects = [f" {objects}" for objects in OBJECTS.values()] * 32
    text = "\n".join([*state_facts(settings["people"], 0).statements, *objects])
    plain = train_tokenizer([text], "bpe", settings["scale"]["vocabulary"])
    (shared / "tokenizer").mkdir(exist_ok=True)
    common_tokenizer(plain).save(shared / "tokenizer")


def work(job: Job, report: Report) -> dict[str, float]:
    """Pretrain on the statements; return the share of right answers by exposure, among the objects of a relation."""
    stated = state_facts(job.settings["people"], job.seed)
    text, held_out = job.folder / "statements.txt", job.folder / "asked.txt"
    for path, rows in ((text, stated.statements), (held_out, stated.held_out)):
        with write_whole(path) as temporary:
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    folder = str(job.shared / "tokenizer")
    tokenizer = load_tokenizer(folder)
    scale = Scale(**{**job.settings["scale"], "steps": job.settings["steps"]})
    arms = [ARMS[name] for name in _NAMES]
    config = configurations(arms, scale, tokenizer.vocabulary)[_NAMES.index(job.arm)]
    source = {"source": str(text), "documents": "line", "held_out": str(held_out)}
    recipe = recipe_of(ARMS[job.arm], config, scale, tokenizer=folder, source=source, seed=job.seed)
    out = job.folder / "pretrained"
    outcome = pretrain(recipe, out, display=Reporter(job.name, report, "pretraining"), cache=job.folder / "cache")
    if outcome.reason == "interrupted":
        raise Interrupted
    report((job.name, "asking", 0, 0, {}))
    asked = [Asked(job.arm, families.load(out), tokenizer)]
    found: dict[str, float] = {}
    for exposure, facts in stated.asked.items():
        ranks: list[int] = []
        for relation, objects in OBJECTS.items():
            own = [fact for fact in facts.facts if fact.relation == relation]
            chosen = select(asked, replace(facts, facts=own), words=objects.split())
            ranks += [row["rank"] for row in probe(asked, chosen).predictions]
        found[_measure(exposure)] = precision_at(np.array(ranks), 1)
    return found


def _measure(exposure: int) -> str:
    return f"p_at_1_{exposure}"


def _shares(results: Results, arm: str, exposure: int) -> list[float]:
    """Return the share of right answers for each seed."""
    return values(results, arm, lambda m: float(m[_measure(exposure)]))


def decide(results: Results) -> Decision:
    """Decide by BERT, the paper's model; the others stand beside it."""
    most = EXPOSURES[-1]
    stated, unseen = _shares(results, "bert", most), _shares(results, "bert", 0)
    effect = paired_over_seeds(stated, unseen)
    growth, guessed = paired_over_seeds(stated, _shares(results, "bert", 1)), over_seeds(unseen)
    outcome: Outcome = "undecided"
    if effect.low > MARGIN and growth.low > 0 and abs(guessed.estimate - CHANCE) < MARGIN:
        outcome = "reproduced"
    elif effect.high < MARGIN or growth.high < 0 or guessed.low > CHANCE + MARGIN:
        outcome = "not reproduced"
    details = {
        f"{ARMS[arm].label}, facts stated {exposure} times": over_seeds(_shares(results, arm, exposure))
        for arm in _NAMES
        for exposure in EXPOSURES
    }
    details[f"BERT minus GPT, facts stated {most} times"] = paired_over_seeds(stated, _shares(results, "gpt", most))
    return Decision(outcome, effect, details=details)


def charts(results: Results) -> Sequence[Curves]:
    """Return the share of right answers by exposure."""
    series = []
    for arm in _NAMES:
        points = [over_seeds(_shares(results, arm, exposure)) for exposure in EXPOSURES]
        x, y = [exposure + 1 for exposure in EXPOSURES], [point.estimate for point in points]
        low, high = [point.low for point in points], [point.high for point in points]
        series.append(Series(ARMS[arm].label, x, y, low, high))
    caption = (
        f"Share of facts that are answered rightly in other words, by how often they were stated; chance {CHANCE}."
    )
    return [Curves(series, "times stated + 1", "P@1", caption, log_x=True)]


_SMALL = Scale(layers=2, hidden=128, heads=4, vocabulary=670, steps=1500)
_PAPER = Scale(layers=12, hidden=768, heads=12, vocabulary=670, steps=20_000, batch=64)

CLAIM = Claim(
    name="facts-in-parameters",
    source='Petroni et al. 2019, "Language Models as Knowledge Bases?", sections 1 and 6',
    hypothesis="a model that was pretrained on text that states facts answers cloze questions for them in other words, "
    "the better the more often they were stated; facts that were never stated are guessed",
    varied=f"how often a fact is stated: {', '.join(map(str, EXPOSURES))} times, never in the words of the question",
    controlled="text, tokens, tokenizer, parameters (within 2 %), the people, whose facts are stated unequally often",
    decides=f"P@1 among {OBJECTS_EACH} objects of BERT: facts stated {EXPOSURES[-1]} times minus facts never stated; "
    f"reproduced if its interval lies above {MARGIN}, more is answered of those than of facts stated once, and facts "
    f"never stated are within {MARGIN} of chance",
    decide=decide,
    experiment=Experiment(
        arms={name: ARMS[name].label for name in _NAMES},
        scales={
            name: {"people": 60, "steps": scale.steps, "scale": asdict(scale)}
            for name, scale in (("small", _SMALL), ("paper", _PAPER))
        },
        work=work,
        columns=[
            Column(f"P@1, stated {one} times", f"{one} x", lambda m, one=one: m.get(_measure(one)))  # type: ignore[misc]
            for one in EXPOSURES
        ],
        prepare=prepare,
        charts=charts,
    ),
)
