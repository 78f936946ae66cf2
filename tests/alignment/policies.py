"""Tiny policies of every family that writes, and runs of PPO and GRPO with them that take a second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import model_of, tokenizer_of

from stemma import families
from stemma.alignment.experience import Policy
from stemma.alignment.reading import reading_of
from stemma.alignment.rewards import Episode
from stemma.data.tokenizers import Tokenizer
from stemma.families.mistral.model import Mistral, MistralConfig

WRITERS = ("gpt", "mistral", "mixtral", "glm", "t5")
PROMPTS = ("the quick brown fox", "who sees a good", "red blue green", "one two three four", "Anna and Boris in Paris")


def policy_of(family: str, *, context: int = 64, scale: float = 8.0) -> tuple[Any, Tokenizer]:
    """Return a model whose next token depends on what was before, and its tokenizer."""
    if family in ("mistral", "mixtral"):
        tokenizer = tokenizer_of("gpt")
        torch.manual_seed(0)
        shape = {"hidden": 32, "heads": 4, "key_value_heads": 2, "layers": 2, "feed_forward": 64, "windows": (8,)}
        experts = 4 if family == "mixtral" else 0
        model: Any = Mistral(MistralConfig(vocabulary=tokenizer.vocabulary, context=context, experts=experts, **shape))
    else:
        tokenizer, model = tokenizer_of(family), model_of(family, context=context)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and family != "t5":  # which begins large
                parameter.mul_(scale)
    return model.eval(), tokenizer


def with_reading(model: Any, tokenizer: Tokenizer, reference: Any = None, temperature: float = 1.0) -> Policy:
    return Policy(model, reading_of(model, tokenizer), reference, tokenizer.vocabulary, temperature)


def encoded(tokenizer: Tokenizer, count: int = 5) -> list[list[int]]:
    return [tokenizer.encode(PROMPTS[number % len(PROMPTS)]) for number in range(count)]


def directory_of(family: str, folder: Path) -> Path:
    model, tokenizer = policy_of(family, scale=1.0)
    families.save(model, tokenizer, folder / family)
    return folder / family


def prompts_file(folder: Path) -> Path:
    """Forty prompts, each with an answer beside it."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "cat", "sings"]
    rows = [{"prompt": f"{a} {b}", "answer": b} for a in words for b in words[:4]]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def vowels(episodes: Sequence[Episode]) -> list[float]:
    """A reward that a policy can earn within a few updates: the share of letters that are vowels."""
    return [sum(c in "aeiou" for c in one.response) / max(len(one.response), 1) for one in episodes]


def nothing(episodes: Sequence[Episode]) -> list[float]:
    return [1.0] * len(episodes)


def not_numbers(episodes: Sequence[Episode]) -> list[float]:
    return [float("nan")] * len(episodes)


def too_few(episodes: Sequence[Episode]) -> list[float]:
    return [1.0]


def recipe_of(kind: type, directory: Path, prompts: Path, **sections: Any) -> Any:
    """Settings with which a tiny policy learns within seconds; sections are merged into them."""
    content: dict[str, Any] = {
        "model": str(directory),
        "prompts": {"source": str(prompts), "held_out": 0.2},
        "reward": {"source": "policies:vowels", "missing_end_penalty": 0.0},  # few random texts end
        "rollout": {"longest": 8, **({"samples": 4} if kind.__name__ == "GRPORecipe" else {})},
        "training": {
            **{"steps": 4, "batch": 8, "learning_rate": 3e-3, "weight_decay": 0.0},
            "schedule": {"name": "constant"},
        },
        "evaluation": {"every": 100, "prompts": 4},
        "output": {"save_every": 2},
    }
    for section, values in sections.items():
        old = content.get(section)
        content[section] = {**old, **values} if isinstance(old, dict) and isinstance(values, dict) else values
    return kind.model_validate(content)


def metrics_of(folder: Path, name: str = "reward") -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that have a number of this name, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = {"tokens_per_second", "rollout_share"}
    return [{key: line[key] for key in line if key not in clock} for line in lines if name in line]
