"""The frameworks that are compared: as many parameters each, recipes that train, one vocabulary."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.families.bert.tokens import BERTTokens
from stemma.families.glm.tokens import GLMTokens
from stemma.families.t5.tokens import sentinel_ids
from stemma.insights.arms import ARMS, Scale, common_tokenizer, configurations, count_parameters, recipe_of
from stemma.insights.reproduce import SCALES
from stemma.training.pretrain import prepare_run, pretrain

TINY = Scale(1, 32, 2, 300, 1, 2, 32)
DEFAULT = Scale(2, 128, 4, 1024, 400, 8, 64)
COMPARED = {"default": DEFAULT, "wide": Scale(6, 256, 8, 4096, 400, 32, 128), **SCALES}
SENTENCES = [
    "The quick brown fox jumps over the lazy dog while the cat sings. ",
    "Nobody knows why a river bends, or where the road may lead us. ",
    "Four words are enough! Are they? Ask Anna and Boris in Paris. ",
]


@pytest.mark.parametrize("name", COMPARED)
def test_all_have_as_many_parameters(name: str) -> None:
    """Within 2 % of GLM's, by the numbers of parameters of the built modules."""
    scale, arms = COMPARED[name], list(ARMS.values())
    vocabulary = scale.vocabulary + 110
    configs = configurations(arms, scale, vocabulary)
    counts = {arm: count_parameters(ARMS[arm].family, config) for arm, config in zip(ARMS, configs, strict=True)}
    hidden, layers, context = scale.hidden, scale.layers, scale.context
    # As in the paper: V H + 2 (context + 1) H + L (12 H^2 + 13 H) + 2 H.
    glm = vocabulary * hidden + 2 * (context + 1) * hidden + layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden
    assert counts["glm"] == counts["glm-in-order"] == glm
    # An ablation is GLM but for what it varies: a table, and the last row of the other.
    assert counts.pop("glm-one-position") == glm - (context + 2) * hidden
    for sparse in ("mixtral", "mixtral-uneven"):  # see test_mistral_claims.py
        del counts[sparse]
    for arm, count in counts.items():
        assert abs(count / (glm * ARMS[arm].size) - 1) < 0.02, arm
    assert ARMS["t5-twice"].size == 2 and {arm.size for arm in arms} == {1, 2}
    depths = {arm: config.layers for arm, config in zip(ARMS, configs, strict=True)}
    assert depths.pop("t5") == layers // 2 and set(depths.values()) == {layers}


@pytest.mark.parametrize("name", ARMS)
def test_the_counted_parameters_are_those_of_a_built_model(name: str) -> None:
    (config,) = configurations([ARMS[name]], DEFAULT, 1200)
    model = families.family(ARMS[name].family).model(config)
    assert count_parameters(ARMS[name].family, config) == len(torch.nn.utils.parameters_to_vector(model.parameters()))


def test_a_ratio_of_parameters_does_not_depend_on_what_else_is_compared() -> None:
    arms = list(ARMS.values())
    together = configurations(arms, DEFAULT, 1200)
    assert together == [configurations([arm], DEFAULT, 1200)[0] for arm in arms]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train_tokenizer([sentence * 20 for sentence in SENTENCES], "bpe", 300)


def test_the_common_tokenizer_has_the_special_tokens_of_all_families_once(plain: Tokenizer) -> None:
    tokenizer = common_tokenizer(plain)
    names = [tokenizer.token(index) for index in range(tokenizer.vocabulary)]
    assert len(set(names)) == tokenizer.vocabulary == 300 + 4 + 6 + 100
    assert names[:300] == [plain.token(index) for index in range(300)]
    assert sorted(tokenizer.special - plain.special) == list(range(300, tokenizer.vocabulary))
    texts = [*SENTENCES, "[MASK] <extra_id_0> [CLS] naïve 🙂"]
    assert tokenizer.encode_batch(texts) == plain.encode_batch(texts)
    bert, glm, sentinels = BERTTokens.of(tokenizer), GLMTokens.of(tokenizer), sentinel_ids(tokenizer)
    assert (bert.first, bert.mask, bert.separator) == (glm.beginning, glm.mask, glm.separator)
    assert len(sentinels) == 100 and sentinels[0] == tokenizer.vocabulary - 1
    assert len({glm.mask, glm.sentence_mask, glm.document_mask, glm.piece_start, glm.piece_end, bert.last}) == 6
    assert common_tokenizer(tokenizer).fingerprint == tokenizer.fingerprint  # nothing is missing
    assert common_tokenizer(plain, sentinels=2).vocabulary == tokenizer.vocabulary + 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, plain: Tokenizer) -> dict[str, Any]:
    """A text, the tokenizer that all share, and a cache."""
    folder = tmp_path_factory.mktemp("arms")
    text = folder / "text.txt"
    text.write_text("\n".join("".join(SENTENCES) * 3 for _ in range(30)), encoding="utf-8")
    common_tokenizer(plain).save(folder / "tokenizer")
    source = {"source": str(text), "documents": "line", "held_out": 0.2}
    return {"tokenizer": str(folder / "tokenizer"), "source": source, "cache": folder / "cache"}


def recipe(name: str, shared: dict[str, Any], seed: int = 1) -> Any:
    (config,) = configurations([ARMS[name]], TINY, load_tokenizer(shared["tokenizer"]).vocabulary)
    return recipe_of(ARMS[name], config, TINY, tokenizer=shared["tokenizer"], source=shared["source"], seed=seed)


@pytest.mark.parametrize("name", ARMS)
def test_a_recipe_gives_the_model_and_the_tokenizer_that_were_compared(name: str, shared: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(shared["tokenizer"])
    (config,) = configurations([ARMS[name]], TINY, tokenizer.vocabulary)
    prepared = prepare_run(recipe(name, shared), cache=shared["cache"])
    assert prepared.tokenizer.fingerprint == tokenizer.fingerprint  # no objective adapts anything more
    assert prepared.task.model.config == config
    assert prepared.summary["parameters"] == count_parameters(ARMS[name].family, config)
    assert prepared.summary["tokens"] == TINY.tokens == 64
    # All read the same text.
    gpt = prepare_run(recipe("gpt", shared), cache=shared["cache"])
    assert prepared.corpus.fingerprint == gpt.corpus.fingerprint


@pytest.mark.parametrize("name", ARMS)
def test_a_step_is_trained(name: str, shared: dict[str, Any], tmp_path: Path) -> None:
    outcome = pretrain(recipe(name, shared), tmp_path / "run", cache=shared["cache"])
    assert outcome.reason == "finished" and outcome.progress.step == 1
    assert outcome.progress.evaluation["loss"] > 1
    model = families.load(tmp_path / "run")
    assert not model.training and model.config.vocabulary == load_tokenizer(tmp_path / "run").vocabulary


def test_the_tokens_of_a_scale() -> None:
    assert TINY.context == 72 and DEFAULT.context == 112
    assert DEFAULT.tokens == 204_800
