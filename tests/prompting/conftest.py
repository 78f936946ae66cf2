"""A task in files, and a small model that is asked."""

import json

import pytest
import torch

from stemma.data.tokenizers import train_tokenizer
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.prompting.models import LocalModel

WORDS = "the quick brown fox jumps over the lazy dog; Q: A: The answer is 0 1 2 3 4 5 6 7 8 9 plus and make . "
COMMON = """\
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
doc_to_text: "Q: {{q}}\\nA:"
"""
CHOICE = "task: choice\noutput_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\n"
WRITING = """\
task: writing
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["Q:"], max_gen_toks: 8}
stemma: {answer: number, reasoning: "{{steps}}", reasoning_tokens: 6, answer_tokens: 4}
"""


@pytest.fixture(scope="session")
def asked():
    tokenizer = train_tokenizer([WORDS * 20], "bpe", 300)
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=300, context=128, layers=2, hidden=32, heads=4, vocabulary_multiple=1)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return LocalModel(model, tokenizer)


@pytest.fixture
def task(tmp_path):
    """task(text): the path of a task file beside data of fourteen sums."""
    sums = [(a, b) for a in range(2, 9) for b in (3, 5)]
    rows = [
        {"q": f"{a} plus {b}", "choices": [str(a + b), str(a * b), "the dog"], "gold": 0, "answer": str(a + b)}
        | {"steps": f"{a} and {b} make {a + b}."}
        for a, b in sums
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(text, common=COMMON):
        (tmp_path / "task.yaml").write_text(common + text)
        return tmp_path / "task.yaml"

    return write
