import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stemma.data import shards
from stemma.data.corpora import CorpusSource
from stemma.data.shards import TokenizedSplit, prepare
from stemma.errors import InputError

SEPARATOR = 256


def documents_of(split: TokenizedSplit) -> list[str]:
    """The text of every document, found by the separators alone."""
    tokens = np.asarray(split.tokens)
    starts = np.flatnonzero(tokens == SEPARATOR)
    assert starts.tolist() == np.asarray(split.document_starts).tolist()
    bounds = [*starts.tolist(), len(tokens)]
    found = [tokens[split.bounds(n)[0] : split.bounds(n)[1]] for n in range(split.documents)]
    assert [split.bounds(n) for n in range(split.documents)] == list(zip(bounds[:-1], bounds[1:], strict=True))
    return [bytes(part[1:].astype(np.uint8)).decode() for part in found]


def content_of(directory: Path) -> dict[str, bytes]:
    """Every file of a prepared corpus."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """Documents of very different length, two of them longer than a block, in rows.jsonl."""
    generator = random.Random(0)
    sizes = [generator.choice([1, 5, 30, 300]) for _ in range(60)]
    sizes[10] = sizes[40] = 3000
    texts = ["".join(generator.choices("abcdefg hü漢\n", k=size)) + f"{n}" for n, size in enumerate(sizes)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


@pytest.fixture
def source(tmp_path: Path, rows: list[str], monkeypatch: pytest.MonkeyPatch) -> CorpusSource:
    monkeypatch.setattr("stemma.data.documents.PIECE", 200)
    monkeypatch.setattr(shards, "BATCH_BYTES", 300)
    return CorpusSource(str(tmp_path / "rows.jsonl"), held_out=0.2)


def test_shards_hold_the_documents(source, rows, byte_tokenizer, cache):
    corpus = prepare(source, byte_tokenizer, cache, block_bytes=1000)
    train, held_out = documents_of(corpus.train), documents_of(corpus.held_out)
    assert sorted(train + held_out) == sorted(rows)
    assert train == [row for row in rows if row in train] and held_out == [row for row in rows if row in held_out]
    assert 4 <= len(held_out) <= 22
    for split, texts in (corpus.train, train), (corpus.held_out, held_out):
        assert split.document_bytes.tolist() == [len(text.encode()) for text in texts]
        assert split.bytes == split.document_bytes.sum()
        assert (split.separator, split.vocabulary) == (SEPARATOR, 257)
    assert len(list(corpus.directory.glob("block-*"))) > 6


@pytest.mark.parametrize("vocabulary,dtype", [(257, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_tokens_take_two_bytes_where_that_is_enough(source, byte_tokenizer, cache, vocabulary, dtype):
    byte_tokenizer.vocabulary = vocabulary
    corpus = prepare(source, byte_tokenizer, cache)
    assert corpus.train.tokens.dtype == np.dtype(dtype)
    assert corpus.train.tokens.read(0, 5).dtype == np.dtype(dtype)
    assert json.loads((corpus.directory / "corpus.json").read_text())["dtype"] == dtype
    assert documents_of(corpus.train)


def test_second_run_reads_and_encodes_nothing(source, byte_tokenizer, cache, monkeypatch):
    os.utime(source.what, (time.time() - 60,) * 2)
    first = prepare(source, byte_tokenizer, cache)
    monkeypatch.setattr("stemma.data.content_hashes._sha256", None)
    monkeypatch.setattr(byte_tokenizer, "encode_batch", None)
    second = prepare(source, byte_tokenizer, cache)
    assert second.directory == first.directory
    assert second.fingerprint == first.fingerprint
    assert second.train.fingerprint == first.train.fingerprint != first.held_out.fingerprint
    assert second.summary == first.summary


def test_another_content_tokenizer_or_division_is_another_corpus(source, tmp_path, byte_tokenizer, cache):
    prints = [prepare(source, byte_tokenizer, cache).fingerprint]
    prints.append(prepare(CorpusSource(source.what, held_out=0.3), byte_tokenizer, cache).fingerprint)
    prints.append(prepare(CorpusSource(source.what, held_out=source.what), byte_tokenizer, cache).fingerprint)
    byte_tokenizer.fingerprint = "another"
    prints.append(prepare(source, byte_tokenizer, cache).fingerprint)
    with open(source.what, "a") as file:
        file.write('{"text": "one more"}\n')
    prints.append(prepare(source, byte_tokenizer, cache).fingerprint)
    assert len(set(prints)) == 5


def test_held_out_text_from_a_corpus_of_its_own(source, rows, tmp_path, byte_tokenizer, cache):
    (tmp_path / "other.txt").write_text("only this")
    other = CorpusSource(source.what, held_out=str(tmp_path / "other.txt"))
    corpus = prepare(other, byte_tokenizer, cache, block_bytes=1000)
    assert documents_of(corpus.train) == rows
    assert documents_of(corpus.held_out) == ["only this"]
    assert f"(from {tmp_path / 'other.txt'})" in corpus.summary


def test_interrupted_at_every_block_and_resumed(source, tmp_path, byte_tokenizer):
    expected = content_of(prepare(source, byte_tokenizer, tmp_path / "whole", block_bytes=1000).directory)
    pieces = list(byte_tokenizer.encoded)
    blocks = sum(name.endswith("block.json") for name in expected)
    for stop in range(0, len(pieces), 3):
        cache = tmp_path / f"cache-{stop}"
        byte_tokenizer.encoded, byte_tokenizer.interrupt_after = [], stop
        with pytest.raises(KeyboardInterrupt):
            prepare(source, byte_tokenizer, cache, block_bytes=1000)
        done = len(list(cache.glob("corpora/*/block-*")))
        assert not list(cache.glob("corpora/*/corpus.json"))
        byte_tokenizer.encoded, byte_tokenizer.interrupt_after = [], None
        corpus = prepare(source, byte_tokenizer, cache, block_bytes=1000)
        assert content_of(corpus.directory) == expected
        # What complete blocks held is not tokenised again: what is, is the end of the pieces.
        assert byte_tokenizer.encoded == pieces[len(pieces) - len(byte_tokenizer.encoded) :]
        assert done < blocks and (done == 0) == (len(byte_tokenizer.encoded) == len(pieces))


def test_damaged_and_missing_blocks_are_made_again(source, byte_tokenizer, cache):
    corpus = prepare(source, byte_tokenizer, cache, block_bytes=1000)
    expected = content_of(corpus.directory)
    (corpus.directory / "block-00002" / "train.tokens").write_bytes(b"short")
    (corpus.directory / "block-00004" / "block.json").unlink()
    (corpus.directory / ".block-00005.0123.tmp").mkdir()
    assert content_of(prepare(source, byte_tokenizer, cache, block_bytes=1000).directory) == expected


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import ByteTokenizer
from stemma.data import shards
from stemma.data.corpora import CorpusSource
class Slow(ByteTokenizer):
    def encode_batch(self, texts):
        time.sleep({pause})
        with open({log!r}, "a") as log:
            log.writelines("x" for _ in texts)
        return super().encode_batch(texts)
shards.BATCH_BYTES = 300
print("ready", flush=True)
shards.prepare(CorpusSource({what!r}, held_out=0.2), Slow(), Path({cache!r}), block_bytes=1000)
"""


