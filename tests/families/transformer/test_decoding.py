"""Writing with a Transformer: the texts of transformers' MarianMT, of the model without a cache, and of enumeration."""

import itertools
import math

import pytest
import torch
import transformers

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.families.transformer.checkpoint import to_published
from stemma.families.transformer.model import LONGER, Transformer, TransformerConfig
from stemma.inference.beam import _Search, beam_search
from stemma.inference.encoder_decoder import SourceDecoder
from stemma.inference.engine import Engine
from stemma.inference.generate import generate
from stemma.inference.quantization import quantize_
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling

SOURCES = ["the quick brown fox", "jumps", "over the lazy dog while the quick brown fox jumps over it", ""]
VERSIONS = {
    "paper": {},
    "pre-norm": {"norm": "pre"},
    "published": {"attention_bias": True, "output_bias": True, "activation": "silu", "decoder_layers": 1},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SOURCES * 50, "bpe", 280).with_special_tokens(pad_token="<pad>")


def make_model(version: str, vocabulary: int, seed: int = 0) -> Transformer:
    """Random weights, large enough that what comes next depends on the source and on the text so far."""
    torch.manual_seed(seed)
    shape = {"hidden": 32, "heads": 4, "layers": 2, "feed_forward": 48, "vocabulary_multiple": 1}
    shape |= {"vocabulary": vocabulary, "padding": vocabulary - 1, **VERSIONS[version]}
    model = Transformer(TransformerConfig(**shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query.weight"):
                parameter.mul_(4.0)
            elif parameter.dim() == 1 or name == "final_bias":
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.token_embedding.weight.mul_(2.0)
        # Without this, random tied weights repeat the token just read.
        last = model.decoder.blocks[-1].feed_forward_residual.norm if model.config.norm == "post" else None
        (last or model.decoder.final_norm).weight.copy_(torch.randn(32))
    return model


def twin_of(model: Transformer) -> transformers.MarianMTModel:
    published, tensors = to_published(model)
    twin = transformers.MarianMTModel(transformers.AutoConfig.for_model(**{**published, "dropout": 0.0}))
    twin.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=False)
    return twin.eval()


@pytest.mark.parametrize("new_tokens", [5, 24])  # 24: with prepacked weights
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_drawn_is_as_likely_as_without_a_cache(version: str, new_tokens: int, tokenizer: Tokenizer) -> None:
    model = make_model(version, tokenizer.vocabulary)
    options = {"max_new_tokens": new_tokens, "temperature": 1.5, "log_probabilities": True, "seed": 0, "samples": 2}
    for text in generate(model, tokenizer, SOURCES, **options):
        source = torch.tensor([[*tokenizer.encode(SOURCES[text.prompt]), tokenizer.separator]])
        with torch.no_grad():
            expected = model(source, torch.tensor([text.tokens])).log_softmax(-1)[0]
        chosen = [float(row[token]) for row, token in zip(expected, text.tokens, strict=True)]
        assert text.log_probabilities == pytest.approx(chosen, abs=2e-4)
        assert len(set(text.tokens)) > 1


@pytest.mark.parametrize("version", VERSIONS)
def test_the_engine_writes_the_same(version: str, tokenizer: Tokenizer) -> None:
    model = make_model(version, tokenizer.vocabulary)
    expected = generate(model, tokenizer, SOURCES[:3], max_new_tokens=12, temperature=0)
    greedy = Sampling(temperature=0)
    requests = [Request(tokenizer.encode(source), max_new_tokens=12, sampling=greedy) for source in SOURCES[:3]]
    found = Engine(model, tokenizer).run(requests)
    assert [texts[0].new for texts in found] == [text.tokens for text in expected]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_transformers_where_lengths_are_judged_alike(beams: int, length_penalty: float) -> None:
    model, end = make_model("published", 30, seed=2), 4
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randint(5, 29, (size,), generator=generator).tolist() for size in (9, 4, 6)]
    decoder = SourceDecoder(model, sources, copies=[beams] * 3, new_tokens=10)
    ours = beam_search(decoder, beams=beams, limits=[10] * 3, end=end, length_penalty=length_penalty)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    theirs = twin_of(model).generate(
        padded,
        attention_mask=(padded > 0).long(),
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=end,
        pad_token_id=29,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for place, hypothesis in enumerate(itertools.chain(*ours)):
        assert theirs.sequences[place, 1 : 1 + len(hypothesis.tokens)].tolist() == hypothesis.tokens
        assert hypothesis.score == pytest.approx(theirs.sequences_scores[place].item(), abs=1e-4)


def test_the_length_penalty_is_wu_s_formula() -> None:
    """A text of 2 tokens with a log-probability of -2 and one of 7 with -3: ((5 + n) / 6)^0.6 is 1.097 and 1.516."""
    search = _Search(2, torch.tensor([9]), 0, 0.6, 5, False, False)
    assert search._score(-2.0, 2) == pytest.approx(-2.0 / (7 / 6) ** 0.6)
    assert search._score(-2.0, 2) == pytest.approx(-1.8233, abs=1e-4)
    assert search._score(-3.0, 7) == pytest.approx(-3.0 / 2**0.6)
    assert search._score(-3.0, 7) == pytest.approx(-1.9793, abs=1e-4)


def test_with_all_texts_as_beams_the_search_is_exact() -> None:
    """5 tokens, at most 3 of them, the last one ends a text: 4^3 + 4^2 + 4 + 1 = 85 texts, enumerated."""
    model, source, end = make_model("paper", 5, seed=1), [1, 3, 2, 0], 3
    texts = [(*body, end) for size in (0, 1, 2) for body in itertools.product((0, 1, 2, 4), repeat=size)]
    texts += list(itertools.product((0, 1, 2, 4), repeat=3))
    assert len(texts) == 85
    scored = []
    with torch.no_grad():
        for text in texts:
            log_probabilities = model(torch.tensor([source]), torch.tensor([text])).log_softmax(-1)[0]
            total = sum(float(log_probabilities[place, token]) for place, token in enumerate(text))
            scored.append((total / ((5 + len(text)) / 6) ** 0.6, text))
    scored.sort(reverse=True)
    decoder = SourceDecoder(model, [source], copies=[85], new_tokens=3)
    options = {"length_penalty": 0.6, "length_offset": model.length_offset}
    (found,) = beam_search(decoder, beams=85, limits=[3], end=end, exhaustive=True, **options)
    assert [tuple(hypothesis.tokens) for hypothesis in found] == [text for _, text in scored]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in scored], abs=1e-4)


