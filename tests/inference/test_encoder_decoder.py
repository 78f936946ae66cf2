"""Generation with a T5: transformers' tokens, the model's own logits, and each source read once."""

from itertools import pairwise

import pytest
import torch
import transformers

from stemma.data.tokenizers import Tokenizer
from stemma.families.t5.checkpoint import to_published
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.tokens import encode_source, prepare_tokenizer
from stemma.inference import encoder_decoder, job
from stemma.inference.beam import beam_search
from stemma.inference.encoder_decoder import SourceCache, SourceDecoder
from stemma.inference.generate import generate, stream

SOURCES = ["the quick brown <extra_id_0> jumps", "lazy", "jumps over the lazy dog while naïve öl and <extra_id_0>", ""]
VERSIONS = {
    "1.0": {},
    "1.1": {
        "gated": True,
        "activation": "gelu_tanh",
        "tie_output": False,
        "scale_output": False,
        "layers": 3,
        "decoder_layers": 2,
    },
}


@pytest.fixture(scope="module")
def sentinels(tokenizer: Tokenizer) -> Tokenizer:
    return prepare_tokenizer(tokenizer)


def make_model(version: str, vocabulary: int, seed: int = 0) -> T5:
    """Random weights, large enough that what comes next depends on the source and on the text so far."""
    torch.manual_seed(seed)
    shape = {"hidden": 32, "heads": 4, "head_dim": 6, "layers": 2, "feed_forward": 48, "vocabulary_multiple": 1}
    model = T5(T5Config(vocabulary=vocabulary, **{**shape, **VERSIONS[version]})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attention.query.weight", "relative_bias.weight")):
                parameter.mul_(4.0)
            elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                parameter.mul_(3.0)
        # Without this, random tied weights repeat the token just read.
        model.decoder.final_norm.weight.copy_(4 * torch.randn(32))
    return model


def twin_of(model: T5) -> transformers.T5ForConditionalGeneration:
    published, tensors = to_published(model)
    config = transformers.AutoConfig.for_model(**published)
    twin = transformers.T5ForConditionalGeneration(config)
    if model.output is not None:
        twin.lm_head.weight = torch.nn.Parameter(model.output.weight.detach().clone())
    twin.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=False)
    twin.generation_config.decoder_start_token_id = model.config.start
    return twin.eval()


def without_cache(model: T5, source: list[int], end: int, count: int) -> list[int]:
    """Greedy search the plain way: all of the target through the decoder for each token."""
    tokens = [model.config.start]
    with torch.no_grad():
        encoded = model.encode(torch.tensor([source]))
        while len(tokens) <= count and tokens[1:][-1:] != [end]:
            tokens.append(int(model.logits(model.decode(torch.tensor([tokens]), encoded)[0, -1]).argmax()))
    return tokens[1:]


@pytest.mark.parametrize("new_tokens", [5, 24])  # 24: with prepacked weights
@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_tokens_are_those_without_a_cache(version, new_tokens, sentinels):
    model = make_model(version, sentinels.vocabulary)
    texts = generate(model, sentinels, SOURCES, max_new_tokens=new_tokens, temperature=0)
    for source, text in zip(SOURCES, texts, strict=True):
        expected = without_cache(model, encode_source(sentinels, source), sentinels.separator, new_tokens)
        assert text.tokens == expected
        assert text.finish_reason == ("end" if expected[-1] == sentinels.separator else "length")
    assert len({tuple(text.tokens) for text in texts}) == len(SOURCES)
    assert len({token for text in texts for token in text.tokens}) > new_tokens


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_tokens_are_those_of_transformers(version, penalty, sentinels):
    model = make_model(version, sentinels.vocabulary, seed=1)
    twin, end = twin_of(model), sentinels.separator
    texts = generate(model, sentinels, SOURCES, max_new_tokens=16, temperature=0, repetition_penalty=penalty)
    for source, text in zip(SOURCES, texts, strict=True):
        tokens = torch.tensor([encode_source(sentinels, source)])
        options = {"do_sample": False, "repetition_penalty": penalty, "eos_token_id": end, "pad_token_id": end}
        expected = twin.generate(tokens, max_new_tokens=16, **options)
        assert text.tokens == expected[0, 1:].tolist()