def start(what: str, cache: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    code = SCRIPT.format(tests=str(Path(__file__).parent), what=what, cache=str(cache), log=str(log), pause=pause)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_killed_at_random_moments(tmp_path, rows):
    what = str(tmp_path / "rows.jsonl")
    assert start(what, tmp_path / "whole", tmp_path / "log", 0.0).wait() == 0
    (directory,) = (tmp_path / "whole" / "corpora").iterdir()
    expected = content_of(directory)
    generator = random.Random(1)
    kills = 0
    for _ in range(30):
        process = start(what, tmp_path / "killed", tmp_path / "log", 0.02)
        try:
            if process.wait(generator.uniform(0.0, 0.25)) == 0:
                break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills > 1
    assert content_of(tmp_path / "killed" / "corpora" / directory.name) == expected


def test_of_two_processes_one_does_the_work(tmp_path, rows):
    what = str(tmp_path / "rows.jsonl")
    both = [start(what, tmp_path / "cache", tmp_path / "log", 0.01) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len((tmp_path / "log").read_text()) == len(rows)


THREADS = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from stemma.data import shards
from stemma.data.corpora import CorpusSource
class Bpe:
    vocabulary, separator, fingerprint = 300, 299, "bpe"
    tokenizer = Tokenizer.from_file(sys.argv[1])
    def encode_batch(self, texts):
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
shards.BATCH_BYTES = int(sys.argv[4])
shards.prepare(CorpusSource(sys.argv[2]), Bpe(), Path(sys.argv[3]), block_bytes=1000)
"""


def test_shards_do_not_depend_on_threads_or_batches(tmp_path, rows):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=299, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(rows, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = []
    for threads, batch in ("1", "300"), ("4", "300"), ("4", "5000"):
        cache = tmp_path / f"{threads}-{batch}"
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": str(threads != "1")}
        arguments = [str(tmp_path / "tokenizer.json"), str(tmp_path / "rows.jsonl"), str(cache), batch]
        subprocess.run([sys.executable, "-c", THREADS, *arguments], env=environment, check=True)
        (directory,) = (cache / "corpora").iterdir()
        found.append(content_of(directory))
    assert len(found[0]) > 20 and found[0] == found[1] == found[2]


def test_progress_reaches_the_end_of_every_stage(source, byte_tokenizer, cache):
    calls: list[tuple[str, int, int]] = []
    prepare(source, byte_tokenizer, cache, lambda *call: calls.append(call))
    size = Path(source.what).stat().st_size
    assert {total for _, _, total in calls} == {size}
    last = {stage: done for stage, done, _ in calls}
    assert last["hashing"] == last["tokenising"] == size and set(last) == {"hashing", "reading", "tokenising"}


@pytest.mark.parametrize("content", ["", " \n\n\t \n"])
def test_empty_corpus(tmp_path, byte_tokenizer, cache, content):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(InputError, match=r"empty.txt: an empty corpus; expected at least one document that is not"):
        prepare(CorpusSource(str(tmp_path / "empty.txt")), byte_tokenizer, cache)


def test_nothing_held_out(source, tmp_path, byte_tokenizer, cache):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="empty.txt: nothing held out"):
        prepare(CorpusSource(source.what, held_out=str(tmp_path / "empty.txt")), byte_tokenizer, cache)
    corpus = prepare(CorpusSource(source.what, held_out=0.0), byte_tokenizer, cache)
    assert corpus.held_out.documents == len(corpus.held_out.tokens) == corpus.held_out.bytes == 0
    assert corpus.held_out.document_bytes.tolist() == []


def test_cache_that_cannot_be_written(source, tmp_path, byte_tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the cache cannot be written \(Not a directory\); STEMMA_CACHE names"):
        prepare(source, byte_tokenizer, tmp_path / "file" / "cache")


def test_full_disk_is_one_line_and_leaves_no_block(source, byte_tokenizer, cache, monkeypatch):
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write_json", full)
    with pytest.raises(InputError, match=r"block-00000: the cache cannot be written \(No space left on device\)"):
        prepare(source, byte_tokenizer, cache)
    assert not [path for path in cache.glob("corpora/*/*") if "block" in path.name]


def test_bad_text_leaves_no_corpus_behind(tmp_path, byte_tokenizer, cache):
    (tmp_path / "bad.txt").write_bytes(b"good " * 1000 + b"\xff")
    for _ in range(2):
        with pytest.raises(InputError, match="bad.txt: not UTF-8 at byte 5000"):
            prepare(CorpusSource(str(tmp_path / "bad.txt")), byte_tokenizer, cache)
    assert not list(cache.rglob("corpus.json"))


def test_file_that_changes_meanwhile_leaves_no_shards(source, byte_tokenizer, cache, monkeypatch):
    def encode_batch(texts: list[str]) -> list[list[int]]:
        Path(source.what).touch()
        return [[0] for _ in texts]

    monkeypatch.setattr(byte_tokenizer, "encode_batch", encode_batch)
    with pytest.raises(InputError, match="changed while it was being read"):
        prepare(source, byte_tokenizer, cache)
    assert not list(cache.glob("corpora/*/block-*"))


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import ByteTokenizer
from stemma.data import shards
from stemma.data.corpora import CorpusSource
from stemma.data.packing import PackedSequences, scoring_windows
class Forgetful(ByteTokenizer):
    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + {allowed}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # private memory; not what is mapped from files
corpus = shards.prepare(CorpusSource({what!r}), Forgetful(), Path({cache!r}), block_bytes=1 << 23)
packed = PackedSequences(corpus.train, 1024, 0)
for index in range(2000):
    packed.sequence(index)
for batch in scoring_windows(corpus.held_out, 1024, 512, 16):
    pass
print(corpus.train.bytes + corpus.held_out.bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' account of a process' memory")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    path = tmp_path / "large.txt"
    line = "A line of text, as there are many in this file, with 漢字 and ü.\n".encode()
    with open(path, "wb") as file:
        for n in range(1500):
            file.write(b"".join(b"%d %d " % (n, m) + line for m in range(1000)))
    size = path.stat().st_size
    allowed = 80 << 20
    assert size > 1.3 * allowed
    code = MEMORY.format(
        tests=str(Path(__file__).parent), what=str(path), cache=str(tmp_path / "cache"), allowed=allowed
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == size
