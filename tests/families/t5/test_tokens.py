"""Sentinels in own and in T5's tokenizers, sources with gaps, and targets cut into what fills them."""

import os
from pathlib import Path

import numpy as np
import pytest

from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.families.t5.corruption import span_noise, with_sentinels
from stemma.families.t5.objective import SpanCorruption
from stemma.families.t5.tokens import encode_source, sentinel_ids, split_spans

TOKENIZERS = Path(os.environ.get("STEMMA_PUBLISHED_TOKENIZERS", Path(__file__).parents[4] / "shared/data/tokenizers"))
PUBLISHED = TOKENIZERS / "t5/t5_tokenizer_base.model"
GAPS = ["The <extra_id_0> walks in <extra_id_1> park", "un<extra_id_0>able", "<extra_id_0> a  <extra_id_10>", "no gap"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return SpanCorruption.prepare_tokenizer(train_tokenizer(["the quick brown fox jumps; " * 20], "unigram", 380), {})


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_own_tokenizers_get_sentinels_at_their_end(kind: str) -> None:
    own = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 20], kind, 380)
    adapted = SpanCorruption.prepare_tokenizer(own, {})
    ids = sentinel_ids(adapted)
    assert ids == tuple(range(own.vocabulary + 99, own.vocabulary - 1, -1))
    assert sentinel_ids(SpanCorruption.prepare_tokenizer(adapted, {})) == ids
    assert adapted.encode("the <extra_id_0> fox") == own.encode("the <extra_id_0> fox")
    assert sentinel_ids(own) == ()


def test_a_source_reads_sentinels_and_ends(tokenizer: Tokenizer) -> None:
    first, second = sentinel_ids(tokenizer)[:2]
    ids = encode_source(tokenizer, "the <extra_id_0> fox<extra_id_1>")
    assert ids == [*tokenizer.encode("the "), first, *tokenizer.encode(" fox"), second, tokenizer.separator]
    assert encode_source(tokenizer, "") == [tokenizer.separator]
    # an unknown sentinel is text
    assert encode_source(tokenizer, "<extra_id_100>") == [*tokenizer.encode("<extra_id_100>"), tokenizer.separator]


def test_spans_are_what_the_target_has_behind_each_sentinel() -> None:
    assert split_spans([99, 5, 6, 98, 97, 7], [99, 98, 97], 3) == [[5, 6], [], [7]]
    assert split_spans([4, 98, 5, 96, 6], [99, 98, 97, 96], 3) == [[], [5], []]
    tokens, sentinels = np.arange(200, 341), range(199, 99, -1)
    noise = span_noise(141, 0.15, 3.0, np.random.default_rng(0))
    source, target = (with_sentinels(tokens, replaced, sentinels).tolist() for replaced in (noise, ~noise))
    spans = iter(split_spans(target, sentinels, 7))
    text = [part for token in source for part in (next(spans) if token in sentinels else [token])]
    assert text == tokens.tolist()


def test_sources_are_those_of_transformers_for_an_own_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ["the <extra_id_0> fox <extra_id_1>jumps", "<extra_id_3> quick", "fox"]:
        assert encode_source(tokenizer, text) == theirs(text)["input_ids"]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="T5's published vocabulary is not on this machine")
def test_sources_of_the_published_vocabulary_are_those_of_transformers(tmp_path: Path) -> None:
    import transformers

    (tmp_path / "spiece.model").write_bytes(PUBLISHED.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"extra_ids": 100, "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>"}'
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for ours in (load_tokenizer(tmp_path), SpanCorruption.prepare_tokenizer(load_tokenizer(PUBLISHED), {})):
        assert sentinel_ids(ours) == tuple(range(32_099, 31_999, -1))
        for text in GAPS:
            assert encode_source(ours, text) == theirs(text)["input_ids"]
