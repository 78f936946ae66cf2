"""Filling blanks with a BERT of 22M parameters beside transformers' pipeline("fill-mask") with the same random weights.

    python benchmarks/fill.py [--quick] [--data TEXT_FILE] [--queries 128] [--rounds 5]

Each query is a text with one [MASK], of which both give the five likeliest fillings, written out. "One at a time" calls
`fill` or the pipeline for every text, "in batches" once for all of them, the pipeline with batch_size=32. Lengths are
about those of SST-2, or those of a file's lines. Before anything is timed, both have to give the same tokens with
the same probabilities, to 1e-4. One round of each arm in turn; medians.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers

from common import interleave, machine, rates_row, table
from stemma import families
from stemma.families.bert.model import BERT, BERTConfig
from stemma.inference.filling import fill
from stemma.training.hardware import prepare_processor
from texts import VOCABULARY, draw_texts, wordpiece

TOP_K, PEER_BATCH = 5, 32
# MiniLM's size, 22.7M with the embedding; the weights are large enough for answers that are not all equally likely.
CONFIG = BERTConfig(vocabulary=VOCABULARY, layers=6, hidden=384, heads=12, initial_std=0.1)


def with_blank(text: str, rng: np.random.Generator) -> str:
    """Replace one word, of the first 300."""
    words = text.split()[:300]
    words[int(rng.integers(len(words)))] = "[MASK]"
    return " ".join(words)


def build(queries: list[str]) -> dict[str, dict[str, Callable[[], list]]]:
    """Return for each way of asking both arms: functions that answer all queries."""
    torch.manual_seed(0)
    model, tokenizer = BERT(CONFIG).eval(), wordpiece()
    with TemporaryDirectory() as folder:
        families.save(model, tokenizer, Path(folder))
        peer_model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
        peer_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        peer = transformers.pipeline("fill-mask", model=peer_model, tokenizer=peer_tokenizer, top_k=TOP_K)
    return {
        "one at a time": {
            "stemma": lambda: [fill(model, tokenizer, query, top_k=TOP_K)[0] for query in queries],
            "transformers": lambda: [peer(query) for query in queries],
        },
        "in batches": {
            "stemma": lambda: fill(model, tokenizer, queries, top_k=TOP_K),
            "transformers": lambda: peer(queries, batch_size=PEER_BATCH),
        },
    }


def check(ours: list, theirs: list) -> float:
    """Return the largest difference of two probabilities; refuse other tokens."""
    largest = 0.0
    for mine, his in zip(ours, theirs, strict=True):
        probabilities = np.exp([one.log_probability for one in mine])
        scores = np.array([one["score"] for one in his])
        largest = max(largest, float(np.abs(probabilities - scores).max()))
        if [one.pieces[0] for one in mine] != [one["token_str"] for one in his]:
            raise SystemExit(f"other tokens: {mine} and {his}")
    if largest > 1e-4:
        raise SystemExit(f"the probabilities differ by {largest}")
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="text file, a query a line; default: Python's help topics")
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="32 queries, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.queries, options.rounds = 32, 3
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare_processor()
    rng = np.random.default_rng(0)
    queries = [with_blank(text, rng) for text in draw_texts(options.queries, 0, options.data)]
    ways = build(queries)
    print(machine())
    print(f"{len(queries)} queries of {min(map(len, queries))} to {max(map(len, queries))} characters", end="; ")
    answers = ways["one at a time"]["transformers"]()
    differences = [check(arms["stemma"](), answers) for arms in ways.values()]
    print(f"same tokens, probabilities equal to {max(differences):.0e}\n")
    rows = []
    for way, arms in ways.items():
        rows.append(rates_row(way, len(queries), interleave(arms, options.rounds)))
    print(table(["queries/s", "stemma", "transformers", "times the peer"], rows))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
