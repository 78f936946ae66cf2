"""Training word vectors, and answering analogies, beside gensim and the original C programs.

    python benchmarks/vectors.py [--text FILE] [--words N] [--epochs 5] [--rounds 1] [--dimensions 100]
        [--analogies questions-words.txt] [--similarity FILE ...]
        [--word2vec PROGRAM ...] [--glove FOLDER] [--only skip-gram cbow analogies glove threads]

All train on the same lower-cased lines, one thread each, with the same settings: window 5, 5 noise words, subsampling
1e-3, least count 5. Rates are words of the text per second of processor time, reading and the vocabulary not counted
(for the programs: measured by runs that train nothing, and subtracted). Quality is the mean Spearman correlation over
the files of `--similarity`, and the share of analogies that are right (of those that have vectors, 3CosAdd). A round is
a seed; within it the arms run in turn.

`--word2vec`: compiled word2vec.c. It is given the text as often as there are epochs, and one iteration, because with
one thread it stops after one iteration whatever is asked for. `--glove`: a folder with Stanford's vocab_count, cooccur,
shuffle and glove; window 10, x_max 10, and for both the mean cost of each record is compared.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common import machine, median, table
from stemma.data.byte_streams import text_chunks
from stemma.data.corpora import CorpusSource, training_texts
from stemma.data.vectors import WordVectors
from stemma.data.word_corpora import WordCorpus, WordOptions, prepare_words
from stemma.evaluation.word_vectors import answer_analogies, read_analogies, read_similarities, score_similarities
from stemma.families.glove import cooccurrence
from stemma.families.glove import training as glove_training
from stemma.families.glove.model import GloVe, GloVeConfig
from stemma.families.word2vec import training as word2vec_training
from stemma.families.word2vec.model import Word2VecConfig, initial_vectors

MIN_COUNT, WINDOW, NEGATIVES, SUBSAMPLE = 5, 5, 5, 1e-3
GLOVE_WINDOW, GLOVE_X_MAX, GLOVE_EPOCHS = 10, 10, 3

# What an arm returns: vectors, and seconds of processor time.
Arm = Callable[[int], tuple[WordVectors, float]]


class Bench:
    """The text in the forms that the arms want."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        whole = (
            "".join(text_chunks(options.text, lambda read: None))
            if options.text
            else "\n".join(training_texts(CorpusSource("python", held_out=0.0)))
        )
        self.lines: list[list[str]] = []
        self.words = 0
        for line in whole.lower().split("\n"):
            words = line.replace("<unk>", "UNK").split()  # Stanford's programs refuse <unk>
            if words and (options.words is None or self.words < options.words):
                self.lines.append(words)
                self.words += len(words)
        self.path = folder / "text.txt"
        self.path.write_text("\n".join(map(" ".join, self.lines)) + "\n")
        self.repeated = folder / "repeated.txt"
        self.repeated.write_text(self.path.read_text() * options.epochs)
        source = CorpusSource(str(self.path))
        self.corpus: WordCorpus = prepare_words(source, WordOptions(min_count=MIN_COUNT), folder / "cache")
        self.sections = read_analogies(options.analogies) if options.analogies else {}
        self.pairs = [read_similarities(path) for path in options.similarity or []]

    def quality(self, vectors: WordVectors) -> tuple[float, float]:
        """Return the mean correlation, and the share of analogies that are right."""
        correlations = [score_similarities(vectors, pairs).spearman for pairs in self.pairs]
        analogies = answer_analogies(vectors, self.sections)["total"].accuracy if self.sections else 0.0
        return float(np.mean(correlations)) if correlations else 0.0, analogies

    def ours(self, config: Word2VecConfig, threads: int = 1) -> Arm:
        def train(seed: int) -> tuple[WordVectors, float]:
            inputs, outputs = initial_vectors(len(self.corpus.words), config, seed)
            warm = WordCorpus(self.corpus.words, self.corpus.counts, self.corpus.tokens[:100], 0)
            word2vec_training.train(warm, config, inputs.copy(), outputs.copy(), epochs=1)  # compile, or load
            started = time.process_time()
            word2vec_training.train(
                self.corpus, config, inputs, outputs, epochs=self.options.epochs, threads=threads, seed=seed
            )
            return WordVectors(self.corpus.words, inputs), time.process_time() - started

        return train

    def gensim(self, skip_gram: bool) -> Arm:
        from gensim.models import Word2Vec

        def train(seed: int) -> tuple[WordVectors, float]:
            model = Word2Vec(
                vector_size=self.options.dimensions,
                window=WINDOW,
                min_count=MIN_COUNT,
                sg=int(skip_gram),
                negative=NEGATIVES,
                sample=SUBSAMPLE,
                alpha=0.025 if skip_gram else 0.05,
                workers=1,
                seed=seed,
            )
            model.build_vocab(self.lines)
            started = time.process_time()
            model.train(self.lines, total_examples=len(self.lines), epochs=self.options.epochs)
            return WordVectors(model.wv.index_to_key, model.wv.vectors), time.process_time() - started

        return train

    def original(self, program: Path, skip_gram: bool) -> Arm:
        def command(iterations: int) -> float:
            least = MIN_COUNT * self.options.epochs
            words = [program, "-train", self.repeated, "-output", self.folder / "c.bin", "-binary", 1, "-threads", 1]
            words += ["-size", self.options.dimensions, "-window", WINDOW, "-negative", NEGATIVES, "-min-count", least]
            words += ["-sample", SUBSAMPLE, "-cbow", int(not skip_gram), "-iter", iterations, "-debug", 0]
            return processor_seconds(list(map(str, words)))

        def train(seed: int) -> tuple[WordVectors, float]:
            # With no iterations it still trains once; without output it stops after reading the vocabulary.
            vocabulary = ["-train", self.repeated, "-save-vocab", self.folder / "c.vocab", "-debug", 0]
            reading = processor_seconds(list(map(str, [program, *vocabulary])))
            seconds = command(1) - reading
            return WordVectors.load(self.folder / "c.bin", errors="replace"), seconds

        return train


