"""Whole runs: the loss falls, and transformers computes what is published."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import stemma
from stemma.families.mistral.model import PRESETS
from stemma.training.pretrain import pretrain
from stemma.training.recipe import load_recipe

ORDER = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny", ["model.windows=[8, null]", "execution.checkpoint_activations=true"]),
        ("mixtral-tiny", ["model.experts=3", "execution.micro_batch=4"]),
    ],
    ids=["window in every second layer", "experts"],
)
def test_runs_learn_and_transformers_computes_what_is_published(name: str, options: list[str], tmp_path: Path) -> None:
    """Documents that count on from anywhere; a vocabulary of 300 makes the loss log 300 = 5.7 at first."""
    import transformers

    rng = np.random.default_rng(0)
    drawn = [(int(rng.integers(10)), int(rng.integers(12, 40))) for _ in range(300)]
    texts = (" ".join(ORDER[(start + n) % 10] for n in range(size)) + "." for start, size in drawn)
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    size = {"layers": 2, "hidden": 64, "heads": 4, "key_value_heads": 2, "context": 64, "feed_forward": 96}
    recipe = load_recipe(
        f"mistral/{name}",
        [
            f"data.source={tmp_path / 'corpus.txt'}",
            "data.documents=paragraph",
            "tokenizer.vocabulary=300",
            *(f"model.{key}={value}" for key, value in size.items()),
            "training={steps: 30, batch: 8, length: 56, learning_rate: 6e-3, schedule: {name: cosine, warmup: 10}}",
            "evaluation={every: 30, tokens: null}",
            "execution.device=cpu",
            *options,
        ],
    )
    out = tmp_path / "run"
    pretrain(recipe, out, cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out_loss"] < 3.5
    if name == "mixtral-tiny":
        assert sum(lines[-1][f"expert_{number}"] for number in range(3)) == pytest.approx(1.0)
        assert 0.9 * np.log(3) < lines[-1]["usage_entropy"] <= np.log(3) + 1e-6
        assert lines[-1]["balance"] >= 1.9  # experts_per_token where all experts are used alike
    ours, tokenizer = stemma.load(out), stemma.load_tokenizer(out)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens = torch.tensor([tokenizer.encode(" ".join(ORDER * 2))[:40]])
    assert transformers.AutoTokenizer.from_pretrained(out)(" ".join(ORDER * 2))["input_ids"][:40] == tokens[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=1e-5)
    (text,) = stemma.generate(ours, tokenizer, "one two three", max_new_tokens=60, temperature=0.0)
    assert len(text.tokens) > 0


def test_a_token_of_the_small_mixtral_meets_as_many_parameters_as_the_small_mistral_has() -> None:
    from stemma.families.mistral.model import Mistral

    dense, routed = (Mistral(PRESETS[name]) for name in ("tiny", "mixtral-tiny"))
    unused = sum(p.numel() for name, p in routed.named_parameters() if ".experts." in name) // 2
    routers = sum(p.numel() for name, p in routed.named_parameters() if "router" in name)
    met = sum(p.numel() for p in routed.parameters()) - unused - routers
    assert met == sum(p.numel() for p in dense.parameters())
