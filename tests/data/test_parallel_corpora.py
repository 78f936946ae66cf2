"""Corpora of pairs: what comes back from the cache, how pairs are divided, what is refused."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from stemma.data.parallel_corpora import ParallelCorpus, ParallelSource, Texts, prepare_pairs
from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.errors import InputError

SOURCES = [f"Satz {number} öl" for number in range(300)]
TARGETS = [f"sentence {number}" for number in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*SOURCES, *TARGETS], "bpe", 300)


def write(folder: Path, name: str, sources: list[str], targets: list[str]) -> str:
    with gzip.open(folder / f"{name}.de.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(sources) + "\n")
    (folder / f"{name}.en").write_text("\n".join(targets) + "\n")
    return f"{folder / name}.de.gz, {folder / name}.en"


def prepared(source: ParallelSource, tokenizer: Tokenizer, folder: Path, stages: list | None = None) -> ParallelCorpus:
    return prepare_pairs(source, tokenizer, folder / "cache", lambda *stage: (stages or []).append(stage))


def texts(side: Texts, tokenizer: Tokenizer) -> list[str]:
    assert side.lengths.tolist() == [len(side[number]) for number in range(len(side))]
    assert all(side[number].dtype == np.int64 for number in range(len(side)))
    return [tokenizer.decode(side[number]) for number in range(len(side))]


def test_texts_come_back_in_step(tokenizer: Tokenizer, tmp_path: Path) -> None:
    train = write(tmp_path, "train", SOURCES, [*TARGETS[:-1], ""])
    source = ParallelSource(train, write(tmp_path, "dev", SOURCES[:9], TARGETS[:9]))
    corpus = prepared(source, tokenizer, tmp_path)
    assert texts(corpus.train.sources, tokenizer) == SOURCES
    assert texts(corpus.train.targets, tokenizer) == [*TARGETS[:-1], ""]
    assert texts(corpus.held_out.sources, tokenizer) == SOURCES[:9]
    assert (corpus.train.documents, corpus.held_out.documents) == (300, 9)
    assert corpus.held_out.bytes == sum(len(text) for text in TARGETS[:9])
    assert len(corpus.held_out.tokens) == corpus.held_out.targets.lengths.sum()
    assert list(source.training_texts())[:4] == [SOURCES[0], TARGETS[0], SOURCES[1], TARGETS[1]]

    files = sorted((tmp_path / "cache" / "pairs").rglob("*"))
    stamps = [file.stat().st_mtime_ns for file in files]
    again = prepared(source, tokenizer, tmp_path)
    assert again.train.fingerprint == corpus.train.fingerprint != corpus.held_out.fingerprint
    assert [file.stat().st_mtime_ns for file in files] == stamps  # nothing was written anew
    write(tmp_path, "dev", SOURCES[:9], TARGETS[1:10])
    assert prepared(source, tokenizer, tmp_path).held_out.fingerprint != corpus.held_out.fingerprint


def test_a_share_is_held_out_by_the_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    train = write(tmp_path, "train", [*SOURCES, *SOURCES], [*TARGETS, *reversed(TARGETS)])
    corpus = prepared(ParallelSource(train, 0.2), tokenizer, tmp_path)
    ours, theirs = (texts(split.sources, tokenizer) for split in (corpus.train, corpus.held_out))
    assert not set(ours) & set(theirs) and len(ours) + len(theirs) == 600
    assert 0.1 < len(theirs) / 600 < 0.3
    assert prepared(ParallelSource(train, 0.0), tokenizer, tmp_path).held_out.documents == 0


def test_python_has_pairs_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pairs = {source: target for _, source, target in ParallelSource("python", 0.0).pairs()}
    assert len(pairs) > 4000
    name = next(source for source in pairs if source.startswith("json.dumps(obj, *, skipkeys=False"))
    assert pairs[name] == "Serialize ``obj`` to a JSON formatted ``str``."
    assert pairs["json.decoder.JSONDecoder"] == "Simple JSON <https://json.org> decoder"


def test_what_cannot_be_read_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for what, held_out in (("one.de", 0.1), ("a,b,c", 0.1), ("a.de,a.en", "dev.de")):
        with pytest.raises(InputError, match="expected two files of lines with a comma between"):
            ParallelSource(what, held_out)
    with pytest.raises(InputError, match=r"data.held_out: 1.0; expected a share"):
        ParallelSource("a.de,a.en", 1.0)
    unequal = ParallelSource(write(tmp_path, "train", SOURCES, TARGETS[:-2]), 0.0)
    with pytest.raises(InputError, match=r"train.de.gz has 300 lines, but .*train.en 298"):
        prepared(unequal, tokenizer, tmp_path)
    longer = ParallelSource(write(tmp_path, "train", SOURCES[:5], TARGETS), 0.0)
    with pytest.raises(InputError, match=r"train.de.gz has 5 lines, but .*train.en 300"):
        prepared(longer, tokenizer, tmp_path)
    empty = ParallelSource(write(tmp_path, "train", ["", ""], ["a", "b"]), 0.0)
    with pytest.raises(InputError, match=re.escape("no pair to train on that has a text on both sides")):
        prepared(empty, tokenizer, tmp_path)
    assert not list((tmp_path / "cache" / "pairs").glob("*"))
    with pytest.raises(InputError, match=r"nowhere.de"):
        prepared(ParallelSource("nowhere.de,nowhere.en", 0.0), tokenizer, tmp_path)