def processor_seconds(command: list[str], **options: object) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(bench: Bench, title: str, arms: dict[str, Arm]) -> None:
    rates: dict[str, list[float]] = {name: [] for name in arms}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for seed in range(1, bench.options.rounds + 1):
        for name, arm in arms.items():
            vectors, seconds = arm(seed)
            rates[name].append(bench.words * bench.options.epochs / seconds)
            scores[name].append(bench.quality(vectors))
    base = median(rates["gensim"]) if "gensim" in rates else median(next(iter(rates.values())))
    rows = []
    for name in arms:
        correlation, analogies = np.mean(scores[name], axis=0)
        rate = median(rates[name])
        rows.append(
            [name, f"{rate / 1e3:.0f}k", f"{rate / base:.2f}", f"{correlation:.3f}", f"{100 * analogies:.2f} %"]
        )
    print(table([title, "words / CPU-s", "ratio", "similarity", "analogies"], rows), flush=True)
    print()


def compare_analogies(bench: Bench) -> None:
    from gensim.models import KeyedVectors

    config = Word2VecConfig(dimensions=bench.options.dimensions)
    vectors, _ = bench.ours(config)(1)
    theirs = KeyedVectors(vectors.dimensions)
    theirs.add_vectors(vectors.words, vectors.matrix)
    started = time.process_time()
    score = answer_analogies(vectors, bench.sections)["total"]
    ours = time.process_time() - started
    started = time.process_time()
    accuracy, _ = theirs.evaluate_word_analogies(str(bench.options.analogies))
    peer = time.process_time() - started
    rows = [
        ["stemma", f"{ours:.2f}", f"{peer / ours:.1f}", f"{100 * score.accuracy:.3f} %"],
        ["gensim", f"{peer:.2f}", "1", f"{100 * accuracy:.3f} %"],
    ]
    print(table([f"{score.answered:,} analogies, {len(vectors):,} words", "CPU-s", "times", "right"], rows), flush=True)
    print()


def compare_glove(bench: Bench, programs: Path | None) -> None:
    config = GloVeConfig(dimensions=bench.options.dimensions, window=GLOVE_WINDOW, x_max=GLOVE_X_MAX)
    path = bench.folder / "records.bin"
    cooccurrence.write_records(bench.corpus.tokens[:100], len(bench.corpus.words), config, path)  # compile, or load
    started = time.process_time()
    cooccurrence.write_records(bench.corpus.tokens, len(bench.corpus.words), config, path)
    counting = time.process_time() - started
    records = np.memmap(path, cooccurrence.RECORD, "r")
    model = GloVe.initial(len(bench.corpus.words), config, 1)
    glove_training.train(records[:100], config, GloVe.initial(len(bench.corpus.words), config, 1), epochs=1)
    started = time.process_time()
    losses = glove_training.train(records, config, model, epochs=GLOVE_EPOCHS).losses
    seconds = time.process_time() - started
    correlation, analogies = bench.quality(WordVectors(bench.corpus.words, model.sums))
    rows = [["stemma", counting, GLOVE_EPOCHS * len(records) / seconds, losses[-1], correlation, analogies]]
    if programs:
        rows.append(["Stanford's", *stanford(bench, programs, config, len(records))])
    shown = [
        [name, f"{count:.2f}", f"{rate / 1e6:.2f}M", f"{loss:.4f}", f"{correlation:.3f}", f"{100 * analogies:.2f} %"]
        for name, count, rate, loss, correlation, analogies in rows
    ]
    heads = [
        f"GloVe, {len(records):,} records",
        "counting, CPU-s",
        "records / CPU-s",
        "cost",
        "similarity",
        "analogies",
    ]
    print(table(heads, shown), flush=True)
    print()


