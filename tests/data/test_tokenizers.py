"""Training, encoding, decoding and saving, against brute force, transformers and what must hold for any text."""

import json
import os
import pydoc_data.topics
import random
import re
import warnings

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stemma.data.stream_decoding import token_bytes
from stemma.data.tokenizers import Tokenizer, load_tokenizer, pieces_in_text, train_tokenizer
from stemma.errors import InputError

KINDS = ("bpe", "wordpiece", "unigram")
TEXTS = list(pydoc_data.topics.topics.values())
SAMPLES = [
    "The quick brown fox, isn't it? 12,345.67",
    "    def f(x):\n\treturn x  # trailing  \n\n\n",
    "naïve café ﬁne ½ \u00a0 \u200b e\u0301",
    "日本語とमराठी العربية 👩‍👩‍👧🇩🇪",
    " leading and trailing ",
    "\x00\x01\r\n\x7f\ufeff\ufffd",
    "",
]


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(TEXTS[:40], kind, 1500) for kind in KINDS}


def pairs_merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte pair encoding as in openai/gpt-2's encoder.py: merge every occurrence of the pair of lowest rank."""
    parts = list(word)
    while len(parts) > 1:
        pairs = list(zip(parts, parts[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged, index = [], 0
        while index < len(parts):
            if tuple(parts[index : index + 2]) == best:
                merged.append("".join(best))
                index += 2
            else:
                merged.append(parts[index])
                index += 1
        parts = merged
    return parts


def model_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.backend.to_str())["model"]


class TestTrained:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_vocabulary_has_the_size_asked_for_and_ids_without_gaps(self, trained, kind):
        ids = trained[kind].backend.get_vocab(with_added_tokens=True).values()
        assert sorted(ids) == list(range(1500)) and trained[kind].vocabulary == 1500

    @pytest.mark.parametrize("kind", KINDS)
    def test_training_again_gives_the_same_tokenizer(self, trained, kind):
        for _ in range(2):
            assert train_tokenizer(iter(TEXTS[:40]), kind, 1500).backend.to_str() == trained[kind].backend.to_str()
        assert train_tokenizer(TEXTS[:40], kind, 1400).fingerprint != trained[kind].fingerprint

    def test_bpe_merges_the_most_frequent_pair_first(self):
        tokenizer = train_tokenizer(["abab abc abab"] * 3, "bpe", 257 + 2)
        # pairs inside words: (a, b) 15 times, (Ġ, a) 6 times until (Ġ, ab) takes its place; (ab, ab) 6: tie, lower ids
        assert model_of(tokenizer)["merges"][0] == ["a", "b"]
        assert tokenizer.token(257) == "ab"

    def test_bpe_is_the_algorithm_of_the_paper(self, trained):
        tokenizer = trained["bpe"]
        ranks = {tuple(pair): rank for rank, pair in enumerate(model_of(tokenizer)["merges"])}
        # GPT-2's pattern, as far as it concerns ASCII
        pattern = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+")
        text = TEXTS[50].encode("ascii", "ignore").decode()[:5000] + SAMPLES[0] + SAMPLES[1]
        visible = {bytes([token_bytes(tokenizer.token(i))[0]]): tokenizer.token(i) for i in range(1, 257)}
        expected = []
        for word in pattern.findall(text):
            characters = "".join(visible[bytes([byte])] for byte in word.encode())
            expected += pairs_merged(characters, ranks)
        assert [tokenizer.token(i) for i in tokenizer.encode(text)] == expected

    def test_wordpiece_takes_the_longest_piece_first(self, trained):
        tokenizer = trained["wordpiece"]
        vocabulary = set(tokenizer.backend.get_vocab())
        assert {
            "[PAD]": 0,
            "[UNK]": 1,
            "[CLS]": 2,
            "[SEP]": 3,
            "[MASK]": 4,
        }.items() <= tokenizer.backend.get_vocab().items()
        expected = []
        words = re.findall(r"[a-zA-Z0-9]+|[^\sa-zA-Z0-9]", TEXTS[50].encode("ascii", "ignore").decode()[:5000])
        for word in words:
            pieces, start = [], 0
            while start < len(word):
                prefix = "##" if start else ""
                ends = [end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary]
                if not ends:
                    pieces = ["[UNK]"]
                    break
                pieces.append(prefix + word[start : ends[0]])
                start = ends[0]
            expected += pieces
        assert [tokenizer.token(i) for i in tokenizer.encode(" ".join(words))] == expected

    def test_unigram_finds_the_most_probable_pieces(self, trained):
        tokenizer = trained["unigram"]
        scores = dict(model_of(tokenizer)["vocab"])
        for word in re.findall(r"[a-zA-Z]{5,}", TEXTS[50])[:300]:
            text = "▁" + word
            best = [0.0] + [float("-inf")] * len(text)
            for end in range(1, len(text) + 1):
                for start in range(end):
                    if text[start:end] in scores:
                        best[end] = max(best[end], best[start] + scores[text[start:end]])
            pieces = [tokenizer.token(i) for i in tokenizer.encode(word)]
            assert "".join(pieces) == text
            assert sum(scores[piece] for piece in pieces) == pytest.approx(best[-1], abs=1e-9)

    def test_unigram_scores_are_log_probabilities(self, trained):
        scores = [score for piece, score in model_of(trained["unigram"])["vocab"][3 + 256 :]]
        assert sum(2.718281828**score for score in scores) == pytest.approx(1.0, abs=0.1)

    def test_lowercase(self):
        for kind in KINDS:
            tokenizer = train_tokenizer(TEXTS[:10], kind, 700, lowercase=True)
            assert tokenizer.encode("Some TEXT") == tokenizer.encode("some text")
            learned = [tokenizer.token(i) for i in range(5 + 256, tokenizer.vocabulary)]
            assert not any(re.search("[A-Z]", token) for token in learned if len(token) > 1)

    def test_extra_special_tokens_follow_those_of_the_kind(self):
        tokenizer = train_tokenizer(TEXTS[:10], "bpe", 400, special=["[MASK]", "<|user|>"])
        assert [tokenizer.token(i) for i in range(3)] == ["<|endoftext|>", "[MASK]", "<|user|>"]
        assert tokenizer.special == {0, 1, 2} and tokenizer.vocabulary == 400

    def test_progress_counts_every_byte(self):
        sizes: list[int] = []
        train_tokenizer(TEXTS[:5], "bpe", 300, progress=sizes.append)
        assert sizes == [len(text.encode()) for text in TEXTS[:5]]

    def test_too_little_text_is_a_warning(self):
        for kind in KINDS:
            with pytest.warns(UserWarning, match="too little for 1000 tokens: the vocabulary has"):
                tokenizer = train_tokenizer(["to be or not to be"] * 3, kind, 1000)
            assert tokenizer.vocabulary < 1000 and tokenizer.decode(tokenizer.encode("to be")) == "to be"

    @pytest.mark.parametrize(
        "texts, kind, vocabulary, numbers",
        [
            ([], "bpe", 1000, "at least one character"),
            (["", ""], "unigram", 1000, "at least one character"),
            (["abc"], "bpe", 200, "200 tokens .* at least 257 "),
            # 3 characters at the start and inside of words and 1 sign, 5 special tokens
            (["abc !"], "wordpiece", 10, "10 tokens .* at least 12 "),
            (["abc"], "unigram", 300, "300 tokens .* at least 353 "),
            # 94 ASCII, "▁", 600 Chinese characters, 256 bytes, 3 special tokens
            ([" ".join(map(chr, range(0x4E00, 0x4E00 + 600)))], "unigram", 400, "400 tokens .* at least 954 "),
            (["abc"], "bbpe", 300, "did you mean 'bpe'"),
            (["a\ud800"], "bpe", 300, "surrogate pair at character 1"),
        ],
    )
    def test_mistakes(self, texts, kind, vocabulary, numbers):
        with pytest.raises(InputError, match=numbers) as raised:
            train_tokenizer(iter(texts), kind, vocabulary)
        assert "\n" not in str(raised.value)


class TestText:
    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_text_comes_back_from_byte_level_bpe(self, trained, text):
        assert trained["bpe"].decode(trained["bpe"].encode(text)) == text

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
    def test_any_text_comes_back_from_unigram_with_bytes(self, trained, text):
        assert trained["unigram"].decode(trained["unigram"].encode(text)) == text

    def test_unigram_without_bytes_has_an_unknown_token(self):
        tokenizer = train_tokenizer(TEXTS[:10], "unigram", 600, byte_fallback=False)
        assert tokenizer.encode("日本") == [tokenizer.id("▁"), tokenizer.unknown]

    @pytest.mark.parametrize("kind", KINDS)
    def test_special_tokens_in_text_are_only_text(self, trained, kind):
        tokenizer = trained[kind].with_special_tokens("<|user|>")
        for name in sorted({tokenizer.token(index) for index in tokenizer.special} | {"<0x41>"}):
            for text in (name, f"a{name}b", f"so {name} it {name}{name}"):
                ids = tokenizer.encode(text)
                assert tokenizer.special.isdisjoint(ids)
                assert re.sub(" ", "", tokenizer.decode(ids)) == re.sub(" ", "", text)

    def test_batches_are_the_texts_one_by_one(self, trained):
        for tokenizer in trained.values():
            assert tokenizer.encode_batch(SAMPLES) == [tokenizer.encode(text) for text in SAMPLES]

    def test_special_tokens_can_be_kept_in_the_decoded_text(self, trained):
        ids = [0, *trained["bpe"].encode("abc"), 0]
        assert trained["bpe"].decode(ids) == "abc"
        assert trained["bpe"].decode(ids, skip_special=False) == "<|endoftext|>abc<|endoftext|>"

    def test_half_a_surrogate_pair(self, trained):
        for tokenizer in trained.values():
            with pytest.raises(InputError, match="surrogate pair at character 2"):
                tokenizer.encode_batch(["fine", "ab\udfff"])

    def test_what_is_no_text(self, trained):
        with pytest.raises(TypeError, match="bytes"):
            trained["bpe"].encode(b"abc")


def pushed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    decoder = tokenizer.stream_decoder(skip_special)
    return [*(decoder.push(index) for index in ids), decoder.flush()]


class TestStream:
    @settings(max_examples=200, deadline=None)
    @given(ids=st.lists(st.integers(0, 1499), max_size=30), skip=st.booleans(), kind=st.sampled_from(KINDS))
    def test_any_ids_give_what_decode_gives(self, trained, ids, skip, kind):
        assert "".join(pushed(trained[kind], ids, skip)) == trained[kind].decode(ids, skip)

    @settings(max_examples=200, deadline=None)
    @given(ids=st.lists(st.integers(0, 258), max_size=12), kind=st.sampled_from(["bpe", "unigram"]))
    def test_bytes_that_are_no_utf8(self, trained, ids, kind):
        assert "".join(pushed(trained[kind], ids)) == trained[kind].decode(ids)

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_half_characters(self, trained, kind):
        for text in SAMPLES:
            ids = trained[kind].encode(text.replace("\ufffd", ""))
            parts = pushed(trained[kind], ids)
            assert "\ufffd" not in "".join(parts)
            assert "".join(parts) == trained[kind].decode(ids)

    def test_characters_come_as_soon_as_they_are_whole(self, trained):
        tokenizer = trained["bpe"]
        ids = tokenizer.encode("é日👍")
        assert len(ids) == 2 + 3 + 4  # none of them in the training text
        assert [part for part in pushed(tokenizer, ids) if part] == ["é", "日", "👍"]
        assert pushed(tokenizer, ids).index("日") == 4

    def test_a_word_comes_with_its_token(self, trained):
        for kind, tokenizer in trained.items():
            parts = pushed(tokenizer, tokenizer.encode("for the function"))
            assert all(parts[:-1]) and parts[-1] == "", kind

    def test_flush_begins_anew(self, trained):
        for tokenizer in trained.values():
            decoder, ids = tokenizer.stream_decoder(), tokenizer.encode("the end")
            first = "".join([*map(decoder.push, ids), decoder.flush()])
            assert first == "".join([*map(decoder.push, ids), decoder.flush()]) == "the end"

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_long_stream_is_not_decoded_again_and_again(self, trained, kind):
        rng = random.Random(0)
        ids = [rng.randrange(1500) for _ in range(30_000)]
        assert "".join(pushed(trained[kind], ids)) == trained[kind].decode(ids)  # quadratic: minutes


class TestSaved:
    @pytest.mark.parametrize("kind", KINDS)
    def test_transformers_loads_it_and_agrees(self, trained, kind, tmp_path):
        trained[kind].save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert len(theirs) == 1500
        for text in SAMPLES + TEXTS[50:55]:
            ids = trained[kind].encode(text)
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids
            assert theirs.decode(ids, skip_special_tokens=True) == trained[kind].decode(ids)
            assert theirs.decode([0, *ids, 1], skip_special_tokens=True) == trained[kind].decode([0, *ids, 1])

    def test_transformers_knows_the_end_of_the_text(self, trained, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        trained["bpe"].save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.eos_token_id == theirs.bos_token_id == trained["bpe"].separator == 0
        assert set(theirs("abc")) == {"input_ids", "attention_mask"}  # token types would be added to GPT-2's input
        assert theirs("abc <|endoftext|>")["input_ids"][-1] == 0

    def test_bert_inputs_are_framed(self, trained, tmp_path):
        trained["wordpiece"].save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)("the", "end")
        first, second = trained["wordpiece"].encode("the"), trained["wordpiece"].encode("end")
        assert theirs["input_ids"] == [2, *first, 3, *second, 3]
        assert theirs["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_loading_gives_the_same_tokenizer(self, trained, kind, tmp_path):
        tokenizer = trained[kind].with_special_tokens("<|user|>")
        tokenizer.save(tmp_path / "deep" / "folder")
        loaded = load_tokenizer(tmp_path / "deep" / "folder")
        assert (loaded.fingerprint, loaded.names, loaded.special) == (
            tokenizer.fingerprint,
            tokenizer.names,
            tokenizer.special,
        )
        assert loaded.encode_batch(SAMPLES) == tokenizer.encode_batch(SAMPLES)
        assert sorted(os.listdir(tmp_path / "deep" / "folder")) == ["tokenizer.json", "tokenizer_config.json"]

    def test_roles(self, trained):
        bpe, wordpiece, unigram = (trained[kind] for kind in KINDS)
        assert (bpe.separator, bpe.eos, bpe.bos, bpe.unknown, bpe.pad, bpe.mask) == (0, 0, 0, None, None, None)
        assert (wordpiece.separator, wordpiece.eos, wordpiece.unknown, wordpiece.pad, wordpiece.mask) == (
            3,
            None,
            1,
            0,
            4,
        )
        assert (unigram.separator, unigram.eos, unigram.unknown, unigram.pad) == (1, 1, 2, 0)

    def test_further_special_tokens_get_the_next_ids(self, trained):
        more = trained["bpe"].with_special_tokens("_start_", "_classify_", "<|endoftext|>", pad_token="<pad>")
        assert [more.id(token) for token in ("_start_", "_classify_", "<|endoftext|>")] == [1500, 1501, 0]
        assert (more.pad, more.vocabulary, trained["bpe"].vocabulary) == (1502, 1503, 1500)
        assert more.encode("_start_ the") == trained["bpe"].encode("_start_ the")
        with pytest.raises(InputError, match="did you mean 'eos_token'"):
            more.with_special_tokens(eos_tokn="x")

    def test_names_of_tokens(self, trained):
        with pytest.raises(InputError, match=r"no token 'Ġthee' .*did you mean 'Ġthe"):
            trained["bpe"].id("Ġthee")
        with pytest.raises(IndexError, match="below 1500"):
            trained["bpe"].token(1500)


class TestHub:
    def test_only_the_tokenizer_is_fetched(self, trained, tmp_path, monkeypatch):
        trained["bpe"].save(tmp_path)
        asked = {}

        def snapshot(name, allow_patterns):
            asked.update(name=name, patterns=allow_patterns)
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert load_tokenizer("owner/model").fingerprint == trained["bpe"].fingerprint
        assert asked["name"] == "owner/model" and "tokenizer.json" in asked["patterns"]
        assert not any("safetensors" in pattern or pattern.endswith(".py") for pattern in asked["patterns"])

    def test_offline(self, monkeypatch):
        def offline(name, allow_patterns):
            raise ConnectionError("Name or service not known\nand more")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
        with pytest.raises(InputError, match=r"^owner/model: .* hub .* Name or service not known$"):
            load_tokenizer("owner/model")

    def test_what_is_no_hub_id_is_a_missing_file(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(InputError, match="no such file or folder .did you mean 'tokenizer.json'"):
            load_tokenizer(tmp_path / "tokeniser.json")


def test_warnings_are_not_raised_by_enough_text():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_tokenizer(TEXTS[:3], "bpe", 300)


@pytest.mark.parametrize(("kind", "piece"), [("bpe", "Ġdog"), ("unigram", "▁dog"), ("wordpiece", "dog")])
def test_pieces_in_a_text_have_the_blank_before_them_once(kind, piece):
    text = ["a dog and a hotdog " * 30]
    with pytest.warns(UserWarning, match="repeats too little"):
        tokenizer = train_tokenizer(text, kind, {"unigram": 400}.get(kind, 280))
    dog, two, nothing = pieces_in_text(tokenizer, ["dog", "dog and", ""])
    assert "".join(map(tokenizer.token, dog)) == piece and nothing == []
    assert two == tokenizer.encode("a dog and")[len(tokenizer.encode("a")) :]
