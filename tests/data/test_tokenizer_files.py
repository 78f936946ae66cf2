"""Published tokenizer files: the same ids as transformers, and a clear line for each way in which a file is broken."""

import json
import os
import pydoc_data.topics
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer, OpenAIGPTTokenizer

from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.errors import InputError

TEXTS = list(pydoc_data.topics.topics.values())[:40]
SAMPLES = [
    *list(pydoc_data.topics.topics.values())[50:60],
    "The QUICK brown fox, isn't it? 12,345.67  \n\n x",
    "naïve Café ﬁne ½ \u200b e\u0301 日本語とमराठी 👩‍👩‍👧 \x00",
    "[MASKED] <unk > _start_",
    "",
]
# Published vocabularies, which the project does not contain; any folder with the files below will do.
PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_TOKENIZERS", Path(__file__).parents[3] / "shared/data/tokenizers"))


def ids_of(reference, texts: list[str]) -> list[list[int]]:
    return [reference(text, add_special_tokens=False)["input_ids"] for text in texts]


def read_merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    return [(line.split(" ")[0], line.split(" ")[1]) for line in lines if line]


def read_vocabulary(path: Path) -> dict[str, int]:
    return {token: index for index, token in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))}


def write_bpe(backend: Backend, directory: Path, vocabulary: str, merges: str) -> None:
    model = json.loads(backend.to_str())["model"]
    (directory / vocabulary).write_text(json.dumps(model["vocab"]))
    pairs = [" ".join(pair) for pair in model["merges"]]
    (directory / merges).write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return train_tokenizer(TEXTS, "bpe", 1000)