def stanford(bench: Bench, programs: Path, config: GloVeConfig, records: int) -> list[float]:
    folder = bench.folder

    def run(name: str, arguments: str, read: str | None = None, write: str | None = None) -> tuple[float, str]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        source = open(folder / read, "rb") if read else subprocess.DEVNULL  # noqa: SIM115
        target = open(folder / write, "wb") if write else subprocess.DEVNULL  # noqa: SIM115
        command = [str(programs / name), *arguments.split()]
        ended = subprocess.run(command, check=True, cwd=folder, stdin=source, stdout=target, stderr=subprocess.PIPE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended.stderr.decode()

    run("vocab_count", f"-min-count {MIN_COUNT} -verbose 0", "text.txt", "vocab.txt")
    counting = run("cooccur", f"-vocab-file vocab.txt -window-size {config.window} -memory 2", "text.txt", "co.bin")[0]
    counting += run("shuffle", "-memory 2", "co.bin", "co.shuffled.bin")[0]
    arguments = "-input-file co.shuffled.bin -vocab-file vocab.txt -save-file c-glove -threads 1 -binary 0 "
    arguments += f"-x-max {config.x_max} -vector-size {config.dimensions} -iter {GLOVE_EPOCHS} -verbose 2"
    seconds, said = run("glove", arguments)
    assert (folder / "co.bin").stat().st_size == 16 * records
    cost = float(said.rsplit("cost: ", 1)[1].split()[0])
    vectors = WordVectors.load(folder / "c-glove.txt", form="glove")
    return [counting, GLOVE_EPOCHS * records / seconds, cost, *bench.quality(vectors)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="text, a sentence a line; default: the text that ships with Python")
    parser.add_argument("--words", type=int, help="use about so many words of it")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dimensions", type=int, default=100)
    parser.add_argument("--analogies", type=Path)
    parser.add_argument("--similarity", type=Path, nargs="*")
    parser.add_argument("--word2vec", type=Path, nargs="*", default=[])
    parser.add_argument("--glove", type=Path)
    parts = ["skip-gram", "cbow", "analogies", "glove", "threads"]
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    options = parser.parse_args()
    print(machine())
    with TemporaryDirectory() as name:
        bench = Bench(options, Path(name))
        shared = {"dimensions": options.dimensions, "window": WINDOW, "negatives": NEGATIVES, "subsample": SUBSAMPLE}
        print(f"{bench.words:,} words, {len(bench.corpus.words):,} in the vocabulary, {options.epochs} epochs\n")
        skip_gram = {mode: bench.ours(Word2VecConfig(**shared, mode=mode)) for mode in ("fast", "exact")}
        if "skip-gram" in options.only:
            arms = {f"stemma, {mode}": arm for mode, arm in skip_gram.items()} | {"gensim": bench.gensim(True)}
            arms |= {str(program.name): bench.original(program, True) for program in options.word2vec}
            compare(bench, "skip-gram", arms)
        if "cbow" in options.only:
            arms = {
                f"stemma, {gradient} gradient": bench.ours(
                    Word2VecConfig(**shared, architecture="cbow", cbow_gradient=gradient)
                )
                for gradient in ("exact", "reference")
            }
            arms |= {"gensim": bench.gensim(False)}
            arms |= {str(program.name): bench.original(program, False) for program in options.word2vec}
            compare(bench, "CBOW", arms)
        if "threads" in options.only:
            config = Word2VecConfig(**shared)
            compare(bench, "threads", {f"{count} threads": bench.ours(config, count) for count in (1, 2)})
        if "analogies" in options.only and bench.sections:
            compare_analogies(bench)
        if "glove" in options.only:
            compare_glove(bench, options.glove)
    print(f"python {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
