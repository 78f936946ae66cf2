"""From a recipe to a trained model: tokenizer, corpus, model, trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stemma import families
from stemma.data.content_hashes import digest
from stemma.data.corpora import CorpusSource, open_corpus, thinned, training_texts
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.packing import PackedSequences
from stemma.data.parallel_corpora import ParallelCorpus, ParallelSource, prepare_pairs
from stemma.data.shards import prepare
from stemma.data.tokenized_corpus import TokenizedCorpus
from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families.weights import build_empty
from stemma.files import cache_directory, write_whole
from stemma.training.architecture import adapt_tokenizer, build_config, build_objective
from stemma.training.batches import Plan, derived_seed
from stemma.training.distributed import Workers
from stemma.training.hardware import choose_precision, training_flops_per_token
from stemma.training.held_out import SampledDocuments
from stemma.training.objective import Display, HeldOut
from stemma.training.progress import Silent, quantity
from stemma.training.recipe import Recipe, expanded
from stemma.training.running import Run, run
from stemma.training.trainer import Outcome, Task


@dataclass(frozen=True)
class Prepared:
    """Everything of a run but the running: what `--dry-run` looks at."""

    recipe: Recipe
    tokenizer: Tokenizer
    corpus: TokenizedCorpus | ParallelCorpus
    task: Task
    precision: torch.dtype

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers to know before the start; floating-point operations by the estimate of hardware.py."""
        model, task, plan = self.task.model, self.task, _plan(self.recipe)
        tokens = plan.first(task.steps) * task.length
        return {
            "documents": self.corpus.train.documents,
            "corpus_tokens": len(self.corpus.train.tokens),
            "held_out_documents": self.corpus.held_out.documents,
            "held_out_tokens": len(self.corpus.held_out.tokens),
            "vocabulary": self.tokenizer.vocabulary,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": task.steps,
            "tokens_per_step": self.recipe.training.batch * task.length,
            "tokens": tokens,
            "epochs": plan.first(task.steps) / len(task.sequences),
            "flops": tokens * training_flops_per_token(model, task.length, task.objective),
            "precision": str(self.precision).removeprefix("torch."),
        }


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    cache: Path | None = None,
) -> Outcome:
    """Train the recipe's model into the directory `out`, or go on where an earlier run of it stopped there.

    Under torchrun the workers share the training; the first one writes.

    Args:
        resume: there must be a run to go on with. overwrite: delete an earlier run of whatever recipe first.
        cache: where tokenizers and tokenised corpora are kept, default `cache_directory()`.
    Raises:
        InputError: a directory that holds something else, data that cannot be read or is too small, too little room.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    recipe = expanded(recipe)

    def build(workers: Workers, shown: Display) -> Run:
        prepared = prepare_run(recipe, workers=workers, display=shown, cache=cache)
        return Run(prepared.task, publisher(prepared.task.model, prepared.tokenizer), summary_lines(prepared))

    return run(recipe, out, build, resume=resume, overwrite=overwrite, display=display)


def prepare_run(
    recipe: Recipe, *, workers: Workers | None = None, display: Display | None = None, cache: Path | None = None
) -> Prepared:
    """Build all that a recipe speaks of; what takes long is kept in the cache.

    Raises:
        InputError: see `pretrain`.
    """
    recipe = expanded(recipe)
    workers, display, cache = workers or Workers(), display or Silent(), cache or cache_directory()
    branch = families.family(recipe.family)
    source = _source(recipe, branch)
    with workers.main_first(), display.preparing() as report:
        tokenizer = find_tokenizer(recipe, source, cache, report)
        tokenizer = adapt_tokenizer(branch, recipe.objective, tokenizer)
        corpus: Any
        if isinstance(source, ParallelSource):
            corpus = prepare_pairs(source, tokenizer, cache, report)
        else:
            corpus = prepare(source, tokenizer, cache, report)
    config = build_config(branch, recipe.model, tokenizer)
    length = recipe.training.length or getattr(config, "context", None)
    if length is None:
        raise InputError("training.length: is missing, and the model has no context to take it from")
    if length > getattr(config, "context", length):
        raise InputError(f"training.length: {length} tokens, more than the model's context of {config.context}")
    torch.manual_seed(derived_seed(recipe.seed))
    model = branch.model(config)
    objective = build_objective(branch, recipe.objective, tokenizer)
    training = recipe.training
    if training.ramp is not None and hasattr(objective, "carried"):
        raise InputError("training.ramp: the rows carry a state from update to update, so there are always as many")
    try:
        if hasattr(objective, "sequences"):
            sequences = objective.sequences(corpus.train, length, recipe.seed, training.batch)
        else:
            sequences = PackedSequences(corpus.train, length, recipe.seed)
    except InputError as error:  # it is smaller than one
        raise InputError(f"{recipe.data.source}: {error}") from None
    steps = training.steps or _plan(recipe).steps_for((training.epochs or 0) * len(sequences))
    task = Task(
        model,
        objective,
        sequences,
        length=length,
        steps=steps,
        held_out=_held_out(recipe, objective, tokenizer, corpus, length),
        fingerprints={"data": sequences.fingerprint, "tokenizer": tokenizer.fingerprint},
    )
    precision = choose_precision(recipe.execution.precision, workers.device)
    return Prepared(recipe, tokenizer, corpus, task, precision)


def find_tokenizer(
    recipe: Recipe, source: CorpusSource | ParallelSource, cache: Path, report: Callable[[str, int, int], None]
) -> Tokenizer:
    """Load the recipe's tokenizer, or train it on the training split, once for each corpus and setting.

    Raises:
        InputError: no such tokenizer, or a corpus that cannot be read.
    """
    wanted = recipe.tokenizer
    if wanted.path is not None:
        return load_tokenizer(wanted.path)
    if isinstance(source, ParallelSource):
        content, texts = source.fingerprint(cache), source.training_texts()
    else:
        content, texts = open_corpus(source, cache).fingerprint(cache, lambda read: None), training_texts(source, cache)
    key = digest([content, str(source.held_out), wanted.kind, str(wanted.vocabulary)])
    folder = cache / "tokenizers" / key
    if not (folder / "tokenizer.json").is_file():
        report("training the tokenizer", 0, 0)
        tokenizer = train_tokenizer(thinned(texts), wanted.kind, wanted.vocabulary)
        try:
            with write_whole(folder) as temporary:
                tokenizer.save(temporary)
        except OSError:
            if not (folder / "tokenizer.json").is_file():  # unless another process was faster
                raise
    return load_tokenizer(folder)


def publisher(
    model: nn.Module, tokenizer: Tokenizer | None, preprocessing: Preprocessing | None = None
) -> Callable[[Mapping[str, Tensor], Path], None]:
    """Return what writes weights of `model`'s shape as a checkpoint directory.

    The weights may be averages or gathered from several workers; they are put into a shell of the model for it.
    """
    shell = build_empty(lambda: type(model)(model.config))

    def publish(weights: Mapping[str, Tensor], directory: Path) -> None:
        shell.load_state_dict(dict(weights), assign=True)
        try:
            families.save(shell, tokenizer, directory, preprocessing=preprocessing)
        except SafetensorError as error:
            raise OSError(f"{directory}: {error}") from error

    return publish


def summary_lines(prepared: Prepared) -> list[str]:
    """Say in a few lines what is about to be trained on what."""
    numbers = prepared.summary
    recipe = prepared.recipe
    return [
        f"corpus     {recipe.data.source}: {prepared.corpus.summary}",
        f"tokenizer  {recipe.tokenizer.path or recipe.tokenizer.kind}, {numbers['vocabulary']:,} tokens",
        f"model      {recipe.family}, {numbers['parameters']:,} parameters",
        f"training   {numbers['steps']:,} steps of {numbers['tokens_per_step']:,} tokens = "
        f"{quantity(numbers['tokens'])} tokens, {numbers['epochs']:.2f} epochs, about {numbers['flops']:.2e} FLOPs "
        f"in {numbers['precision']}",
    ]


def _source(recipe: Recipe, branch: families.Family) -> CorpusSource | ParallelSource:
    data = recipe.data
    if getattr(branch.objectives[recipe.objective["name"]], "reads_pairs", False):
        return ParallelSource(data.source, data.held_out)
    return CorpusSource(data.source, data.field, data.documents, data.held_out, data.format)


def _plan(recipe: Recipe) -> Plan:
    return Plan(recipe.training.batch, recipe.training.ramp)


def _held_out(recipe: Recipe, objective: Any, tokenizer: Tokenizer, corpus: Any, length: int) -> HeldOut | None:
    split = corpus.held_out
    if not split.documents:
        return None
    wanted = recipe.evaluation.tokens
    if wanted is not None and isinstance(corpus, ParallelCorpus):
        raise InputError(f"evaluation.tokens: {wanted}, but pairs are all evaluated on; expected null")
    documents = split if wanted is None or wanted >= len(split.tokens) else SampledDocuments(split, wanted)
    rows = recipe.execution.micro_batch or min(recipe.training.batch, 64)
    # A `likelihood` of False says that the loss is no likelihood of the text, so that bits per byte mean nothing.
    likelihood = getattr(objective, "likelihood", True) and not tokenizer.has_whole_words
    text = documents.bytes if likelihood else None
    return HeldOut(lambda: objective.held_out(documents, length, rows), text)
