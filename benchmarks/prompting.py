"""Multiple-choice questions a second, beside lm-evaluation-harness's `hf` with the same weights and the same task.

    python benchmarks/prompting.py [--quick] [--questions 128] [--shots 4] [--rounds 3]

Questions with four answers of several words each, behind the same solved examples. Before anything is timed, the scores
have to be the same, to 1e-3. Both only score: the prompts are made before. One round of each arm in turn; medians.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers

from common import interleave, machine, rates_row, table
from stemma import families
from stemma.data.tokenizers import train_tokenizer
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.prompting.models import LocalModel
from stemma.training.hardware import prepare_processor
from texts import VOCABULARY, running_text

PEER_BATCH = 16


def draw_pairs(questions: int, shots: int) -> list[tuple[str, str]]:
    """Return contexts with answers, four of each, all behind the same examples."""
    rng = np.random.default_rng(0)
    words = running_text().split()

    def some(least: int, most: int) -> str:
        start = int(rng.integers(len(words) - most))
        return " ".join(words[start : start + int(rng.integers(least, most))])

    examples = "".join(f"Question: {some(10, 25)}\nAnswer: {some(2, 8)}\n\n" for _ in range(shots))
    contexts = [f"{examples}Question: {some(10, 25)}\nAnswer:" for _ in range(questions)]
    return [(context, f" {some(2, 8)}") for context in contexts for _ in range(4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 questions, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.questions, options.rounds = 16, 2
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    transformers.logging.set_verbosity_error()
    prepare_processor()
    torch.manual_seed(0)
    tokenizer = train_tokenizer([running_text()], "bpe", 8192)
    # GPT-2's width at half its depth.
    model = GPT(GPTConfig(vocabulary=VOCABULARY, layers=6, hidden=768, heads=12)).eval()
    with TemporaryDirectory() as folder:
        families.save(model, tokenizer, Path(folder))
        peer = HFLM(
            pretrained=transformers.AutoModelForCausalLM.from_pretrained(folder),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            batch_size=PEER_BATCH,
        )
    asked, pairs = LocalModel(model, tokenizer), draw_pairs(options.questions, options.shots)
    instances = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]

    def theirs() -> list[tuple[float, bool]]:
        return peer.loglikelihood(instances, disable_tqdm=True)

    ours = asked.score(pairs)
    difference = max(abs(one.log_probability - other) for one, (other, _) in zip(ours, theirs(), strict=True))
    if difference > 1e-3:
        raise SystemExit(f"the scores differ by {difference}")
    print(machine())
    print(f"{options.questions} questions with four answers, {options.shots} examples; same to {difference:.0e}\n")
    arms = {"stemma": lambda: asked.score(pairs), "lm-evaluation-harness": theirs}
    row = rates_row("likelihood", options.questions, interleave(arms, options.rounds, warmup=0), digits=2)
    print(table(["questions/s", *arms, "times the peer"], [row]))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
