"""RoBERTa, XLM-R, CamemBERT and DistilBERT against Hugging Face transformers, and what reads texts with them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from stemma.data.tokenizers import Tokenizer, load_tokenizer, pieces_in_text
from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import frame_and_mask
from stemma.finetuning.checkpoint import TaskDescription, load_finetuned, save_finetuned
from stemma.finetuning.heads import WithHead
from stemma.finetuning.reading import reader_of
from stemma.inference.embeddings import embed
from stemma.inference.filling import fill
from stemma.layers.masks import Mask
from stemma.probing.facts import Query
from stemma.probing.facts_readings import reading_of

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
DISTIL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 38}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("Roberta", SHAPE | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta, two segments, untied": ("Roberta", SHAPE | {"tie_word_embeddings": False}),
    "xlm-roberta": ("XLMRoberta", SHAPE | {"type_vocab_size": 1}),
    "camembert": ("Camembert", SHAPE | {"type_vocab_size": 1}),
    "distilbert": ("DistilBert", DISTIL),
}
ONE_EACH = ("roberta", "distilbert")


def tokenizer_of(kind: str) -> Tokenizer:
    return tiny_models.tokenizer_of("distilbert" if kind == "distilbert" else "roberta")


def reference(kind: str, task: str = "MaskedLM", **options: Any) -> Any:
    """A transformers model in which every parameter matters: nothing is left at 0 or 1."""
    name, shape = KINDS[kind]
    vocabulary = tokenizer_of(kind).vocabulary
    config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, **shape, **options)
    model = getattr(transformers, f"{name}For{task}")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if parameter_name.lower().endswith(("norm.weight",)):
                parameter += 1.0
    return model.eval()


def padded_batch() -> tuple[Tensor, Tensor]:
    """Tokens that are no padding, behind which there is padding, of one row as long as the model reads."""
    tokens = torch.randint(6, 60, (3, 38), generator=torch.Generator().manual_seed(1))
    real = torch.arange(38) < torch.tensor([[38], [20], [3]])
    return tokens.where(real, 1), real


def logits_of(model: Any, tokens: Tensor, real: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens, attention_mask=real.long()).logits[real]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    theirs = reference(request.param)
    theirs.save_pretrained(tmp_path / "theirs")
    yield theirs, load(tmp_path / "theirs")


def test_logits_and_layers_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens, real = padded_batch()
    mask = Mask(key_padding=real)
    assert isinstance(ours, BERT)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens, mask=mask)[real], logits_of(theirs, tokens, real), rtol=0, atol=1e-5)
        expected = theirs.base_model(tokens, attention_mask=real.long(), output_hidden_states=True).hidden_states
        for one, other in zip(ours.hidden_states(tokens, mask=mask), expected, strict=True):
            torch.testing.assert_close(one[real], other[real], rtol=0, atol=1e-5)
        # Of texts in one row each begins at the first position.
        packed = torch.cat([tokens[1, :20], tokens[2, :3]])[None]
        documents = Mask(document_ids=torch.tensor([[0] * 20 + [1] * 3]))
        alone = torch.cat([ours(tokens[1:2, :20])[0], ours(tokens[2:, :3])[0]])
        torch.testing.assert_close(ours(packed, mask=documents)[0], alone, rtol=0, atol=1e-5)


def test_what_is_saved_loads_in_transformers(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, ours = pair
    save(ours, None, tmp_path / "ours")
    peer, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(peer) is type(theirs) and not report["missing_keys"]
    assert all("pooler" in name or "pre_classifier" in name for name in report["unexpected_keys"])
    tokens, real = padded_batch()
    torch.testing.assert_close(logits_of(peer.eval(), tokens, real), logits_of(theirs, tokens, real), rtol=0, atol=1e-6)
    written, read = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert read.keys() <= written.keys()
    if not ours.config.tie_output:
        del read["lm_head.bias"]  # which transformers does not compute with: the decoder has its own
    assert all(torch.equal(written[name], tensor) for name, tensor in read.items())
    assert load(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("kind", ONE_EACH)
@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_an_output_layer_is_transformers_too(kind: str, task: str, tmp_path: Path) -> None:
    reference(kind).save_pretrained(tmp_path / "theirs")
    torch.manual_seed(0)
    model = WithHead(load(tmp_path / "theirs"), 3, task == "classification").eval()
    torch.nn.init.normal_(model.output.weight)
    description = TaskDescription(task, "head", ("a", "b", "c"), False, 38)
    save_finetuned(model, tokenizer_of(kind), description, tmp_path / "tuned")
    name = "SequenceClassification" if task == "classification" else "TokenClassification"
    peer = getattr(transformers, f"AutoModelFor{name}").from_pretrained(tmp_path / "tuned").eval()
    tokens = padded_batch()[0][:1]
    read = torch.zeros(1, dtype=torch.int64) if task == "classification" else torch.arange(38)
    batch = {"tokens": tokens, "lengths": torch.tensor([38]), "read": read}
    with torch.no_grad():
        expected = peer(tokens).logits.flatten(0, -2)
        again = load_finetuned(tmp_path / "tuned")[0]
        for one in (model, again):
            torch.testing.assert_close(one(batch).flatten(0, -2), expected, rtol=0, atol=1e-5)


def test_a_classifier_of_transformers_gives_its_pooler(tmp_path: Path) -> None:
    theirs = reference("roberta", "SequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours, tokens = load(tmp_path), padded_batch()[0][:1]
    with torch.no_grad():
        pooled = ours.pool(ours.hidden(tokens)[:, 0])
        expected = theirs(tokens).logits
        torch.testing.assert_close(theirs.classifier.out_proj(pooled), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_blanks_are_filled_as_transformers_does(kind: str, tmp_path: Path) -> None:
    theirs, tokenizer = reference(kind), tokenizer_of(kind)
    theirs.save_pretrained(tmp_path)
    first, last, mask = frame_and_mask(tokenizer)
    row = torch.tensor([[first, *tokenizer.encode("the cat sings in"), mask, *tokenizer.encode(" . the dog"), last]])
    with torch.no_grad():
        expected = theirs(row).logits[0, row[0].tolist().index(mask)].log_softmax(-1)
    (found,) = fill(load(tmp_path), tokenizer, "the cat sings in [MASK] . the dog", top_k=3)
    best = expected.topk(3)
    assert [one.log_probability for one in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    pieces = [tokenizer.decode([token], skip_special=False).strip(" ") for token in best.indices.tolist()]
    assert [one.pieces for one in found] == [[piece] for piece in pieces]


def test_a_roberta_is_asked_for_words_with_the_space_before_them(tmp_path: Path) -> None:
    theirs, tokenizer = reference("roberta"), tokenizer_of("roberta")
    theirs.save_pretrained(tmp_path)
    model, (answer,) = load(tmp_path), pieces_in_text(tokenizer, ["the"])
    assert [tokenizer.token(index) for index in answer] == ["Ġthe"]
    first, last, mask = frame_and_mask(tokenizer)
    parts = {text: tokenizer.encode(text) for text in ("a dog", "the cat sings in", " .", "the fox")}
    dog, cat, end, fox = parts.values()
    texts = [[*dog, last, last, *cat, mask, *end], [*cat, mask, *end, last, last, *fox]]
    queries = [Query("the cat sings in", " .", earlier="a dog"), Query("the cat sings in", " .", later="the fox")]
    found = reading_of(model, tokenizer).log_probabilities(queries, answer)
    for row, text in zip(found, texts, strict=True):
        tokens = torch.tensor([[first, *text, last]])
        with torch.no_grad():
            logits = theirs(tokens).logits[0, tokens[0].tolist().index(mask)]
        torch.testing.assert_close(row, logits.log_softmax(-1)[answer], atol=1e-5, rtol=1e-5)
    example = reader_of(model, tokenizer).frame([7, 8], [9])
    assert example["tokens"].tolist() == [first, 7, 8, last, last, 9, last] and "segments" not in example


@pytest.mark.parametrize("kind", ONE_EACH)
def test_vectors_of_texts_are_means_over_transformers_states(kind: str, tmp_path: Path) -> None:
    theirs, tokenizer = reference(kind), tokenizer_of(kind)
    theirs.save_pretrained(tmp_path)
    first, last, _ = frame_and_mask(tokenizer)
    texts = ["the quick fox", "Anna sings to the lazy dog in London"]
    found = torch.from_numpy(embed(load(tmp_path), tokenizer, texts))
    for vector, text in zip(found, texts, strict=True):
        with torch.no_grad():
            states = theirs.base_model(torch.tensor([[first, *tokenizer.encode(text), last]])).last_hidden_state
        torch.testing.assert_close(vector, states[0].mean(0), atol=1e-5, rtol=1e-5)


def test_robertas_files_without_a_configuration_name_its_marks(tmp_path: Path) -> None:
    content = json.loads(tokenizer_of("roberta").backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    added = {"<pad>": 1, "<s>": 2, "</s>": 3, "<unk>": 4, "<mask>": 5}
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"] | added))
    assert frame_and_mask(load_tokenizer(tmp_path)) == (2, 3, 5)


def test_padding_that_positions_do_not_begin_behind_is_refused(tmp_path: Path) -> None:
    reference("roberta").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    with pytest.raises(InputError, match="^config.json: pad_token_id is 0, expected 1 of a roberta"):
        load(tmp_path)
