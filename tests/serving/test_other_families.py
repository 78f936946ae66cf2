"""Models that do not go on with a prompt are served too: blanks, vectors, scores, texts about a source."""

import numpy as np
import pytest
import torch

from stemma.data.tokenizers import train_tokenizer
from stemma.families import save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.tokens import prepare_tokenizer as prepare_t5
from stemma.inference.embeddings import embed
from stemma.inference.filling import fill
from stemma.inference.generate import generate

TEXTS = ["the [MASK] fox jumps over the [MASK] dog", "[MASK] dog"]


@pytest.fixture(scope="module")
def wordpiece():
    return prepare_tokenizer(train_tokenizer(["the quick brown fox jumps over the lazy dog " * 30], "wordpiece", 300))


@pytest.fixture(scope="module")
def bert(wordpiece):
    torch.manual_seed(0)
    shape = {"context": 32, "layers": 2, "hidden": 32, "heads": 4, "initial_std": 0.3}
    return BERT(BERTConfig(vocabulary=wordpiece.vocabulary, **shape)).eval()


@pytest.fixture(scope="module")
def server(start, bert, wordpiece, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "bert"
    save(bert, wordpiece, path)
    return start(model_directory=path).ready()


def test_blanks_are_filled(server, bert, wordpiece):
    answer = server.post("/v1/infill", {"text": TEXTS, "top_k": 3}).json()
    for entry, candidates in zip(answer["data"], fill(bert, wordpiece, TEXTS, top_k=3), strict=True):
        assert [one["pieces"] for one in entry["fillings"]] == [one.pieces for one in candidates]
        assert [one["text"] for one in entry["fillings"]] == [one.text for one in candidates]
        found = [one["log_probability"] for one in entry["fillings"]]
        assert found == pytest.approx([one.log_probability for one in candidates], abs=1e-4)


def test_vectors(server, bert, wordpiece):
    answer = server.post("/v1/embeddings", {"input": ["the lazy dog", "fox"]}).json()
    vectors = embed(bert, wordpiece, ["the lazy dog", "fox"], normalize=True)
    assert np.allclose([one["embedding"] for one in answer["data"]], vectors, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == len(wordpiece.encode("the lazy dog")) + len(wordpiece.encode("fox"))


def test_scores_say_that_they_are_no_probabilities(server):
    answer = server.post("/v1/score", {"context": "the lazy", "continuations": [" dog", " fox jumps"]}).json()
    assert answer["exact"] is False and "pseudo" in answer["note"]
    assert [len(one["token_log_probabilities"]) for one in answer["data"]] == [
        len(one["tokens"]) for one in answer["data"]
    ]
    assert all(value < 0 for one in answer["data"] for value in one["token_log_probabilities"])


@pytest.mark.parametrize(("path", "body"), [("completions", {"prompt": "the"}), ("infill", {"text": "no blank"})])
def test_what_it_cannot_is_400(server, path, body):
    answer = server.post(f"/v1/{path}", body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def t5_tokenizer():
    return prepare_t5(train_tokenizer(["the quick brown fox jumps over the lazy dog " * 30], "bpe", 290))


@pytest.fixture(scope="module")
def t5(t5_tokenizer):
    torch.manual_seed(0)
    config = T5Config(vocabulary=t5_tokenizer.vocabulary, hidden=32, heads=4, head_dim=8, feed_forward=64, layers=2)
    network = T5(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


@pytest.fixture(scope="module")
def t5_server(start, t5, t5_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "t5"
    save(t5, t5_tokenizer, path)
    return start(model_directory=path).ready()


def test_t5_writes_about_a_source(t5_server, t5, t5_tokenizer):
    text = "the quick <extra_id_0> fox"
    (wanted,) = generate(t5, t5_tokenizer, text, max_new_tokens=10, temperature=0)
    body = {"prompt": text, "max_tokens": 10, "temperature": 0}
    (choice,) = t5_server.post("/v1/completions", body).json()["choices"]
    assert choice["text"] == wanted.text
    refused = t5_server.post("/v1/completions", body | {"echo": True, "logprobs": 1})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "echo"
    filled = t5_server.post("/v1/infill", {"text": "the [MASK] fox", "top_k": 2}).json()["data"][0]["fillings"]
    assert filled[0]["pieces"] == fill(t5, t5_tokenizer, "the [MASK] fox", top_k=2)[0][0].pieces
    assert t5_server.post("/v1/score", {"context": "the", "continuations": [" fox"]}).json()["note"]
