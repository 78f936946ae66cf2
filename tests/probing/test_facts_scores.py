"""Ranks by brute force, summaries in closed form, and LAMA's own frequency baseline."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stemma.errors import InputError
from stemma.probing.facts import Fact, Facts, Relation, read_facts
from stemma.probing.facts_baselines import frequency_ranks, names_object, ranked_answers, read_answers
from stemma.probing.facts_scores import Answered, summary_of

PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
NOWHERE = np.iinfo(np.int64).max


def test_ranks_are_those_of_sorting() -> None:
    scores = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    gold = [number % 12 for number in range(40)]
    others = [[(number + 3) % 12, (number + 7) % 12] for number in range(40)]
    found = Answered.of(scores, gold, others)
    for number in range(40):
        order = sorted(range(12), key=lambda place: -scores[number, place])
        assert found.rank[number] == order.index(gold[number]) + 1
        left = [place for place in order if place not in others[number]]
        assert found.filtered[number] == left.index(gold[number]) + 1
        assert found.best[number].tolist() == order[:10]
        assert found.log_probability[number] == pytest.approx(float(scores[number, gold[number]]))
    assert (found.filtered < found.rank).any()


def test_ties_and_what_is_no_number_count_against_the_answer() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [torch.nan, torch.nan, torch.nan], [0.5, torch.nan, 0.0]])
    assert Answered.of(scores, [0, 0, 0], [[], [], []]).rank.tolist() == [2, 3, 2]


def test_parts_are_joined_and_chosen_from() -> None:
    one = Answered.of(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), [0, 0], [[], [2]])
    two = Answered.of(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), [0, 0], [[], []])
    assert Answered.joined([one, two]).rank.tolist() == [1, 3, 3, 1] and one.filtered.tolist() == [1, 2]
    best = Answered.chosen([one, two], np.array([0, 1]))
    assert best.rank.tolist() == [1, 1] and best.best.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_macro_is_over_relations_and_micro_over_facts() -> None:
    ranks = {"a": np.array([1, 20]), "b": np.array([1, 1, 1, 4]), "c": np.array([2, 2])}
    filtered = {"a": np.array([1, 10]), "b": np.array([1, 1, 1, 1]), "c": np.array([1, 2])}
    found = summary_of(
        {name: (ranks[name], filtered[name]) for name in ranks}, {"a": "1-1", "b": "N-1", "c": "N-1"}, 40
    )
    assert found["macro"]["p_at_1"] == pytest.approx((0.5 + 0.75 + 0) / 3)
    assert found["macro"]["filtered_p_at_1"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["macro"]["p_at_10"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["macro"]["mrr"] == pytest.approx((1.05 / 2 + 3.25 / 4 + 0.5) / 3)
    assert found["micro"]["p_at_1"] == pytest.approx(4 / 8) and found["facts"] == 8
    assert found["by_kind"]["N-1"]["p_at_1"] == pytest.approx(0.375) and "N-M" not in found["by_kind"]
    assert found["curve"][0] == pytest.approx([1, 1.25 / 3, 2 / 3])
    assert [point[0] for point in found["curve"]] == [1, 2, 3, 5, 10, 20, 40] and found["curve"][-1][1:] == [1.0, 1.0]
    low, high = found["macro"]["p_at_1_interval"]
    assert 0 <= low < found["macro"]["p_at_1"] < high <= 0.75


def made_up() -> Facts:
    pairs = [("Ada", "London"), ("Bo", "Rome"), ("Cy", "Rome"), ("Dee", "Oslo"), ("Dee", "Rome"), ("Oslo FC", "Oslo")]
    relations = {name: Relation(name, ("[X] [Y]",)) for name in ("P19", "P20")}
    facts = [Fact("P19", subject, gold, f"k{number}") for number, (subject, gold) in enumerate(pairs)]
    return Facts("made up", relations, [*facts, Fact("P20", "Ada", "London", "k9")], 7)


def test_frequency_ranks_objects_within_the_relation() -> None:
    raw, filtered = frequency_ranks(made_up())["P19"]  # Rome 3, Oslo 2, London 1
    assert raw.tolist() == [3, 1, 1, 2, 1, 2]
    assert filtered.tolist() == [3, 1, 1, 1, 1, 2]  # Rome is right for Dee too


def test_answers_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "extractor.jsonl"
    path.write_text('{"uuid": "k0", "answers": ["Paris", "London"]}\n{"uuid": "k3", "answers": ["Rome", "Oslo"]}\n')
    raw, filtered = ranked_answers(made_up(), read_answers(path))["P19"]
    assert raw.tolist() == [2, NOWHERE, NOWHERE, 2, NOWHERE, NOWHERE]
    assert filtered.tolist() == [2, NOWHERE, NOWHERE, 1, NOWHERE, NOWHERE]
    path.write_text('{"uuid": "k0"}\n')
    with pytest.raises(InputError, match="line 1: expected 'uuid' and a list 'answers'"):
        read_answers(path)


def test_names_that_give_the_object_away() -> None:
    assert [names_object(fact) for fact in made_up().facts] == [False] * 5 + [True, False]


@pytest.mark.skipif(not (PUBLISHED / "facts/trex").is_dir(), reason="needs LAMA's T-REx")
def test_frequency_of_the_published_facts() -> None:
    """Macro P@1 of "Freq" as LAMA's procedure gives it for these 41 relations; the same rule as in the test above."""
    facts = read_facts(PUBLISHED / "facts/trex")
    kinds = {name: relation.kind for name, relation in facts.relations.items()}
    found = summary_of(frequency_ranks(facts), kinds, 21018)
    assert (len(facts.facts), len(facts.relations)) == (29411, 41)
    shares = [found["macro"], *(found["by_kind"][kind] for kind in ("1-1", "N-1", "N-M"))]
    assert [round(100 * share["p_at_1"], 2) for share in shares] == [23.97, 2.46, 24.71, 25.60]
    each = found["relations"]
    assert [round(100 * each[name]["p_at_1"], 2) for name in ("P30", "P103")] == [73.51, 63.87]
    assert round(100 * np.mean([names_object(fact) for fact in facts.facts]), 2) == 14.13
