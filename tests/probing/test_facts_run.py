"""Asking models that know what they were told: every number by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_models import model_of, tokenizer_of

from stemma.data.tokenizers import pieces_in_text
from stemma.errors import InputError
from stemma.insights.facts_report import described, report_of, summary_table
from stemma.insights.parts import Interval
from stemma.probing.facts import Fact, Facts, Query, Relation, query_of
from stemma.probing.facts_readings import Reading, Row, reading_of
from stemma.probing.facts_run import FREQUENCY, probe
from stemma.probing.facts_selection import Asked, select

RELATIONS = {
    "place": Relation("place", ("[X] sings in [Y] .", "[X] is in [Y] ."), "N-M", "where one is"),
    "colour": Relation("colour", ("the [Y] [X]",), "N-1"),
}
FACTS = [
    Fact("place", "Anna", "Paris", "p1"),
    Fact("place", "Anna", "London", "p2"),
    Fact("place", "Boris", "London", "p3"),
    Fact("place", "Boris", "London", "p4"),
    Fact("place", "cat", "Unheard", "p5"),
    Fact("colour", "fox", "red", "c1"),
    Fact("colour", "dog red", "red", "c2"),
]
SOURCE = Facts("made up", RELATIONS, FACTS, 9, {"judged wrong": 2})
WORDS = ["Paris", "London", "red", "blue", "fox", "dog"]
# What the model says, best first, by template and subject; other words come behind, in their order.
SAYS = {
    "Anna sings in [MASK] .": ["London", "Paris"],
    "Boris sings in [MASK] .": ["dog", "red", "London"],
    "Anna is in [MASK] .": ["blue", "London", "Paris"],
    "Boris is in [MASK] .": ["London"],
    "the [MASK] fox": ["red"],
    "the [MASK] dog red": ["dog", "fox", "blue", "London", "Paris"],
}


class Told(Asked):
    """A model that says what it is told to."""

    @property
    def reading(self) -> Reading:
        tokenizer = self.tokenizer
        width = tokenizer.vocabulary

        def rows(queries: Sequence[Query]) -> list[Row]:
            texts = [f"{query.before} [MASK]{query.after}" for query in queries]
            return [Row([list(SAYS).index(text)], 0, 1) for text in texts]

        def logits(rows: Sequence[Row]) -> torch.Tensor:
            found = torch.zeros(len(rows), width)
            for number, row in enumerate(rows):
                said = SAYS[list(SAYS)[row.tokens[0]]]
                ordered = [*said, *(word for word in WORDS if word not in said)]
                for place, (token,) in enumerate(pieces_in_text(tokenizer, ordered)):
                    found[number, token] = 10.0 - place
            return found

        return Reading(rows, logits, width)


def told() -> Told:
    return Told("told", None, tokenizer_of("bert"))


def test_every_number_of_a_small_probe() -> None:
    done: list[int] = []
    selection = select([told()], SOURCE, words=[*WORDS, "two words"])
    found = probe([told()], selection, report=done.append)
    results = found.results
    assert sum(done) == selection.questions == 3 * 2 + 2
    assert results["coverage"] == {
        "read": 9, "asked": 5, "repeated": 1, "dropped": {"judged wrong": 2, "object not one token in every model": 1}
    }  # fmt: skip
    assert results["candidates"] == {"kind": "vocabulary", "most": 6, "per_token": False}
    assert results["string_match"] == pytest.approx(1 / 6)
    first = results["answers"]["told"]
    assert [(row["subject"], row["rank"], row["filtered_rank"]) for row in found.predictions] == [
        ("Anna", 2, 1), ("Anna", 1, 1), ("Boris", 3, 3), ("fox", 1, 1), ("dog red", 6, 6)
    ]  # fmt: skip
    assert found.predictions[0]["best"] == ["London", "Paris", "red", "blue", "fox", "dog"]
    assert first["macro"]["p_at_1"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert first["macro"]["filtered_p_at_1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert first["macro"]["mrr"] == pytest.approx(((0.5 + 1 + 1 / 3) / 3 + (1 + 1 / 6) / 2) / 2)
    assert first["micro"]["p_at_1"] == pytest.approx(2 / 5)
    # London 3 of 4 places, red both colours
    assert results["answers"][FREQUENCY]["macro"]["p_at_1"] == pytest.approx((3 / 4 + 1) / 2)
    place = results["relations"]["place"]["models"]["told"]
    assert place["p_at_1_by_template"] == pytest.approx({"[X] sings in [Y] .": 1 / 3, "[X] is in [Y] .": 1 / 3})
    assert place["commonest_answer"] == pytest.approx(2 / 3) and place["templates_agree"] == 0.0
    assert results["relations"]["colour"]["models"]["told"]["templates_agree"] is None


def test_ensemble_is_the_mean_of_log_probabilities() -> None:
    results = probe([told()], select([told()], SOURCE, words=WORDS)).results["answers"]
    # Anna: London 10 + 9, Paris 9 + 8, blue 7 + 10. Boris: London 8 + 10, dog 10 + 5
    together = results["told, all templates"]["relations"]["place"]
    assert together["p_at_1"] == pytest.approx(2 / 3) and together["filtered_p_at_1"] >= 2 / 3


def test_the_best_template_is_chosen_on_the_other_half() -> None:
    relation = {"r": Relation("r", ("a [X] [Y]", "b [X] [Y]"))}
    subjects = [f"s{number}" for number in range(20)]
    source = Facts("f", relation, [Fact("r", subject, "red") for subject in subjects], 20)

    class Half(Told):
        @property
        def reading(self) -> Reading:
            red, blue = (ids[0] for ids in pieces_in_text(self.tokenizer, ["red", "blue"]))

            def logits(rows: Sequence[Row]) -> torch.Tensor:
                found = torch.zeros(len(rows), self.tokenizer.vocabulary)
                for number, row in enumerate(rows):
                    found[number, red if row.tokens[0] else blue] = 5.0
                return found

            def rows(queries: Sequence[Query]) -> list[Row]:
                return [Row([int(query.before[0] == "b")], 0, 1) for query in queries]

            return Reading(rows, logits, self.tokenizer.vocabulary)

    asked = [Half("half", None, tokenizer_of("bert"))]
    answers = probe(asked, select(asked, source, words=["red", "blue"])).results["answers"]
    assert answers["half"]["macro"]["p_at_1"] == 0.0
    assert answers["half, best template"]["macro"]["p_at_1"] == 1.0


def test_objects_of_any_length_are_candidates_too() -> None:
    asked = [Asked(name, model_of(name), tokenizer_of(name)) for name in ("bert", "gpt")]
    facts = [Fact("colour", "fox", "quick brown", "1"), Fact("colour", "dog", "lazy", "2")]
    source = Facts("f", {"colour": RELATIONS["colour"]}, facts, 2)
    selection = select(asked, source, candidates="objects")
    results = probe(asked, selection, per_token=True).results
    assert results["candidates"] == {"kind": "objects", "most": 2, "per_token": True}
    assert results["right_side_unread"] == {"gpt": 1.0}
    assert set(results["answers"]) == {FREQUENCY, "bert", "gpt"}


def test_a_real_model_gives_the_probabilities_of_its_reading() -> None:
    asked = Asked("bert", model_of("bert"), tokenizer_of("bert"))
    found = probe([asked], select([asked], SOURCE, words=WORDS)).predictions
    for row, fact in zip(found, (FACTS[0], FACTS[1], FACTS[2], FACTS[5], FACTS[6]), strict=True):
        query = query_of(fact, RELATIONS[fact.relation].templates[0])
        ids = [piece[0] for piece in pieces_in_text(asked.tokenizer, WORDS)]
        (scores,) = reading_of(asked.model, asked.tokenizer).log_probabilities([query], ids)
        order = [WORDS[place] for place in np.argsort(-scores.numpy())]
        assert row["best"] == order and row["rank"] == order.index(fact.object) + 1
        assert row["log_probability"] == pytest.approx(float(scores[WORDS.index(fact.object)]), abs=1e-4)


def test_words_that_a_model_spells_alike_are_one_answer() -> None:
    asked = Told("told", None, tokenizer_of("bert"))  # WordPiece in capitals and small letters
    lowered = asked.tokenizer.encode("Red") == asked.tokenizer.encode("red")
    words = [*WORDS, "Red"] if lowered else WORDS
    found = probe([asked], select([asked], SOURCE, words=words))
    assert [row["rank"] for row in found.predictions] == [2, 1, 3, 1, 6]


def test_questions_that_are_too_long_are_left_out_of_all() -> None:
    asked = [Asked("short", model_of("bert", context=6), tokenizer_of("bert")), told()]
    selection = select(asked, SOURCE, words=WORDS)
    assert selection.dropped["longer than a model reads"] == 4 and list(selection.distinct) == ["colour"]
    short = [Asked("short", model_of("bert", context=3), tokenizer_of("bert"))]
    with pytest.raises(InputError, match="made up: no fact can be asked for .*6 longer than a model reads"):
        select(short, SOURCE, words=WORDS)


def test_table_and_report_say_what_was_measured() -> None:
    results = probe([told()], select([told()], SOURCE, words=WORDS), answers={"extractor": {"p1": ["Paris"]}}).results
    table = summary_table(results)
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == [FREQUENCY, "extractor", "told", "told, best template", "told, all templates"]
    value = rows["told"][0].value
    assert isinstance(value, Interval) and value.estimate == pytest.approx(100 * 5 / 12)
    assert rows["told"][-1] == pytest.approx(100 / 3) and table.columns[-1] == "P@1 N-M"
    assert len(summary_table(results, brief=True).columns) < len(table.columns)
    assert described(results).startswith("5 facts asked of 9 lines read, 1 repeated, 2 judged wrong, 1 object not one")
    report = report_of([results], "stemma probe facts told")
    assert [section.title for section in report.sections] == ["made up", "To run it again"]
    curves = report.sections[0].parts[2]
    assert [(line.label, line.y[-1]) for line in curves.series][2] == ("told", 1.0)
    assert any("two templates" in getattr(part, "caption", "") for part in report.sections[0].parts)