def test_a_text_does_not_depend_on_the_others_and_scores_are_of_the_paper(tokenizer: Tokenizer) -> None:
    model = make_model("paper", tokenizer.vocabulary, seed=3)
    options = {"max_new_tokens": 15, "beams": 3, "length_penalty": 0.6, "log_probabilities": True, "samples": 2}
    together = generate(model, tokenizer, SOURCES, **options)
    alone = [text for source in SOURCES for text in generate(model, tokenizer, source, **options)]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens and one.score == pytest.approx(other.score, abs=1e-5)
        penalty = ((5 + len(one.tokens)) / 6) ** 0.6
        assert one.score == pytest.approx(math.fsum(one.log_probabilities) / penalty, abs=1e-4)


def test_a_text_is_at_most_50_tokens_longer_than_its_source(tokenizer: Tokenizer) -> None:
    model = make_model("paper", tokenizer.vocabulary)
    norm = model.decoder.blocks[-1].feed_forward_residual.norm
    with torch.no_grad():
        norm.bias -= 9 * model.token_embedding.weight[tokenizer.separator]
    for beams in (1, 2):
        for text in generate(model, tokenizer, SOURCES, max_new_tokens=200, temperature=1.0, beams=beams, seed=0):
            read = len(tokenizer.encode(SOURCES[text.prompt])) + 1
            assert (len(text.tokens), text.finish_reason) == (read + LONGER, "length")


def test_rounded_weights_write_nearly_as_whole_ones(tokenizer: Tokenizer) -> None:
    model = make_model("published", tokenizer.vocabulary)
    source, target = torch.randint(0, 250, (2, 7)), torch.randint(0, 250, (2, 5))
    with torch.no_grad():
        expected = model(source, target).softmax(-1)
        found = quantize_(model, "int8")(source, target).softmax(-1)
    assert 0 < float((found - expected).abs().max()) < 0.15
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
