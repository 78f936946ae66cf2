"""Models that do not write from left to right are served too: blanks, vectors, scores."""

import numpy as np
import pytest
import torch

from stemma.data.tokenizers import train_tokenizer
from stemma.families import save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.inference.embeddings import embed
from stemma.inference.filling import fill

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
