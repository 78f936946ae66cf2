"""From a recipe to word vectors: the corpus as ids, counts, training, and a directory that loads."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from stemma.data.corpora import CorpusSource
from stemma.data.vectors import TENSOR, WordVectors, map_tensor, write_directory, write_tensors
from stemma.data.word_corpora import WordCorpus, prepare_words
from stemma.errors import InputError
from stemma.families.chunks import Progress, available_threads
from stemma.families.directory import replace_checkpoint
from stemma.families.glove import cooccurrence
from stemma.families.glove import training as glove_training
from stemma.families.glove.model import GloVe
from stemma.families.word2vec import training as word2vec_training
from stemma.families.word2vec.model import initial_vectors
from stemma.files import write_whole
from stemma.training.interrupts import Interrupts
from stemma.training.objective import Display
from stemma.training.progress import Silent
from stemma.training.run_directory import RECIPE, locked, remove_run, require_new, require_same
from stemma.training.state import remove_leftovers
from stemma.training.vector_recipe import (
    GloVeRecipe,
    Word2VecRecipe,
    changed_keys,
    load_vector_recipe,
    write_vector_recipe,
)

STATE, RECORDS = "training_state.safetensors", "cooccurrence.bin"
FILES = {"word2vec": "vectors.word2vec.txt", "word2vec-binary": "vectors.bin", "glove": "vectors.glove.txt"}
REPORT_INTERVAL = 0.1  # seconds


@dataclass(frozen=True)
class VectorOutcome:
    """How a run ended.

    Args:
        losses: of each epoch; see the families' `train`. seconds: of training. signal: that interrupted it, if one did.
    """

    words: int
    read: int
    losses: list[float]
    epochs: int
    seconds: float
    signal: int | None


def pretrain_vectors(
    recipe: Word2VecRecipe | GloVeRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    cache: Path | None = None,
) -> VectorOutcome:
    """Train word vectors into the directory `out`, or go on where an earlier run of the recipe stopped there.

    A run that is interrupted saves its state and can go on at that very chunk; one that is killed, at its last epoch.
    `out` holds no vectors before the end.

    Args:
        resume: there must be a run to go on with. overwrite: delete an earlier run first.
        cache: where corpora are kept as ids, default `cache_directory()`.
    Raises:
        InputError: a directory that holds something else, text that cannot be read, Numba not installed.
        OSError: the vectors could not be written.
    """
    shown = display or Silent()
    with locked(out):
        _claim(out, recipe, resume, overwrite)
        corpus = prepare_corpus(recipe, shown, cache)
        shown.say(f"corpus     {recipe.data.source}: {corpus.read:,} words, {len(corpus.words):,} in the vocabulary")
        run = _Word2VecRun(recipe, corpus) if isinstance(recipe, Word2VecRecipe) else _GloVeRun(recipe, corpus)
        progress = _restore(out / STATE, run.tensors) if (out / STATE).is_file() else Progress()
        if not (out / STATE).is_file() and (out / "config.json").is_file():
            shown.say("finished already: --overwrite trains anew")
            losses = json.loads((out / "config.json").read_text())["losses"]
            return VectorOutcome(len(corpus.words), corpus.read, losses, recipe.training.epochs, 0.0, None)
        run.prepare(out, shown)
        threads = recipe.training.threads or available_threads()
        shown.say(f"training   {recipe.training.epochs} epochs, {threads} thread{'s' if threads > 1 else ''}")
        if progress.chunk:
            shown.say(f"resuming   from epoch {len(progress.losses) + 1}")
        started = time.monotonic()
        with Interrupts() as interrupts:
            with ExitStack() as running:
                reporter = _Reporter(shown, running, out, run, recipe.training.epochs, progress)
                run.train(threads, progress, reporter, lambda: interrupts.received is not None)
            seconds = time.monotonic() - started
            if progress.chunk < progress.total:
                _save_state(out / STATE, run.tensors, progress)
                shown.say("saved; the same command again goes on from here")
            else:
                _publish(out, recipe, corpus, run, progress)
        signal = interrupts.received if progress.chunk < progress.total else None
        return VectorOutcome(len(corpus.words), corpus.read, progress.losses, recipe.training.epochs, seconds, signal)


def prepare_corpus(
    recipe: Word2VecRecipe | GloVeRecipe, display: Display | None = None, cache: Path | None = None
) -> WordCorpus:
    """Return the recipe's corpus as ids, from the cache or read now.

    Raises:
        InputError: see `prepare_words`.
    """
    data = recipe.data
    source = CorpusSource(data.source, field=data.field, documents=data.documents, held_out=0.0, format=data.format)
    with (display or Silent()).preparing() as report:
        return prepare_words(source, recipe.vocabulary.options, cache, report)


class _Word2VecRun:
    """What of a run is word2vec's. `tensors` are all that has to be saved to go on."""

    unit = "words_per_second"

    def __init__(self, recipe: Word2VecRecipe, corpus: WordCorpus) -> None:
        self.recipe, self.corpus = recipe, corpus
        inputs, outputs = initial_vectors(len(corpus.words), recipe.model, recipe.seed)
        self.tensors = {TENSOR: inputs, "outputs": outputs}
        self.items = corpus.read  # of one epoch

    def prepare(self, out: Path, display: Display) -> None:
        pass

    def train(
        self, threads: int, progress: Progress, report: Callable[[Progress], None], stop: Callable[[], bool]
    ) -> None:
        training = self.recipe.training
        word2vec_training.train(
            self.corpus,
            self.recipe.model,
            self.tensors[TENSOR],
            self.tensors["outputs"],
            epochs=training.epochs,
            learning_rate=training.learning_rate,
            threads=threads,
            seed=self.recipe.seed,
            progress=progress,
            report=report,
            stop=stop,
        )

    def published(self) -> dict[str, np.ndarray]:
        return self.tensors


