"""Gradients of pretraining in every update of a policy, so that it does not forget what no reward speaks of: PPO-ptx.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5, equation 2.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from stemma import families
from stemma.alignment.reinforcement_recipe import PretrainingRecipe
from stemma.data.corpora import CorpusSource
from stemma.data.packing import PackedSequences
from stemma.data.shards import prepare
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.files import cache_directory
from stemma.training.architecture import build_objective
from stemma.training.batches import Batches, Plan
from stemma.training.objective import Display


class PretrainingMix:
    """The family's own objective on a corpus.

    Args:
        seed: with the number of an update it decides what is seen in it.
    Raises:
        InputError: a corpus that cannot be read, or sequences that are too long for the model.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, recipe: PretrainingRecipe, seed: int, display: Display
    ) -> None:
        context = getattr(model.config, "context", recipe.length)
        if recipe.length > context:
            raise InputError(f"pretraining.length: {recipe.length} tokens, more than the model's context of {context}")
        branch = families.family_of(model)
        self.coefficient = recipe.coefficient
        self.objective = build_objective(branch, {"name": next(iter(branch.objectives))}, tokenizer)
        source = CorpusSource(recipe.source, recipe.field, recipe.documents, recipe.held_out, recipe.format)
        with display.preparing() as report:
            corpus = prepare(source, tokenizer, cache_directory(), report)
        make_sequences = getattr(self.objective, "sequences", PackedSequences)
        sequences = make_sequences(corpus.train, recipe.length, seed)
        self.fingerprint: str = sequences.fingerprint
        self.batches = Batches(sequences, self.objective, Plan(recipe.batch), seed=seed)

    def add_gradients(
        self, model: Any, update: int, autocast: Callable[[], AbstractContextManager[None]]
    ) -> dict[str, float]:
        """Add the gradients of update number `update`; return the loss and both norms, before they are added."""
        device = model.output_weight.device
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        policy = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        (batch,) = self.batches.micro_batches(update)
        with autocast():
            loss, _ = self.objective.loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
        (self.coefficient * loss).backward()
        norms = {
            "reward_gradient_norm": _norm(policy),
            "pretraining_gradient_norm": _norm([parameter.grad for parameter in parameters]),
        }
        for parameter, gradient in zip(parameters, policy, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return {"pretraining_loss": float(loss.detach()), **norms}


def _norm(gradients: list[torch.Tensor | None]) -> float:
    return float(torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
