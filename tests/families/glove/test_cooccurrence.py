"""Counts, with and without spilling to disk, against brute force; and that every order is as likely."""

from collections import defaultdict

import numpy as np
import pytest

from stemma.data import word_corpora  # noqa: E402
from stemma.data.word_corpora import END  # noqa: E402
from stemma.errors import InputError  # noqa: E402
from stemma.families.glove import cooccurrence  # noqa: E402
from stemma.families.glove.cooccurrence import RECORD, RUN, count_pairs, merge_runs, write_records  # noqa: E402
from stemma.families.glove.model import GloVeConfig  # noqa: E402

WORDS = 40


@pytest.fixture(scope="module")
def tokens():
    generator = np.random.default_rng(0)
    return np.minimum(generator.geometric(0.08, 6000) - 2, WORDS - 1).astype(np.int32)  # -1 is the end of a sentence


def brute_force(tokens, config):
    counts = defaultdict(float)
    for place, word in enumerate(tokens.tolist()):
        if word == END:
            continue
        for distance in range(1, config.window + 1):
            if place - distance < 0 or tokens[place - distance] == END:
                break
            left = int(tokens[place - distance])
            weight = 1 / distance if config.distance_weighting else 1
            counts[left, word] += weight
            if config.symmetric:
                counts[word, left] += weight
    return counts


def as_dictionary(records):
    found = {(int(r["first"]), int(r["second"])): float(r["count"]) for r in records}
    assert len(found) == len(records)
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("slots, block", [(1 << 16, 1 << 22), (256, 100), (128, 7)])
def test_counts_equal_brute_force(tokens, tmp_path, monkeypatch, symmetric, weighted, slots, block):
    monkeypatch.setattr(word_corpora, "BLOCK", block)
    monkeypatch.setattr(cooccurrence, "FIRST_SLOTS", 128)
    config = GloVeConfig(window=6, symmetric=symmetric, distance_weighting=weighted)
    runs = count_pairs(tokens, WORDS, config, tmp_path, slots)
    assert (len(runs) > 3) == (slots <= 256)
    merged = np.concatenate(list(merge_runs(runs, 50)))
    assert (np.diff(merged["pair"]) > 0).all()
    records = cooccurrence._records(merged, WORDS, symmetric)
    expected = brute_force(tokens, config)
    found = as_dictionary(records)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[pair] for pair in expected], list(expected.values()), rtol=1e-6)


def test_records_on_disk(tokens, tmp_path, monkeypatch):
    config = GloVeConfig(window=4)
    write_records(tokens, WORDS, config, tmp_path / "whole.bin")
    monkeypatch.setattr(cooccurrence, "BYTES_A_SLOT", 1 << 17)  # so that the smallest memory is 64 slots
    monkeypatch.setattr(cooccurrence, "FIRST_SLOTS", 64)
    write_records(tokens, WORDS, config, tmp_path / "spilled.bin", memory=16.8e6)
    whole, spilled = (np.fromfile(tmp_path / name, RECORD) for name in ("whole.bin", "spilled.bin"))
    expected = brute_force(tokens, config)
    for records in (whole, spilled):
        found = as_dictionary(records)
        np.testing.assert_allclose([found[pair] for pair in expected], list(expected.values()), rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spilled.bin", "whole.bin"]
    assert np.abs(np.corrcoef(np.arange(len(whole)), whole["first"])[0, 1]) < 0.1


def test_dealing_and_shuffling_makes_every_place_as_likely(tmp_path):
    places = np.zeros((6, 6))
    run = np.zeros(6, RUN)
    run["pair"] = np.arange(6)
    for seed in range(150):
        records = iter([cooccurrence._records(run, 6, False)])
        cooccurrence._shuffle(records, tmp_path / "out.bin", tmp_path, 3, np.random.default_rng(seed))
        places[np.arange(6), np.fromfile(tmp_path / "out.bin", RECORD)["second"]] += 1
    assert np.abs(places - 25).max() < 4.5 * np.sqrt(25 * 5 / 6)


def test_a_word_beside_itself_is_counted_in_both_directions(tmp_path):
    write_records(np.array([0, 0, 1], np.int32), 2, GloVeConfig(window=1), tmp_path / "r.bin")
    assert as_dictionary(np.fromfile(tmp_path / "r.bin", RECORD)) == {(0, 0): 2.0, (0, 1): 1.0, (1, 0): 1.0}


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="no two words come together"):
        write_records(np.array([0, END, 1], np.int32), 2, GloVeConfig(), tmp_path / "r.bin")
    with pytest.raises(InputError, match="memory: 100000 bytes; expected at least"):
        write_records(np.array([0, 1], np.int32), 2, GloVeConfig(), tmp_path / "r.bin", memory=1e5)
    assert not list(tmp_path.iterdir())
