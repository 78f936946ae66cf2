"""GLM's special tokens: the published ids, and texts with blanks."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families.glm.tokens import GLMTokens, encode_context, prepare_tokenizer

TEXT = "The cat sat on the mat. Did it sit; or did it: lie?\nIt did!"


def numbered_wordpiece(tmp_path: Path) -> Tokenizer:
    """A vocabulary with BERT's special tokens where BERT (uncased) has them."""
    words = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{n}" for n in range(30522 - len(words))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return load_tokenizer(tmp_path)


def test_ids_of_the_published_bert_models(tmp_path: Path) -> None:
    found = GLMTokens.of(prepare_tokenizer(numbered_wordpiece(tmp_path)))
    assert (found.end, found.beginning, found.mask, found.separator) == (0, 101, 103, 102)
    assert (found.piece_start, found.piece_end) == (30522, 30523)
    assert (found.document_mask, found.sentence_mask, found.hidden_input) == (30524, 30525, 30526)


def test_ids_of_the_published_gpt2_models() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(f"x{n}" for n in range(50_000))])}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = Tokenizer(backend, {"eos_token": "<|endoftext|>"})
    assert tokenizer.separator == 50256
    found = GLMTokens.of(prepare_tokenizer(tokenizer))
    assert (found.end, found.piece_start, found.piece_end) == (50256, 50257, 50258)
    assert (found.beginning, found.mask) == (50259, 50260)
    assert (found.document_mask, found.sentence_mask, found.hidden_input) == (50263, 50264, 50265)


def test_roles_keep_their_own_tokens() -> None:
    """RoBERTa calls them <s>, </s> and <mask>."""
    base = train_tokenizer([TEXT * 20], "bpe", vocabulary=280)
    roberta = base.with_special_tokens(cls_token="<s>", eos_token="</s>", mask_token="<mask>", unk_token="<unk>")
    prepared = prepare_tokenizer(roberta)
    found = GLMTokens.of(prepared)
    assert found.beginning == prepared.id("<s>") and found.mask == prepared.id("<mask>")
    assert found.end == found.separator == prepared.id("</s>")


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_every_kind_of_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT * 20], kind, vocabulary=420)
    prepared = prepare_tokenizer(tokenizer)
    found = GLMTokens.of(prepared)
    ids = [found.beginning, found.end, found.mask, found.sentence_mask, found.document_mask, found.piece_start]
    assert len({*ids, found.piece_end, found.hidden_input}) == 8
    assert prepare_tokenizer(prepared).fingerprint == prepared.fingerprint
    assert prepared.encode(TEXT) == tokenizer.encode(TEXT)
    prepared.save(tmp_path)
    assert GLMTokens.of(load_tokenizer(tmp_path)) == found
    marks = {prepared.decode([index]).strip(" ") for index in found.sentence_ends}
    assert {".", ";", ":", "?", "!"} <= marks
    assert found.sentence_ends.isdisjoint(prepared.special)
    if kind == "bpe":
        assert "\n" in marks or any(mark.endswith("\n") for mark in marks)


def test_a_tokenizer_without_the_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="no token <|startofpiece|>"):
        GLMTokens.of(train_tokenizer([TEXT * 20], "bpe", vocabulary=280))


def test_sentinels() -> None:
    prepared = prepare_tokenizer(train_tokenizer([TEXT * 20], "bpe", vocabulary=280), sentinels=3)
    found = GLMTokens.of(prepared)
    assert [prepared.token(index) for index in found.masks] == ["[MASK1]", "[MASK2]", "[MASK3]"]
    assert [prepared.token(index) for index in found.piece_starts] == [
        "<|startofpiece1|>", "<|startofpiece2|>", "<|startofpiece3|>",
    ]  # fmt: skip


def test_contexts_with_blanks() -> None:
    tokenizer = prepare_tokenizer(train_tokenizer([TEXT * 20], "bpe", vocabulary=300))
    ids = GLMTokens.of(tokenizer)

    def context(text: str) -> list[int]:
        return encode_context(tokenizer, ids, text)

    # The space before a blank is part of what stands in it: " cat" was one token, or began with one.
    expected = [
        ids.beginning,
        *tokenizer.encode("The"),
        ids.mask,
        *tokenizer.encode(" sat."),
        ids.sentence_mask,
        ids.end,
    ]
    assert context("The [MASK] sat. [sMASK]") == expected
    assert context("The cat [gMASK]") == [ids.beginning, *tokenizer.encode("The cat"), ids.document_mask]
    assert context("[gMASK]") == [ids.beginning, ids.document_mask]
    assert context("[MASK]") == [ids.beginning, ids.mask, ids.end]
    assert context("[gMASK] sat") == [ids.beginning, ids.document_mask, *tokenizer.encode(" sat"), ids.end]
    with pytest.raises(InputError, match=r"no blank in 'The cat'"):
        context("The cat")
