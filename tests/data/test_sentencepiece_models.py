"""SentencePiece models: the same ids as the C++ library, for models trained here and for published ones."""

import io
import itertools
import os
import pydoc_data.topics
import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers.models import Unigram

from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError

TOPICS = list(pydoc_data.topics.topics.values())
LINES = [line for text in TOPICS[:40] for line in text.split("\n")]
SAMPLES = [
    *"\n".join(TOPICS[50:54]).split("\n"),
    "",
    " ",
    "   two  spaces   ",
    "a\tb\nc\u00a0d\u3000e\u2581f ▁",
    "naïve café ﬁne ½ ２０ e\u0301 日本語とमराठी 👍🏽 한국어",
    "</s> <s> <unk> <pad> <0x41> <0x0A> <|endoftext|>",
    "\x01\x7f\u200b\ufeff\ufffd",
    *("word" + " " * count + "word" for count in range(1, 40)),
]
PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_TOKENIZERS", Path(__file__).parents[3] / "shared/data/tokenizers"))
MODELS = ["t5/t5_tokenizer_base", "llama2/tokenizer", "mistral/v1", "mistral/v2", "mistral/v3"]

KINDS = {
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"},
    "no prefix": {"model_type": "unigram", "add_dummy_prefix": False, "normalization_rule_name": "nfkc_cf"},
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "bpe with unknowns": {"model_type": "bpe", "character_coverage": 0.98},
}


def train(options: dict, path: Path) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=1000, minloglevel=2, num_threads=1, **options
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: train(options, folder / f"{name}.model") for name, options in KINDS.items()}


def assert_equal(tokenizer: Tokenizer, path: Path, texts: list[str]) -> None:
    """Same ids, and same text from them; Unigram may choose between equally probable segmentations ("**" "*")."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ties = 0
    for text, theirs, ours in zip(texts, reference.encode(texts), tokenizer.encode_batch(texts), strict=True):
        pieces = [reference.id_to_piece(index) for index in theirs], [tokenizer.token(index) for index in ours]
        if ours != theirs and isinstance(tokenizer.backend.model, Unigram):
            ties += 1
            assert "".join(pieces[0]) == "".join(pieces[1])
            # the library adds up in float32
            assert sum(map(reference.get_score, ours)) == pytest.approx(sum(map(reference.get_score, theirs)), rel=1e-6)
        else:
            assert ours == theirs, (text, *pieces)
        if tokenizer.unknown not in ours and not text.lstrip().startswith("▁"):
            assert tokenizer.decode(ours) == reference.decode(theirs), text
    assert ties <= len(texts) / 50


@pytest.mark.parametrize("kind", KINDS)
class TestConverted:
    def test_ids_and_text_are_those_of_the_library(self, models, kind):
        tokenizer = load_tokenizer(models[kind])
        assert tokenizer.vocabulary == 1000
        assert_equal(tokenizer, models[kind], SAMPLES)

    def test_any_short_text(self, models, kind):
        rng = random.Random(0)
        letters = "abest hi.,\n\t0x41 <>/é日▁"
        texts = ["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(500)]
        assert_equal(load_tokenizer(models[kind]), models[kind], texts)

    def test_saved_and_loaded(self, models, kind, tmp_path):
        tokenizer = load_tokenizer(models[kind])
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert (loaded.fingerprint, loaded.names) == (tokenizer.fingerprint, tokenizer.names)
        assert_equal(loaded, models[kind], SAMPLES)

    def test_streams(self, models, kind):
        tokenizer, rng = load_tokenizer(models[kind]), random.Random(1)
        decoder = tokenizer.stream_decoder()
        streams = [tokenizer.encode(text) for text in SAMPLES]
        streams += [[rng.randrange(1000) for _ in range(20)] for _ in range(100)]
        streams += [[rng.randrange(260) for _ in range(8)] for _ in range(100)]  # bytes, where there are any
        for ids in streams:
            assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)


class TestSpecialTokens:
    def test_roles_come_from_the_model(self, models):
        t5, llama = load_tokenizer(models["t5"]), load_tokenizer(models["llama"])
        assert (t5.pad, t5.eos, t5.unknown, t5.bos, t5.separator) == (0, 1, 2, None, 1)
        assert (llama.unknown, llama.bos, llama.eos, llama.pad, llama.separator) == (0, 1, 2, None, 2)

    def test_t5_sentinels_fall_from_the_highest_id(self, models, tmp_path):
        (tmp_path / "spiece.model").write_bytes(models["t5"].read_bytes())
        (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 100, "eos_token": "</s>"}')
        tokenizer = load_tokenizer(tmp_path)
        assert (tokenizer.vocabulary, tokenizer.id("<extra_id_0>"), tokenizer.id("<extra_id_99>")) == (1100, 1099, 1000)
        assert tokenizer.encode("<extra_id_0>") == load_tokenizer(models["t5"]).encode("<extra_id_0>")

    def test_transformers_adds_what_the_families_add(self, models, tmp_path):
        from transformers import AutoTokenizer

        for kind in ("t5", "llama"):
            tokenizer = load_tokenizer(models[kind])
            tokenizer.save(tmp_path / kind)
            theirs, ids = AutoTokenizer.from_pretrained(tmp_path / kind), tokenizer.encode("some text")
            assert theirs("some text")["input_ids"] == ([*ids, 1] if kind == "t5" else [1, *ids])
            assert theirs.eos_token_id == tokenizer.eos

    def test_user_defined_symbols_are_whole(self, tmp_path):
        path = train({"model_type": "bpe", "user_defined_symbols": ["<tool>"]}, tmp_path / "user.model")
        tokenizer = load_tokenizer(path)
        reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
        assert tokenizer.id("<tool>") in tokenizer.encode("use<tool>") == reference.encode("use<tool>")


class TestRefused:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"model_type": "word", "hard_vocab_limit": False}, "of kind 'word'; expected unigram or bpe"),
            ({"model_type": "char", "hard_vocab_limit": False}, "of kind 'character'; expected unigram or bpe"),
            ({"model_type": "unigram", "treat_whitespace_as_suffix": True}, "with treat_whitespace_as_suffix"),
        ],
    )
    def test_what_cannot_be_converted(self, options, message, tmp_path):
        path = train(options, tmp_path / "odd.model")
        with pytest.raises(InputError, match=f"odd.model: .*{message}"):
            load_tokenizer(path)

    def test_a_truncated_file(self, models, tmp_path):
        content = models["llama"].read_bytes()
        for size in (len(content) // 2, len(content) // 2 + 1, 10):
            (tmp_path / "cut.model").write_bytes(content[:size])
            with pytest.raises(InputError, match=r"cut.model: not a .*SentencePiece model"):
                load_tokenizer(tmp_path / "cut.model")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published vocabularies are not on this machine")
@pytest.mark.parametrize("name", MODELS)
def test_published_models(name):
    path = PUBLISHED / f"{name}.model"
    rng = random.Random(0)
    blocks = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x3000), (0x3000, 0xD000), (0x1F300, 0x1FA00)]
    texts = ["".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(30)) for _ in range(300)]
    runs = ["".join(parts) for parts in itertools.product(["", "x", "\n"], [" " * n for n in range(50)], ["y"])]
    assert_equal(load_tokenizer(path), path, SAMPLES + texts + runs)