class _GloVeRun:
    """What of a run is GloVe's."""

    unit = "records_per_second"

    def __init__(self, recipe: GloVeRecipe, corpus: WordCorpus) -> None:
        self.recipe, self.corpus = recipe, corpus
        self.model = GloVe.initial(len(corpus.words), recipe.model, recipe.seed)
        model = self.model
        names = ("vectors", "contexts", "biases", "context_biases")
        self.tensors = {name: getattr(model, name) for name in names}
        self.tensors |= {f"squares.{name}": array for name, array in zip(names, model.squares, strict=True)}
        self.items = 0

    def prepare(self, out: Path, display: Display) -> None:
        """Count, unless an interrupted run has done so; the records' order follows from the seed."""
        path = out / RECORDS
        if not path.is_file():
            with display.preparing() as report, write_whole(path) as temporary:
                cooccurrence.write_records(
                    self.corpus.tokens,
                    len(self.corpus.words),
                    self.recipe.model,
                    temporary,
                    memory=self.recipe.memory * 1e9,
                    seed=self.recipe.seed,
                    report=report,
                )
        self.records = np.memmap(path, cooccurrence.RECORD, "r")
        self.items = len(self.records)
        display.say(f"counted    {self.items:,} pairs of words that come together")

    def train(
        self, threads: int, progress: Progress, report: Callable[[Progress], None], stop: Callable[[], bool]
    ) -> None:
        training = self.recipe.training
        rate = {} if training.learning_rate is None else {"learning_rate": training.learning_rate}
        glove_training.train(
            self.records,
            self.recipe.model,
            self.model,
            epochs=training.epochs,
            threads=threads,
            progress=progress,
            report=report,
            stop=stop,
            **rate,
        )

    def published(self) -> dict[str, np.ndarray]:
        """The sums as the vectors to use, and of the parts what is needed to have both again."""
        names = ("contexts", "biases", "context_biases")
        return {TENSOR: self.model.sums} | {name: self.tensors[name] for name in names}


class _Reporter:
    """Shows the progress, in `running`, and saves the state after each epoch but the last."""

    def __init__(
        self,
        display: Display,
        running: ExitStack,
        out: Path,
        run: _Word2VecRun | _GloVeRun,
        epochs: int,
        progress: Progress,
    ) -> None:
        self.display, self.running, self.out, self.run, self.epochs = display, running, out, run, epochs
        self.first, self.saved = progress.chunk, len(progress.losses)
        self.started = self.shown = time.monotonic()
        self.begun = False

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self.begun:  # the number of chunks is known from here on
            self.begun = True
            self.running.enter_context(self.display.running(progress.chunk, progress.total))
        if len(progress.losses) > self.saved:
            self.saved = len(progress.losses)
            self.display.say(f"epoch {self.saved}/{self.epochs}  mean loss {progress.losses[-1]:.5f}")
            if progress.chunk < progress.total:
                _save_state(self.out / STATE, self.run.tensors, progress)
        elif now - self.shown < REPORT_INTERVAL:
            return
        self.shown = now
        done = (progress.chunk - self.first) / progress.total * self.epochs * self.run.items
        values = {self.run.unit: done / max(now - self.started, 1e-9)}
        if progress.mean_loss is not None:
            values["loss"] = progress.mean_loss
        self.display.step(progress.chunk, values)


def _claim(directory: Path, recipe: Word2VecRecipe | GloVeRecipe, resume: bool, overwrite: bool) -> None:
    """Make `directory` the recipe's: begin, or check that the run there is one of it."""
    remove_leftovers(directory)
    started = (directory / RECIPE).is_file()
    if started and overwrite:
        remove_run(directory)
    elif started:
        before = load_vector_recipe(directory / RECIPE)
        require_same(directory, ["another family"] if before is None else changed_keys(recipe, before))
    else:
        require_new(directory, resume)
    write_vector_recipe(recipe, directory / RECIPE)


def _save_state(path: Path, tensors: dict[str, np.ndarray], progress: Progress) -> None:
    write_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})


def _restore(path: Path, tensors: dict[str, np.ndarray]) -> Progress:
    """Put what `_save_state` wrote into the tensors."""
    try:
        with safe_open(path, "numpy") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
        for name, tensor in tensors.items():
            tensor[...] = map_tensor(path, name)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: no state of this run ({error}); --overwrite begins anew") from None
    return progress


def _publish(
    out: Path,
    recipe: Word2VecRecipe | GloVeRecipe,
    corpus: WordCorpus,
    run: _Word2VecRun | _GloVeRun,
    progress: Progress,
) -> None:
    tensors = run.published()
    config: dict[str, Any] = {"model_type": recipe.family, **asdict(recipe.model), "losses": progress.losses}
    vectors = WordVectors(corpus.words, tensors[TENSOR], corpus.counts)
    with replace_checkpoint(out) as staging:
        write_directory(staging, config, corpus.words, corpus.counts, tensors)
        for form in recipe.output.formats:
            vectors.save(staging / FILES[form], form)
    for name in (STATE, RECORDS):
        (out / name).unlink(missing_ok=True)
