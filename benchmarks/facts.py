"""Asking a BERT for facts (LAMA) beside transformers' pipeline("fill-mask") with the same random weights.

    python benchmarks/facts.py [--quick] [--facts FOLDER --tokenizer vocab.txt] [--queries 1024] [--rounds 5]

Ours ranks the right object of every question among the common vocabulary, raw and filtered; the pipeline, with
batch_size=32, only gives the ten likeliest tokens, by which P@1 and P@10 could be counted. Questions are those of a
folder of facts (T-REx), or made up of words of Python's help topics in fifteen templates. Before anything is timed, the
probabilities of the pipeline's tokens have to be ours, to 1e-4. One round of each arm in turn; medians.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers

from common import interleave, machine, rates_row, table
from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.insights.stated_facts import PHRASES
from stemma.probing.common_vocabulary import common_vocabulary
from stemma.probing.facts import BLANK, Fact, Facts, Query, Relation, cloze, read_facts
from stemma.probing.facts_readings import reading_of
from stemma.probing.facts_run import probe
from stemma.probing.facts_selection import Asked, select
from stemma.training.hardware import prepare_processor
from texts import VOCABULARY, running_text, wordpiece

TOP_K, PEER_BATCH = 10, 32
# MiniLM's size, 22.7M with the embedding; the weights are large enough for answers that are not all equally likely.
CONFIG = BERTConfig(vocabulary=VOCABULARY, layers=6, hidden=384, heads=12, initial_std=0.1)


def draw_facts(count: int, tokenizer: Tokenizer, folder: Path | None) -> Facts:
    """Return facts of a folder, evenly from its relations, or made-up ones."""
    if folder is not None:
        facts = read_facts(folder)
        return Facts(facts.name, facts.relations, facts.facts[:: max(1, len(facts.facts) // count)][:count], count)
    rng = np.random.default_rng(0)
    phrases = [phrase for own in PHRASES.values() for phrase in own]
    relations = {phrase: Relation(phrase, (phrase,)) for phrase in phrases}
    words, objects = running_text().split(), common_vocabulary([tokenizer])
    found = []
    for number in range(count):
        start, length = int(rng.integers(len(words) - 4)), int(rng.integers(1, 4))
        subject = f"{' '.join(words[start : start + length])} {number}"
        found.append(Fact(phrases[number % len(phrases)], subject, str(rng.choice(objects))))
    return Facts("made up", relations, found, count)


def check(asked: Asked, texts: list[str], theirs: list) -> float:
    """Return the largest difference of two probabilities."""
    largest = 0.0
    reading = reading_of(asked.model, asked.tokenizer)
    for text, answers in zip(texts, theirs, strict=True):
        tokens = [answer["token"] for answer in answers]
        ours = reading.log_probabilities([Query.of([text])], tokens)[0].exp().numpy()
        largest = max(largest, float(np.abs(ours - [answer["score"] for answer in answers]).max()))
    if largest > 1e-4:
        raise SystemExit(f"the probabilities differ by {largest}")
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=Path, help="folder of facts with relations.jsonl beside; default: made-up ones")
    parser.add_argument("--tokenizer", type=Path, help="BERT's vocab.txt; default: learned from Python's help topics")
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="256 queries, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.queries, options.rounds = 256, 3
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare_processor()
    torch.manual_seed(0)
    tokenizer = wordpiece() if options.tokenizer is None else prepare_tokenizer(load_tokenizer(options.tokenizer))
    model = BERT(replace(CONFIG, vocabulary=tokenizer.vocabulary)).eval()
    with TemporaryDirectory() as folder:
        families.save(model, tokenizer, Path(folder))
        peer = transformers.pipeline(
            "fill-mask",
            model=transformers.AutoModelForMaskedLM.from_pretrained(folder),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            top_k=TOP_K,
        )
    asked = Asked("stemma", model, tokenizer)
    facts = draw_facts(options.queries, tokenizer, options.facts)
    selection = select([asked], facts)
    texts = [
        cloze(selection.facts.relations[name].templates[0], fact.subject)
        for name, own in selection.distinct.items()
        for fact in own
    ]
    assert all(text.count(BLANK) == 1 for text in texts)
    difference = check(asked, texts[:64], peer(texts[:64], batch_size=PEER_BATCH))
    print(machine())
    print(f"{len(texts)} questions, {len(selection.vocabulary or ())} candidates; same to {difference:.0e}\n")
    arms = {
        "stemma": lambda: probe([asked], selection),
        "transformers": lambda: peer(texts, batch_size=PEER_BATCH),
    }
    row = rates_row("batches", len(texts), interleave(arms, options.rounds))
    print(table(["questions/s", *arms, "times the peer"], [row]))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
