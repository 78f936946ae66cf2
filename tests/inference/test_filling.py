"""`fill`: transformers' probabilities for BERT, exact enumeration for GLM and T5."""

import math
from itertools import product

import pytest
import torch
import transformers

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families.bert.checkpoint import to_published
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer as prepare_bert
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.tokens import GLMTokens, encode_context
from stemma.families.glm.tokens import prepare_tokenizer as prepare_glm
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.tokens import encode_source, sentinel_ids
from stemma.families.t5.tokens import prepare_tokenizer as prepare_t5
from stemma.inference.filling import fill
from stemma.inference.filling_scores import score_fillings
from stemma.inference.infilling import search_fillings

WORDS = "the quick brown fox jumps over the lazy dog while the dog sings "
TEXTS = ["the [MASK] fox jumps over the [MASK] dog", "[MASK] dog", "the lazy dog sings while the [MASK]"]


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return prepare_bert(train_tokenizer([WORDS * 30], "wordpiece", 300))


@pytest.fixture(scope="module")
def bert(wordpiece: Tokenizer) -> BERT:
    torch.manual_seed(0)
    shape = {"context": 32, "layers": 2, "hidden": 32, "heads": 4, "initial_std": 0.3}
    return BERT(BERTConfig(vocabulary=wordpiece.vocabulary, **shape)).eval()


def byte_level(prepare) -> Tokenizer:
    return prepare(train_tokenizer([WORDS * 30], "bpe", 290))


def test_bert_gives_transformers_probabilities(bert: BERT, wordpiece: Tokenizer) -> None:
    published, tensors = to_published(bert)
    twin = transformers.BertForMaskedLM(transformers.AutoConfig.for_model(**published)).eval()
    twin.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=False)
    twin.tie_weights()
    found = fill(bert, wordpiece, TEXTS, top_k=4)
    for text, candidates in zip(TEXTS, found, strict=True):
        parts = [wordpiece.encode(part) for part in text.split("[MASK]")]
        ids = [wordpiece.id("[CLS]"), *parts[0]]
        for part in parts[1:]:
            ids += [wordpiece.mask, *part]
        ids = torch.tensor([[*ids, wordpiece.id("[SEP]")]])
        with torch.no_grad():
            scores = twin(ids).logits[0, ids[0] == wordpiece.mask].log_softmax(-1)
        if len(scores) == 1:
            expected = scores[0].topk(4).values
        else:  # all combinations, not only those of the best of each
            expected = (scores[0].unsqueeze(1) + scores[1]).flatten().topk(4).values
        torch.testing.assert_close(torch.tensor([one.log_probability for one in candidates]), expected)
        best = [wordpiece.decode([int(row.argmax())], skip_special=False) for row in scores]
        assert candidates[0].pieces == best


