"""Fine-tuning speed on texts of different lengths beside transformers' Trainer: samples/s of a whole run.

    python benchmarks/finetuning.py [--quick] [--family bert|gpt] [--data TEXT_FILE] [--samples 1024] [--epochs 1]

A run is all of `finetune` or `Trainer.train` but the loading of the checkpoint: tokenizing, the epochs, the measurement
on 128 further texts and the checkpoint after each, and the best weights at the end. Both start from the same BERT with
the shape of BERT-mini (11M parameters) or a GPT-2 of that width and depth, with dropout 0.1 as published, float32,
batches of 32, fused AdamW, the same schedule and clipping. Lengths are about those of SST-2, or those of a file's
lines; labels are drawn. The Trainer runs with its default collator, which pads to the longest of a batch: with batches
at random, which is its default, and with train_sampling_strategy="group_by_length". One run of each arm in turn;
medians.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers

from common import machine, median, table
from stemma import families
from stemma.data.labelled import LabelledData
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.finetuning import run
from stemma.finetuning.recipe import build_recipe
from stemma.finetuning.run import Splits, finetune
from texts import VOCABULARY, draw_texts, wordpiece

BATCH, DEV, RATE = 32, 128, 3e-4
SHAPE = {"vocabulary": VOCABULARY, "layers": 4, "hidden": 256, "heads": 4}
DROPOUT = 0.1
STEMMA, RANDOM, GROUPED = "stemma", "Trainer, random batches", "Trainer, group_by_length"
NAMES = ("negative", "positive")


def write_model(family: str, folder: Path) -> None:
    """Write a checkpoint with random weights that both sides load."""
    torch.manual_seed(0)
    tokenizer = wordpiece()
    if family == "bert":
        families.save(BERT(BERTConfig(**SHAPE)), tokenizer, folder)
    else:
        families.save(GPT(GPTConfig(**SHAPE, context=512, dropout=DROPOUT)), tokenizer, folder)


def labelled(count: int, seed: int, data: Path | None) -> LabelledData:
    labels = np.random.default_rng(seed).integers(2, size=count).tolist()
    return LabelledData([(text,) for text in draw_texts(count, seed, data)], labels, NAMES)


def ours(family: str, model: Path, splits: Splits, epochs: int) -> float:
    """Fine-tune with stemma; return the seconds, those of loading left out."""
    loading = 0.0
    build = run.build

    def timed(*arguments: Any) -> Any:
        nonlocal loading
        start = time.perf_counter()
        built = build(*arguments)
        loading = time.perf_counter() - start
        return built

    training = {"learning_rate": RATE, "batch": BATCH, "epochs": epochs, "schedule": {"name": "linear", "warmup": 0.1}}
    given: dict[str, Any] = {"model": str(model), "data": {"train": "given"}, "training": training}
    if family == "gpt":
        given["task"] = {"language_model": 0.0}  # the Trainer has no such loss
    recipe = build_recipe(given, [], family=family, parameters=10**7, examples=10**6)
    with TemporaryDirectory() as out, patch.object(run, "build", timed):
        start = time.perf_counter()
        finetune(recipe, Path(out), splits=splits)
        return time.perf_counter() - start - loading


def theirs(family: str, folder: Path, splits: Splits, epochs: int, sampling: str) -> float:
    """Fine-tune with the Trainer; return the seconds, those of loading left out."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(NAMES))
    if family == "gpt":
        model.config.pad_token_id = tokenizer.pad_token_id
    with TemporaryDirectory() as out:
        start = time.perf_counter()
        arguments = transformers.TrainingArguments(
            out,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            learning_rate=RATE,
            weight_decay=0.01,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            optim="adamw_torch_fused",
            train_sampling_strategy=sampling,
            eval_strategy="epoch",
            save_strategy="best",
            metric_for_best_model="accuracy",
            load_best_model_at_end=True,
            disable_tqdm=True,
            report_to=[],
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=encoded(tokenizer, splits.train),
            eval_dataset=encoded(tokenizer, splits.dev),
            processing_class=tokenizer,
            compute_metrics=lambda predicted: {
                "accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())
            },
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        trainer.evaluate()
        return time.perf_counter() - start


def encoded(tokenizer: Any, data: LabelledData) -> list[dict[str, Any]]:
    """Return the examples as the Trainer takes them, without padding."""
    columns = tokenizer([text for (text,) in data.texts], truncation=True, max_length=256)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{**row, "labels": label} for row, label in zip(rows, data.labels, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["bert", "gpt"], default="bert")
    parser.add_argument("--data", type=Path, help="text file, an example a line; default: Python's help topics")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="128 samples, one epoch, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.epochs, options.rounds = 128, 1, 2
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    splits = Splits(labelled(options.samples, 0, options.data), labelled(DEV, 1, options.data), None)
    seconds: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        model, epochs = Path(folder), options.epochs
        write_model(options.family, model)
        arms: dict[str, Callable[[], float]] = {
            STEMMA: lambda: ours(options.family, model, splits, epochs),
            RANDOM: lambda: theirs(options.family, model, splits, epochs, "random"),
            GROUPED: lambda: theirs(options.family, model, splits, epochs, "group_by_length"),
        }
        lengths = [len(ids) for ids in wordpiece().encode_batch([text for (text,) in splits.train.texts])]
        print(machine())
        print(f"{options.family}, {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens, ", end="")
        print(f"{np.mean(lengths):.1f} in the mean, {epochs} epochs\n", flush=True)
        for _ in range(options.rounds):
            for name, arm in arms.items():
                seconds.setdefault(name, []).append(arm())
    times = {name: median(values) for name, values in seconds.items()}
    rows = [
        [name, f"{options.samples * epochs / value:.1f}", f"{value:.1f}", f"{value / times[STEMMA]:.2f}"]
        for name, value in times.items()
    ]
    print(table(["arm", "samples/s", "seconds", "our speed over its"], rows))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