@pytest.fixture(scope="module")
def word_ends() -> Backend:
    """A tokenizer of GPT-1's kind."""
    backend = Backend(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


@pytest.fixture
def bert_words() -> list[str]:
    wordpiece = train_tokenizer(TEXTS, "wordpiece", 1000)
    return [wordpiece.token(index) for index in range(1000)]


class TestPublishedForms:
    @pytest.mark.parametrize("vocabulary, merges", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
    def test_gpt2(self, byte_level, tmp_path, vocabulary, merges):
        write_bpe(byte_level.backend, tmp_path, vocabulary, merges)
        loaded = load_tokenizer(tmp_path)
        reference = GPT2Tokenizer(
            vocab=json.loads((tmp_path / vocabulary).read_text()), merges=read_merges(tmp_path / merges)
        )
        assert loaded.encode_batch(SAMPLES) == byte_level.encode_batch(SAMPLES) == ids_of(reference, SAMPLES)
        assert loaded.separator == loaded.eos == reference.eos_token_id == 0
        assert [loaded.decode(ids) for ids in loaded.encode_batch(SAMPLES)] == SAMPLES
        for name in (vocabulary, merges):
            assert load_tokenizer(tmp_path / name).fingerprint == loaded.fingerprint

    @pytest.mark.parametrize(
        "vocabulary, merges", [("vocab.json", "merges.txt"), ("encoder_bpe_40000.json", "vocab_40000.bpe")]
    )
    def test_gpt1(self, word_ends, tmp_path, vocabulary, merges):
        write_bpe(word_ends, tmp_path, vocabulary, merges)
        loaded = load_tokenizer(tmp_path)
        reference = OpenAIGPTTokenizer(
            vocab=json.loads((tmp_path / vocabulary).read_text()), merges=read_merges(tmp_path / merges)
        )
        assert loaded.encode_batch(SAMPLES) == ids_of(reference, SAMPLES)
        for ids in loaded.encode_batch(SAMPLES):
            assert loaded.decode(ids) == reference.decode(ids, skip_special_tokens=True)
        assert loaded.decode(loaded.encode("The Statement, if any")) == "the statement , if any"
        with pytest.raises(InputError, match="no token that separates documents"):
            _ = loaded.separator
        assert loaded.with_special_tokens(eos_token="<|endoftext|>").separator == 1000

    def test_gpt1_streams_the_space_after_a_word_with_the_next_word(self, word_ends, tmp_path):
        write_bpe(word_ends, tmp_path, "vocab.json", "merges.txt")
        loaded = load_tokenizer(tmp_path)
        ids = loaded.encode("if any statement is not the end")
        decoder = loaded.stream_decoder()
        parts = [decoder.push(index) for index in ids]
        assert "".join(parts) == loaded.decode(ids) == "if any statement is not the end"
        assert parts[0] == "if" and parts[1].startswith(" ") and decoder.flush() == ""
        for shift in range(20):  # any ids, not only those of a text
            ids = [(index * 37 + shift) % 1000 for index in range(60)]
            assert "".join(map(decoder.push, ids)) + decoder.flush() == loaded.decode(ids)

    @pytest.mark.parametrize("lowercase", [True, False])
    def test_bert(self, bert_words, tmp_path, lowercase):
        words = [word.lower() for word in bert_words] if lowercase else bert_words
        words = [*bert_words[:5], *dict.fromkeys(words[5:])]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        loaded = load_tokenizer(tmp_path)
        reference = BertTokenizer(vocab=read_vocabulary(tmp_path / "vocab.txt"), do_lower_case=lowercase)
        assert loaded.encode_batch(SAMPLES) == ids_of(reference, SAMPLES)
        assert (loaded.encode("THE") == loaded.encode("the")) == lowercase
        assert (loaded.separator, loaded.unknown, loaded.pad, loaded.mask) == (3, 1, 0, 4)

    def test_the_configuration_says_whether_bert_lowers_case(self, bert_words, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join(bert_words) + "\n", encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        loaded = load_tokenizer(tmp_path)
        assert loaded.encode("THE") == loaded.encode("the") == [loaded.id("the")]

    def test_tokenizer_json_without_its_truncation_and_padding(self, byte_level, tmp_path):
        backend = Backend.from_str(byte_level.backend.to_str())
        backend.enable_truncation(8)
        backend.enable_padding(length=16)
        backend.save(str(tmp_path / "tokenizer.json"))
        loaded = load_tokenizer(tmp_path / "tokenizer.json")
        assert loaded.encode_batch(SAMPLES) == byte_level.encode_batch(SAMPLES)
        assert (loaded.separator, loaded.fingerprint) == (0, byte_level.fingerprint)

    def test_names_from_either_configuration_file(self, byte_level, tmp_path):
        byte_level.backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "special_tokens_map.json").write_text(
            json.dumps({"eos_token": {"content": "<|end|>", "lstrip": False}, "pad_token": "<|pad|>"})
        )
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"pad_token": "<|endoftext|>", "additional_special_tokens": ["<|user|>"], "bos_token": None})
        )
        loaded = load_tokenizer(tmp_path)
        assert (loaded.eos, loaded.pad, loaded.bos, loaded.id("<|user|>")) == (1000, 0, None, 1001)
        assert loaded.special == {0, 1000, 1001}

    def test_usual_names_where_the_configuration_has_none(self, byte_level, tmp_path):
        byte_level.backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')  # as published for gpt2
        assert load_tokenizer(tmp_path).names == {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}

    def test_stated_ids_come_before_named_tokens(self, byte_level, tmp_path):
        write_bpe(byte_level.backend, tmp_path, "vocab.json", "merges.txt")
        (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<pad>", "mask_token": "<mask>"}')
        decoder = {"1001": {"content": "<pad>", "special": True}, "1000": {"content": "  ", "special": False}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        loaded = load_tokenizer(tmp_path)
        assert (loaded.pad, loaded.mask, loaded.encode("  ")) == (1001, 1002, [1000])
        assert loaded.special == {0, 1001, 1002}

    def test_added_tokens_of_older_folders(self, byte_level, tmp_path):
        write_bpe(byte_level.backend, tmp_path, "vocab.json", "merges.txt")
        (tmp_path / "added_tokens.json").write_text('{"<|b|>": 1001, "<|a|>": 1000}')
        (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|b|>"]}')
        loaded = load_tokenizer(tmp_path)
        assert (loaded.id("<|a|>"), loaded.id("<|b|>"), loaded.vocabulary) == (1000, 1001, 1002)
        assert loaded.encode("<|a|>") == [1000] and 1001 not in loaded.encode("<|b|>")
        (tmp_path / "added_tokens.json").write_text('{"<|a|>": 1007}')
        with pytest.raises(InputError, match="should have id 1007, but would get 1000"):
            load_tokenizer(tmp_path)

    def test_the_best_of_several_forms_is_taken(self, byte_level, bert_words, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join(bert_words))
        byte_level.save(tmp_path)
        assert load_tokenizer(tmp_path).fingerprint == byte_level.fingerprint

    def test_special_tokens_are_only_text_whatever_the_pipeline(self, tmp_path):
        backend = Backend(models.WordLevel({"<unk>": 0, "the": 1, "</s>": 2}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(["</s>"])
        backend.save(str(tmp_path / "tokenizer.json"))
        loaded = load_tokenizer(tmp_path)
        assert loaded.encode("the </s> the") == [1, 0, 1]
        assert "".join(map(loaded.stream_decoder().push, [1, 1])) == loaded.decode([1, 1]) == "the the"


@pytest.mark.parametrize(
    "files, opened, message",
    [
        ({}, ".", r"folder: no tokenizer in this folder; expected tokenizer.json, vocab.json"),
        ({"tokenizer.json": "{"}, ".", r"tokenizer.json: not a tokenizer.json"),
        ({"tokenizer.json": '{"model": {}}'}, ".", r"tokenizer.json: not a tokenizer.json"),
        ({"tokenizer.json": b"\xff\xfe"}, ".", r"tokenizer.json: not UTF-8 text .byte 0"),
        ({"vocab.json": "{}"}, ".", r"vocab.json: expected a JSON object of tokens"),
        ({"vocab.json": '{"a": 0}'}, ".", r"merges.txt: no such file"),
        ({"merges.txt": "a b"}, "merges.txt", r"vocab.json: no such file"),
        ({"vocab.json": '{"a": 0,\n"b" 1}', "merges.txt": ""}, ".", r"vocab.json, line 2: not JSON"),
        ({"vocab.json": '["a"]', "merges.txt": ""}, ".", r"vocab.json: expected a JSON object, got a list"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, ".", r"vocab.json: expected .* tokens and their ids"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "#version: 1\na\n"}, ".", r"merges.txt, line 2: expected two tokens"),
        ({"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "a b"}, ".", r"merges.txt, line 1: 'ab' is not in the vocab"),
        ({"vocab.txt": "the\nend\n"}, ".", r"vocab.txt: expected a WordPiece vocabulary, .* with .UNK."),
        ({"tokenizer.model": "no protocol buffer"}, ".", r"tokenizer.model: not a .*SentencePiece model"),
        ({"tokenizer.model": ""}, ".", r"tokenizer.model: not a .*SentencePiece model"),
        ({"weights.bin": ""}, "weights.bin", r"weights.bin: not the name of a tokenizer file"),
        ({"tokenizer_config.json": "[", "vocab.txt": "[UNK]"}, ".", r"tokenizer_config.json, line 1: not JSON"),
    ],
)
def test_broken_files(tmp_path, files, opened, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(folder / opened)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published vocabularies are not on this machine")
class TestPublishedVocabularies:
    def test_gpt2(self):
        loaded, folder = load_tokenizer(PUBLISHED / "gpt2"), PUBLISHED / "gpt2"
        reference = GPT2Tokenizer(
            vocab=json.loads((folder / "encoder.json").read_text()), merges=read_merges(folder / "vocab.bpe")
        )
        assert loaded.encode_batch(SAMPLES) == ids_of(reference, SAMPLES)
        assert (loaded.vocabulary, loaded.separator) == (50257, 50256)
        assert loaded.encode("Hello world") == [15496, 995]  # from GPT2Tokenizer's documentation

    def test_gpt1(self):
        loaded, folder = load_tokenizer(PUBLISHED / "gpt1"), PUBLISHED / "gpt1"
        reference = OpenAIGPTTokenizer(
            vocab=json.loads((folder / "encoder_bpe_40000.json").read_text()),
            merges=read_merges(folder / "vocab_40000.bpe"),
        )
        assert loaded.encode_batch(SAMPLES) == ids_of(reference, SAMPLES)
        assert loaded.vocabulary == 40478

    @pytest.mark.parametrize("lowercase, size", [(True, 30522), (False, 28996)])
    def test_bert(self, lowercase, size):
        path = PUBLISHED / "bert" / f"bert_base_{'uncased' if lowercase else 'cased'}_vocab.txt"
        loaded = load_tokenizer(path)
        reference = BertTokenizer(vocab=read_vocabulary(path), do_lower_case=lowercase)
        assert loaded.encode_batch(SAMPLES) == ids_of(reference, SAMPLES)
        assert loaded.vocabulary == size
