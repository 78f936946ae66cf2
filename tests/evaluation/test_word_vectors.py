"""Analogies and similarity, against closed forms and gensim."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from stemma.data.vectors import WordVectors
from stemma.errors import InputError
from stemma.evaluation import word_vectors
from stemma.evaluation.word_vectors import (
    answer_analogies,
    read_analogies,
    read_similarities,
    score_similarities,
    spearman,
)

QUESTIONS = """\
: family
man king woman queen
Man King Woman Queen
king man queen woman
man king woman unknown
: gram1-plural
cat cats dog dogs
cat cats dog cat
"""


@pytest.fixture
def vectors():
    """royal, female, plural, kind: directions that add."""
    meanings = {
        "man": [0, 0, 0, 1, 0],
        "king": [1, 0, 0, 1, 0],
        "woman": [0, 1, 0, 1, 0],
        "queen": [1, 1, 0, 1, 0],
        "cat": [0, 0, 0, 0, 1],
        "cats": [0, 0, 1, 0, 1],
        "dog": [0, 0, 0, 0.5, 1],
        "dogs": [0, 0, 1, 0.5, 1],
        "Queen": [-1, 0, 0, 0, 0],
    }
    return WordVectors(list(meanings), np.array(list(meanings.values()), np.float32))


def counts(score):
    return score.questions, score.answered, score.correct


@pytest.mark.parametrize("method", ["add", "multiply"])
def test_analogies_by_hand(vectors, tmp_path, method):
    (tmp_path / "q.txt").write_text(QUESTIONS)
    scores = answer_analogies(vectors, read_analogies(tmp_path / "q.txt"), method=method)
    assert {name: counts(score) for name, score in scores.items()} == {
        "family": (4, 3, 3),
        "gram1-plural": (2, 2, 1),
        "semantic": (4, 3, 3),
        "syntactic": (2, 2, 1),
        "total": (6, 5, 4),
    }
    total = scores["total"]
    assert (total.accuracy, total.accuracy_of_all) == (4 / 5, 4 / 6)


def test_case_and_restriction(vectors, tmp_path):
    (tmp_path / "q.txt").write_text(QUESTIONS)
    sections = read_analogies(tmp_path / "q.txt")
    assert counts(answer_analogies(vectors, sections, fold_case=False)["family"]) == (4, 2, 2)
    restricted = answer_analogies(vectors, sections, restrict=4)
    assert counts(restricted["total"]) == (6, 3, 3) and counts(restricted["syntactic"]) == (2, 0, 0)
    assert restricted["syntactic"].accuracy == 0


def random_vectors(words, dimensions, seed):
    return WordVectors(words, np.random.default_rng(seed).normal(size=(len(words), dimensions)).astype(np.float32))


def test_analogies_equal_gensims(tmp_path):
    import gensim.models as gensim

    generator = np.random.default_rng(0)
    words = [f"W{number}" if number % 3 else f"w{number}" for number in range(60)] + ["w1", "w2"]  # W1 and w1: one word
    ours, theirs = random_vectors(words, 3, 1), gensim.KeyedVectors(3)
    theirs.add_vectors(words, ours.matrix)
    lines = []
    for section in ("semantic-one", "gram1-x"):
        lines.append(f": {section}")
        for _ in range(700):
            question = [f"w{number}" for number in generator.choice(66, 4, replace=False)]
            if generator.random() < 0.7 and all(word in theirs for word in question[:3]):
                question[3] = theirs.most_similar(positive=question[1:3], negative=question[:1], topn=1)[0][0]
            lines.append(" ".join(question))
    (tmp_path / "q.txt").write_text("\n".join(lines))
    scores = answer_analogies(ours, read_analogies(tmp_path / "q.txt"))
    accuracy, sections = theirs.evaluate_word_analogies(str(tmp_path / "q.txt"))
    by_name = {section["section"]: section for section in sections}
    for name in ("semantic-one", "gram1-x"):
        right, wrong = len(by_name[name]["correct"]), len(by_name[name]["incorrect"])
        assert (scores[name].correct, scores[name].answered) == (right, right + wrong)
    assert scores["total"].accuracy == pytest.approx(accuracy)
    assert 0 < scores["total"].correct < scores["total"].answered < 1400


def test_multiplied_cosines_equal_gensims(monkeypatch):
    """Its evaluation always adds, whatever function is asked for, so that each question is put to it by itself."""
    import gensim.models as gensim

    monkeypatch.setattr(word_vectors, "MULTIPLICATIVE_FLOOR", 1e-6)  # gensim's; the paper has 1e-3
    words = [f"w{number}" for number in range(200)]
    ours, theirs = random_vectors(words, 9, 4), gensim.KeyedVectors(9)
    theirs.add_vectors(words, ours.matrix)
    generator = np.random.default_rng(0)
    questions = []
    for _ in range(600):  # more than a batch
        a, b, c = (words[number] for number in generator.choice(200, 3, replace=False))
        answer = theirs.most_similar_cosmul(positive=[b, c], negative=[a], topn=2)
        questions.append((a, b, c, answer[0][0]))
    assert answer_analogies(ours, {"all": questions}, method="multiply")["total"].accuracy == 1
    assert answer_analogies(ours, {"all": questions}, method="add")["total"].accuracy < 0.9


def test_similarity_equals_gensims(tmp_path):
    import gensim.models as gensim

    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(50)]
    ours, theirs = random_vectors(words, 6, 2), gensim.KeyedVectors(6)
    theirs.add_vectors(words, ours.matrix)
    chosen = generator.choice(60 * 59 // 2, 200, replace=False)  # of the pairs of different words
    both = [(a, b) for a in range(60) for b in range(a)]
    pairs = [(f"W{a}", f"w{b}", float(generator.integers(0, 10))) for a, b in (both[number] for number in chosen)]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(f"{a}\t{b}\t{number}" for a, b, number in pairs))
    assert read_similarities(path) == pairs
    score = score_similarities(ours, pairs)
    _, right, unknown = theirs.evaluate_word_pairs(str(path))
    assert score.spearman == pytest.approx(right[0], abs=1e-6)
    assert 100 * (1 - score.known / score.pairs) == pytest.approx(unknown)
    _, right, _ = theirs.evaluate_word_pairs(str(path), dummy4unknown=True)
    assert score.spearman_of_all == pytest.approx(right[0], abs=1e-6)


def test_spearman():
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 6, 80), generator.normal(size=80)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert spearman(one, one**3) == pytest.approx(1) and spearman(one, -one) == pytest.approx(-1)
    assert spearman(np.ones(5), np.arange(5)) == 0 and spearman(np.empty(0), np.empty(0)) == 0


def test_separators_headers_and_comments(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("Word 1,Word 2,Human\ncar,auto,9.5\n# note\n\nsun,moon,3\n")
    assert read_similarities(path) == [("car", "auto", 9.5), ("sun", "moon", 3.0)]
    path.write_text("car auto 9.5 extra\n")
    assert read_similarities(path) == [("car", "auto", 9.5)]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_analogies, ": a\nx y z\n", "line 2: 3 words; expected four"),
        (read_analogies, "x y z w\n", "line 1: a question before the first section"),
        (read_analogies, ": a\n", "no questions in it"),
        (read_similarities, "a b 1\na b c\n", "line 2: expected two words and a number"),
        (read_similarities, "\n", "no pairs of words in it"),
    ],
)
def test_mistakes(tmp_path, read, text, message):
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "f")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none")