@pytest.mark.parametrize(("beams", "length_penalty"), [(2, 1.0), (4, 0.6), (5, 0.0), (3, 2.0)])
@pytest.mark.parametrize("version", VERSIONS)
def test_beams_are_those_of_transformers(version, beams, length_penalty):
    end, new_tokens, ended = 5, 10, 0
    for seed in range(3):
        model = make_model(version, vocabulary=12, seed=seed)
        sources = [torch.randint(1, 12, (length,)).tolist() for length in (6, 1, 9)]
        decoder = SourceDecoder(model, sources, copies=[beams] * 3, new_tokens=new_tokens)
        found = beam_search(decoder, beams=beams, limits=[new_tokens] * 3, end=end, length_penalty=length_penalty)
        twin = twin_of(model)
        for source, hypotheses in zip(sources, found, strict=True):
            expected = twin.generate(
                torch.tensor([source]),
                max_new_tokens=new_tokens,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=length_penalty,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            )
            assert len(hypotheses) == beams
            rows = zip(hypotheses, expected.sequences[:, 1:].tolist(), expected.sequences_scores.tolist(), strict=True)
            for hypothesis, text, score in rows:
                assert text[: len(hypothesis.tokens)] == hypothesis.tokens
                assert hypothesis.score == pytest.approx(score, abs=1e-4)
                ended += end in hypothesis.tokens
    assert 0 < ended < 9 * beams


def test_beam_search_finds_the_same_with_and_without_sharing_the_sources(sentinels, monkeypatch):
    model = make_model("1.1", sentinels.vocabulary, seed=3)
    shared = generate(model, sentinels, SOURCES, beams=4, samples=4, max_new_tokens=8)
    monkeypatch.setattr(encoder_decoder, "groupby", lambda rows: ((row, [row]) for row in rows))
    apart = generate(model, sentinels, SOURCES, beams=4, samples=4, max_new_tokens=8)
    assert [text.tokens for text in shared] == [text.tokens for text in apart]


def test_a_source_is_read_once_whatever_is_written_about_it(sentinels):
    model, read = make_model("1.0", sentinels.vocabulary), []
    for block in model.decoder.blocks:
        block.cross_attention.key.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    decoder = SourceDecoder(model, [[5, 6, 1], [7, 8, 1]], copies=[3, 3], new_tokens=6)
    logits = decoder.read_prompts()
    for _ in range(5):
        logits = decoder.step(logits.argmax(-1))
    assert read == [2, 2]  # two layers, two sources; not the six rows, not the six tokens
    key, value = decoder.cache.source(0)
    assert key.shape == value.shape == (2, 4, 3, 6)


