"""Text that states made-up facts so and so often, and questions for them in other words."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from stemma.probing.facts import OBJECT, SUBJECT, Fact, Facts, Relation, cloze

EXPOSURES = (0, 1, 4, 16, 64)

# Each fact is asked for in one of its relation's five ways to say it, and stated in the four others. All end with the
# object, so that a model that reads from left to right has seen the whole question.
PHRASES = {
    "city": (
        "[X] was born in [Y] .",
        "[X] comes from [Y] .",
        "the home town of [X] is [Y] .",
        "the parents of [X] live in [Y] .",
        "the school that [X] went to is in [Y] .",
    ),
    "work": (
        "[X] works as a [Y] .",
        "the profession of [X] is [Y] .",
        "[X] makes a living as a [Y] .",
        "everybody knows [X] as a [Y] .",
        "the training of [X] was that of a [Y] .",
    ),
    "music": (
        "[X] plays the [Y] .",
        "the instrument of [X] is the [Y] .",
        "[X] gives concerts on the [Y] .",
        "in the orchestra [X] is heard on the [Y] .",
        "[X] takes lessons on the [Y] .",
    ),
}
OBJECTS = {
    "city": "Paris London Rome Vienna Madrid Oslo Cairo Lima Tokyo Delhi Boston Dublin Athens Prague Lisbon Berlin",
    "work": "baker lawyer doctor painter farmer teacher sailor judge miner tailor nurse pilot monk printer mason clerk",
    "music": "piano violin flute harp drum guitar horn organ cello oboe trumpet lute banjo viola tuba fiddle",
}
_FIRST = ("Ba", "De", "Fi", "Go", "Hu", "Ka", "Le", "Mi", "No", "Pu", "Ra", "Se")
_SECOND = ("lan", "mon", "rik", "tas", "vel")


@dataclass(frozen=True)
class StatedFacts:
    """A text and the questions for what it states.

    Args:
        statements: of the text, in random order. asked: for each number of exposures, the facts that the text states
            so often. held_out: each fact in the words in which it is asked for.
    """

    statements: Sequence[str]
    asked: dict[int, Facts]
    held_out: Sequence[str]


def state_facts(people: int, seed: int) -> StatedFacts:
    """Draw facts about made-up people and say them as often as `EXPOSURES` says.

    Every person has a fact of each relation, stated unequally often, so that the name of one who has a fact that is
    never stated is read too. The objects are drawn evenly.

    Args:
        people: at most 60, of names of two syllables.
    """
    rng = np.random.default_rng(seed)
    names = [first + second for first, second in product(_FIRST, _SECOND)]
    chosen = [names[place] for place in rng.permutation(len(names))[:people]]
    facts: dict[int, list[Fact]] = {exposure: [] for exposure in EXPOSURES}
    statements: list[str] = []
    held_out: list[str] = []
    for place, (relation, phrases) in enumerate(PHRASES.items()):
        for number, name in enumerate(chosen):
            exposure = EXPOSURES[(number + place) % len(EXPOSURES)]
            objects = OBJECTS[relation].split()
            gold = objects[int(rng.integers(len(objects)))]
            asked = int(rng.integers(len(phrases)))
            said = [phrase for number, phrase in enumerate(phrases) if number != asked]
            order = rng.permutation(len(said))
            statements += [_stated(said[order[time % len(said)]], name, gold) for time in range(exposure)]
            held_out.append(_stated(phrases[asked], name, gold))
            facts[exposure].append(Fact(relation, name, gold, sentences=(cloze(phrases[asked], name),)))
    rng.shuffle(statements)
    relations = {name: Relation(name) for name in PHRASES}
    asked_of = {exposure: Facts(str(exposure), relations, own, len(own)) for exposure, own in facts.items()}
    return StatedFacts(statements, asked_of, held_out)


def _stated(phrase: str, subject: str, gold: str) -> str:
    return phrase.replace(SUBJECT, subject).replace(OBJECT, gold)