def test_bert_texts_do_not_depend_on_each_other(
    bert: BERT, wordpiece: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [fill(bert, wordpiece, text)[0] for text in TEXTS]
    for size in (1, 12, 4096):
        monkeypatch.setattr("stemma.inference.filling._BATCH_TOKENS", size)
        together = fill(bert, wordpiece, TEXTS)
        for one, other in zip(alone, together, strict=True):
            assert [candidate.text for candidate in one] == [candidate.text for candidate in other]
            for left, right in zip(one, other, strict=True):
                assert left.log_probability == pytest.approx(right.log_probability, abs=1e-5)


def test_bert_writes_its_pieces_into_the_text(bert: BERT, wordpiece: Tokenizer) -> None:
    for candidate in fill(bert, wordpiece, "the [MASK] dog", top_k=200)[0]:
        (piece,) = candidate.pieces
        if piece.isalpha():
            assert candidate.text == f"the {piece} dog"
            break
    else:
        raise AssertionError("no word among the candidates")
    total = sum(math.exp(one.log_probability) for one in fill(bert, wordpiece, "the [MASK] dog", top_k=10_000)[0])
    assert total == pytest.approx(1, abs=1e-4)  # as many as there are tokens, not more


def glm_model(vocabulary: int) -> GLM:
    torch.manual_seed(1)
    model = GLM(GLMConfig(vocabulary=vocabulary, context=24, layers=2, hidden=24, heads=3)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm.weight" in name))
    return model


@pytest.mark.parametrize("text", ["the [MASK] dog", "the [MASK] dog [MASK] over"])
def test_glm_log_probabilities_are_those_of_one_teacher_forced_pass(text: str) -> None:
    tokenizer = byte_level(prepare_glm)
    model, ids = glm_model(tokenizer.vocabulary), GLMTokens.of(tokenizer)
    with torch.no_grad():
        model.final_norm.bias += 6 * model.token_embedding.weight[ids.piece_end]  # so that pieces end now and then
    context = encode_context(tokenizer, ids, text)
    found = search_fillings(model, ids, context, beams=5, limit=4)
    assert len(found) == 5
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)
    assert any(len(piece) == 4 for _, pieces in found for piece in pieces)  # these too are scored with their ends
    for score, pieces in found:
        assert score == pytest.approx(sum(score_fillings(model, ids, [context], [pieces])[0]), abs=1e-4)
    candidates = fill(model, tokenizer, text, top_k=5, max_piece_tokens=4)[0]
    assert [one.log_probability for one in candidates] == pytest.approx([score for score, _ in found], abs=1e-4)
    assert all(len(one.pieces) == text.count("[MASK]") for one in candidates)


def test_glm_finds_the_likeliest_of_all_single_tokens_that_end() -> None:
    tokenizer = byte_level(prepare_glm)
    model, ids = glm_model(tokenizer.vocabulary), GLMTokens.of(tokenizer)
    context = encode_context(tokenizer, ids, "the [MASK] dog")
    everything = [[token] for token in range(model.config.vocabulary) if token != ids.piece_end] + [[]]
    scores = score_fillings(model, ids, [context] * len(everything), [[piece] for piece in everything])
    expected = sorted(((score, piece) for (score,), piece in zip(scores, everything, strict=True)), reverse=True)
    # As wide as the vocabulary, the search leaves nothing out.
    found = search_fillings(model, ids, context, beams=model.config.vocabulary, limit=1)
    assert [pieces for _, pieces in found[:20]] == [[piece] for _, piece in expected[:20]]
    assert [score for score, _ in found[:20]] == pytest.approx([score for score, _ in expected[:20]], abs=1e-4)
    assert fill(model, tokenizer, "the [MASK] dog", top_k=model.config.vocabulary, max_piece_tokens=1)[0][
        0
    ].log_probability == pytest.approx(expected[0][0], abs=1e-4)


@pytest.mark.parametrize("family", ["glm", "t5"])
def test_a_likely_piece_that_never_ends_is_behind_one_that_does(family: str) -> None:
    """Cut at the limit, "fox fox" would be the likeliest by far; that it ends there has the probability e^-20."""
    tokenizer = byte_level(prepare_glm if family == "glm" else prepare_t5)
    fox, dog = (tokenizer.encode_batch([f" {word}"])[0][0] for word in ("fox", "dog"))
    if family == "glm":
        model = glm_model(tokenizer.vocabulary)
        end, first = GLMTokens.of(tokenizer).piece_end, GLMTokens.of(tokenizer).piece_start
    else:
        model = T5(T5Config(vocabulary=tokenizer.vocabulary, hidden=24, heads=3, head_dim=8, layers=1, feed_forward=8))
        model.eval()
        end, first = tokenizer.separator, sentinel_ids(tokenizer)[0]
    after = {fox: {fox: 0.0, end: -20.0}, dog: {end: 0.0}, first: {fox: 0.0, dog: -2.0}}
    read: list[int] = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        rows = torch.full((*hidden.shape[:-1], tokenizer.vocabulary), -60.0)
        for row, token in zip(rows.view(-1, tokenizer.vocabulary), read, strict=True):
            for following, score in after.get(token, {first: 0.0}).items():
                row[following] = score
        return rows

    embedding = model.token_embedding.forward

    def watched(tokens: torch.Tensor) -> torch.Tensor:
        read[:] = tokens.flatten().tolist()
        return embedding(tokens)

    model.token_embedding.forward = watched  # type: ignore[method-assign]
    model.logits = logits  # type: ignore[method-assign]
    found = fill(model, tokenizer, "the [MASK] jumps", top_k=3, max_piece_tokens=2)[0]
    assert found[0].pieces == ["dog"]
    likely = math.log(math.exp(-2.0) / (1 + math.exp(-2.0)))
    assert found[0].log_probability == pytest.approx(likely, abs=1e-3)
    assert all(one.log_probability < -15 for one in found[1:])


def test_t5_log_probabilities_are_exact() -> None:
    tokenizer = byte_level(prepare_t5)
    torch.manual_seed(0)
    shape = {"hidden": 32, "heads": 4, "head_dim": 8, "layers": 2, "feed_forward": 48, "vocabulary_multiple": 1}
    model = T5(T5Config(vocabulary=tokenizer.vocabulary, **shape)).eval()
    sentinels, end = sentinel_ids(tokenizer), tokenizer.separator
    # A model that knows three tokens only, so that all targets can be written down.
    words = tokenizer.encode(" dog fox")
    kept = torch.full((tokenizer.vocabulary,), -1e9)
    kept[[sentinels[0], words[0], end]] = 0
    plain = model.logits
    model.logits = lambda hidden: plain(hidden) + kept  # type: ignore[method-assign]
    found = fill(model, tokenizer, "the [MASK] jumps", top_k=4, max_piece_tokens=2)[0]
    source = torch.tensor([encode_source(tokenizer, "the<extra_id_0> jumps")])
    expected: dict[tuple[int, ...], float] = {}
    for length in range(1, 6):
        for target in product([sentinels[0], words[0], end], repeat=length):
            if end in target[:-1] or target[-1] != end:
                continue
            with torch.no_grad():
                scores = model(source, torch.tensor([target]))[0].log_softmax(-1)
            score = float(scores[torch.arange(length), list(target)].sum())
            # What stands before the blank is named belongs to none; behind, naming it again changes nothing.
            first = target.index(sentinels[0]) if sentinels[0] in target else length
            key = tuple(token for token in target[first:] if token == words[0])
            expected[key] = float(torch.logaddexp(torch.tensor(expected.get(key, -math.inf)), torch.tensor(score)))
    # Beams keep a part of the targets that say the same, so theirs is a lower bound, and near for the likeliest.
    by_text = {tokenizer.decode(list(piece)).strip(): score for piece, score in expected.items()}
    assert {one.pieces[0] for one in found} <= set(by_text)
    for one in found:
        assert one.log_probability <= by_text[one.pieces[0]] + 1e-4
    assert math.exp(found[0].log_probability) > 0.3


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no blank here", {}, r"no blank in 'no blank here': expected \[MASK\] in it"),
        ("[MASK] dog " * 20, {}, "the model reads 32"),
        ("[MASK]", {"top_k": 0}, "top_k is 0"),
    ],
)
def test_says_what_is_wrong(bert: BERT, wordpiece: Tokenizer, text: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fill(bert, wordpiece, text, **options)


def test_a_gpt_cannot(wordpiece: Tokenizer) -> None:
    model = GPT(GPTConfig(vocabulary=wordpiece.vocabulary, context=8, layers=1, hidden=8, heads=1)).eval()
    with pytest.raises(InputError, match="a GPT cannot fill blanks: expected a BERT, T5 or GLM"):
        fill(model, wordpiece, "[MASK]")