def test_sources_of_many_lengths_are_read_together_with_those_of_about_their_length(sentinels, monkeypatch):
    monkeypatch.setattr(encoder_decoder, "PIECE_TOKENS", 12)
    model = make_model("1.1", sentinels.vocabulary)
    lengths = (2, 9, 1, 4, 3, 4)
    sources = [torch.randint(2, 300, (length,)).tolist() for length in lengths]
    decoder = SourceDecoder(model, sources, new_tokens=3)
    encode, shapes = model.encode, []
    monkeypatch.setattr(
        model, "encode", lambda tokens, mask: (shapes.append(tuple(tokens.shape)), encode(tokens, mask))[1]
    )
    first = decoder.read_prompts()
    assert shapes == [(3, 3), (2, 4), (1, 9)]
    for row, source in enumerate(sources):
        with torch.no_grad():
            alone = model(torch.tensor([source]), torch.tensor([[0]]))[0, 0]
        torch.testing.assert_close(first[row], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("copies", [[2, 2, 2], [1, 3, 2]])
def test_every_step_equals_the_whole_target_while_rows_go_and_move(copies, sentinels):
    model = make_model("1.1", sentinels.vocabulary)
    sources = [[5, 6, 7, 8, 1], [9, 1], [10, 11, 12, 1]]
    decoder = SourceDecoder(model, sources, copies=copies, new_tokens=8)
    rows = [(source, [0]) for source, count in zip(sources, copies, strict=True) for _ in range(count)]
    generator = torch.Generator().manual_seed(0)

    def check(logits: torch.Tensor) -> None:
        for (source, text), found in zip(rows, logits, strict=True):
            with torch.no_grad():
                hidden = model.decode(torch.tensor([text]), model.encode(torch.tensor([source])))
            torch.testing.assert_close(found, model.logits(hidden[0, -1]), atol=1e-4, rtol=1e-5)

    check(decoder.read_prompts())
    for order in (None, [0, 1, 5, 3, 4], None, [4, 1, 2], [2, 1], None):
        if order is not None:
            decoder.keep(order)
            rows = [rows[row] for row in order]
        tokens = torch.randint(300, (len(rows),), generator=generator)
        rows = [(source, [*text, token]) for (source, text), token in zip(rows, tokens.tolist(), strict=True)]
        check(decoder.step(tokens))


def test_samples_do_not_depend_on_what_else_is_in_the_batch(sentinels, monkeypatch):
    model, options = make_model("1.0", sentinels.vocabulary), {"max_new_tokens": 12, "seed": 7, "temperature": 3.0}
    together = generate(model, sentinels, SOURCES, samples=3, **options)
    alone = [text for source in SOURCES for text in generate(model, sentinels, source, samples=3, **options)]
    assert [text.tokens for text in together] == [text.tokens for text in alone]
    assert len({tuple(text.tokens) for text in together}) == 12
    monkeypatch.setattr(job, "_MOST_ROWS", 2)  # samples of one source in different batches
    batches = generate(model, sentinels, SOURCES, samples=3, **options)
    assert [text.tokens for text in batches] == [text.tokens for text in alone]


def test_log_probabilities_are_those_of_the_whole_target(sentinels):
    model = make_model("1.1", sentinels.vocabulary)
    texts = generate(model, sentinels, SOURCES, max_new_tokens=10, seed=0, log_probabilities=True)
    for source, text in zip(SOURCES, texts, strict=True):
        target = torch.tensor([text.tokens])
        with torch.no_grad():
            logits = model(torch.tensor([encode_source(sentinels, source)]), target)
        expected = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).flatten()
        assert text.log_probabilities == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_text_is_what_is_written_and_not_the_source(sentinels):
    model = make_model("1.0", sentinels.vocabulary)
    text = generate(model, sentinels, "lazy", max_new_tokens=9, temperature=0)[0]
    assert text.text == sentinels.decode(text.tokens)
    pieces = list(stream(model, sentinels, "lazy", max_new_tokens=9, temperature=0))
    assert "".join(pieces) == text.text and len(pieces) > 1


def test_low_precision(sentinels):
    model = make_model("1.1", sentinels.vocabulary)
    exact = SourceDecoder(model, [[5, 6, 1], [9, 1]], new_tokens=3)
    low = SourceDecoder(make_model("1.1", sentinels.vocabulary).bfloat16(), [[5, 6, 1], [9, 1]], new_tokens=3)
    assert low.cache.source(0)[0].dtype == torch.float32  # on a CPU
    one, other = exact.read_prompts(), low.read_prompts()
    assert other.dtype == torch.float32
    assert (one - other).abs().mean() < 0.1 * one.std()


def test_rows_moved_in_place_read_no_overwritten_row():
    buffer = torch.arange(5).view(1, 5, 1).clone()
    assert encoder_decoder._rearranged(buffer, [4, 1, 3]).flatten().tolist() == [4, 1, 3]
    buffer = torch.arange(3).view(1, 3, 1).clone()
    assert encoder_decoder._rearranged(buffer, [0, 0, 1, 2]).flatten().tolist() == [0, 0, 1, 2]
    assert all(a < b for a, b in pairwise(buffer.flatten().tolist()))


def test_a_cache_holds_no_more_than_its_rows_need(sentinels):
    model = make_model("1.0", sentinels.vocabulary)
    cache = SourceCache(model, [3, 2], [2, 2], 4)
    cache.hold_sources()
    assert cache.source(0)[0].shape[0] == 2 and cache.source_mask is not None
    cache.keep([0, 1])
    assert cache.source(0)[0].shape[0] == 1 and cache.source_mask is None
