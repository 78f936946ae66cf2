"""Measures of layers: closed forms, and the published values where the published scores are at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from stemma.probing.layer_analysis import centre_of_gravity, divergence_from_uniform, expected_layer, is_ordered

PUBLISHED = (
    Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data")) / "reference/layer_probing"
)


def test_expected_layer_in_closed_form() -> None:
    # Gains 0.2 at layer 1 and 0.6 at layer 3; a loss of 0.1 at layer 4 counts as it is.
    assert expected_layer(np.array([0.1, 0.3, 0.3, 0.9])) == pytest.approx((0.2 * 1 + 0.6 * 3) / 0.8)
    assert expected_layer(np.array([0.1, 0.3, 0.3, 0.9, 0.8])) == pytest.approx((0.2 + 1.8 - 0.4) / 0.7)
    rows = expected_layer(np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
    assert rows.tolist() == [1.0, 2.0]
    assert not np.isfinite(expected_layer(np.array([0.5, 0.6, 0.5])))


def test_without_gain_there_is_no_order() -> None:
    assert is_ordered(np.array([0.5, 0.5, 0.6])) and not is_ordered(np.array([0.5, 0.7, 0.505]))
    assert not is_ordered(np.array([0.6, 0.5, 0.5])) and not is_ordered(np.array([0.561, 0.570]))


def test_shares_of_a_mix_in_closed_form() -> None:
    assert centre_of_gravity(np.array([0.25, 0.25, 0.5])) == 1.25
    assert divergence_from_uniform(np.full(4, 0.25)) == 0.0
    assert divergence_from_uniform(np.array([0.0, 1.0, 0.0, 0.0])) == 2.0
    assert divergence_from_uniform(np.array([0.5, 0.25, 0.25])) == pytest.approx(np.log2(3) - 1.5)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the scores behind the paper's figures")
def test_published_values() -> None:
    scores = json.loads((PUBLISHED / "bertlayer_F1_by_layer_val.json").read_text())
    expected = {
        "pos-ontonotes-_micro_avg_": 3.386,
        "nonterminal-ontonotes-_micro_avg_": 3.793,
        "dep-labeling-ewt-_micro_avg_": 5.692,
        "ner-ontonotes-_micro_avg_": 4.645,
        "srl-conll2012-_clean_micro_": 6.537,
        "coref-ontonotes-conll-1": 9.471,
        "spr1-_micro_avg_": 9.929,
        "rel-semeval-_clean_micro_": 9.400,
    }
    found = {name: float(expected_layer(np.array(scores["bert-large"][name]))) for name in expected}
    assert found == pytest.approx(expected, abs=6e-4)
    dpr = np.array(scores["bert-base"]["dpr-_micro_avg_"])
    assert expected_layer(dpr) == pytest.approx(23.9, abs=0.06) and not is_ordered(dpr / 100)
    mixes = json.loads((PUBLISHED / "bertlayer_scalar_mix.json").read_text())
    for task in (task for tasks in mixes.values() for task in tasks.values()):
        shares = np.array(task["weights"])
        assert centre_of_gravity(shares) == pytest.approx(task["center_of_gravity"], abs=1e-4)
        assert divergence_from_uniform(shares) == pytest.approx(task["kl_unif_bits"], abs=1e-4)
