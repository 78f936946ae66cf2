"""What `stemma pretrain` and `stemma evaluate` do with word vectors."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from stemma.training.progress import ConsoleDisplay
    from stemma.training.vector_recipe import GloVeRecipe, Word2VecRecipe


def pretrain_vectors(
    recipe: "Word2VecRecipe | GloVeRecipe",
    directory: Path,
    display: "ConsoleDisplay",
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train word vectors, and print how that ended."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from stemma.training.progress import duration
    from stemma.training.vectors import prepare_corpus
    from stemma.training.vectors import pretrain_vectors as run

    console = display.console
    if dry_run:
        corpus = prepare_corpus(recipe, display)
        summary = {"words": corpus.read, "vocabulary": len(corpus.words), "epochs": recipe.training.epochs}
        display.say(f"{corpus.read:,} words, {len(corpus.words):,} in the vocabulary, {recipe.training.epochs} epochs")
        if as_json:
            print(json.dumps(summary))
        return
    outcome = run(recipe, directory, resume=resume, overwrite=overwrite, display=display)
    if as_json:
        reason = "finished" if outcome.signal is None else "interrupted"
        print(json.dumps({"reason": reason, "out": str(directory), **asdict(outcome)}))
    elif outcome.signal is None:
        table = Table(title=f"finished after {outcome.epochs} epochs", title_justify="left")
        for name in ("words read", "vocabulary", "time", "mean loss"):
            table.add_column(name, justify="right")
        table.add_row(f"{outcome.read:,}", f"{outcome.words:,}", duration(outcome.seconds), f"{outcome.losses[-1]:.5f}")
        console.print(table)
        console.print(f"next: stemma embed neighbours {directory} WORD", highlight=False, soft_wrap=True)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


def evaluate_vectors(model: str, analogies: list[Path], similarity: list[Path], restrict: int, as_json: bool) -> None:
    """Score word vectors, and print a table."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stemma.data.vectors import WordVectors
    from stemma.evaluation import word_vectors as scoring

    questions = {path: scoring.read_analogies(path) for path in analogies}
    pairs = {path: scoring.read_similarities(path) for path in similarity}
    vectors = WordVectors.load(model, limit=restrict)
    result: dict = {"model": model, "words": len(vectors), "analogies": {}, "similarity": {}}
    console = Console(quiet=as_json)
    for path, sections in questions.items():
        scores = {
            "3CosAdd": scoring.answer_analogies(vectors, sections, restrict=restrict),
            "3CosMul": scoring.answer_analogies(vectors, sections, method="multiply", restrict=restrict),
        }
        result["analogies"][str(path)] = {
            name: {
                section: asdict(score) | {"accuracy": score.accuracy, "accuracy_of_all": score.accuracy_of_all}
                for section, score in found.items()
            }
            for name, found in scores.items()
        }
        table = Table("section", title=Text(f"{path}: right, per cent"), title_justify="left")
        for name in ("questions", "answerable", "3CosAdd", "3CosMul", "3CosAdd of all", "3CosMul of all"):
            table.add_column(name, justify="right")
        for section, add in scores["3CosAdd"].items():
            multiply = scores["3CosMul"][section]
            numbers = (add.accuracy, multiply.accuracy, add.accuracy_of_all, multiply.accuracy_of_all)
            shown = [f"{100 * number:.2f}" for number in numbers]
            table.add_row(Text(section), f"{add.questions:,}", f"{add.answered:,}", *shown)
        console.print(table)
    if pairs:
        table = Table("pairs of words", title="rank correlation with people (Spearman)", title_justify="left")
        for name in ("pairs", "known", "of the known", "unknown as cosine 0"):
            table.add_column(name, justify="right")
        for path, rows in pairs.items():
            score = scoring.score_similarities(vectors, rows, restrict=restrict)
            result["similarity"][str(path)] = asdict(score)
            correlations = f"{score.spearman:.4f}", f"{score.spearman_of_all:.4f}"
            table.add_row(Text(path.name), f"{score.pairs:,}", f"{score.known:,}", *correlations)
        console.print(table)
    if as_json:
        print(json.dumps(result))
