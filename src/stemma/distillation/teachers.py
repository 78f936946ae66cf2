"""Language models that teach: what they read, and what they think of each token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma import families
from stemma.alignment.reading import IGNORED, Reading, Sample, reading_of
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.distillation.linear_divergence import Targets
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.layers.ensembles import Mean, soft_targets
from stemma.layers.linear import linear


@dataclass(frozen=True)
class Teacher:
    """A language model whose tokens are those of its student, perhaps in another order.

    Args:
        reading: how it reads. weight: its output matrix, rows in the student's order, float [vocabulary, hidden].
        order: its id for each of the student's, int64 [vocabulary]; None: the same.
    """

    model: Any
    reading: Reading
    weight: Tensor
    order: Tensor | None = None

    def frame(self, sample: Sample) -> dict[str, Any]:
        """Return the example that it reads of a sample in the student's ids (see `Reading.frame`)."""
        if self.order is None:
            return self.reading.frame(sample)
        ids = self.order.numpy()
        return self.reading.frame(Sample(ids[list(sample.prompt)].tolist(), ids[list(sample.response)].tolist()))

    @torch.no_grad()
    def states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return its last states at the places that choose a token, float [tokens, hidden]."""
        places = batch["places"][batch["targets"] != IGNORED]
        return self.reading.states(self.model, {**batch, "places": places})

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return the logits at such states, float [tokens, vocabulary], in the student's order."""
        return linear(states, self.weight.to(states.dtype))


class Thinking(Protocol):
    """What teachers of any kind do."""

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits at last states, float [tokens, vocabulary], in the student's order."""
        ...


def targets_of(
    teachers: Sequence[Thinking],
    states: Sequence[Tensor],
    temperature: float,
    mean: Mean = "arithmetic",
    weights: Sequence[float] | None = None,
) -> Targets:
    """Return what teachers say together (see `ensembles.soft_targets`), of their last states, [tokens, hidden] each."""

    def targets(place: slice, student: Tensor) -> Tensor:
        logits = [teacher.logits(own[place]) for teacher, own in zip(teachers, states, strict=True)]
        return soft_targets(logits, temperature, mean, weights)

    return targets


def hidden_distance(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """Return 1 - cosine of the student's states and each teacher's, float [tokens, hidden], the mean over teachers and
    the sum over tokens."""
    apart = [1 - F.cosine_similarity(student.float(), theirs.float(), dim=-1) for theirs in teachers]
    return torch.stack(apart).mean(0).sum()


def require_one_width(student: Any, teachers: Sequence[Any], names: Sequence[str]) -> None:
    """Raise InputError where the hidden states of models are not as wide as the student's."""
    for model, name in zip(teachers, names, strict=True):
        if model.config.hidden != student.config.hidden:
            raise InputError(
                f"objective.terms.hidden: the student's states are {student.config.hidden} wide, those of {name} "
                f"{model.config.hidden}, so that they have no cosine; expected one width, or objective.terms.hidden=0"
            )


def load_teachers(names: Sequence[str], tokenizer: Tokenizer, reading: Reading, device: Any = None) -> list[Teacher]:
    """Load the teachers of a student.

    Args:
        tokenizer, reading: of the student.
    Raises:
        InputError: no such model, one of another vocabulary, or one that writes no text.
    """
    return [_load(name, tokenizer, reading, device) for name in names]


def _load(name: str, tokenizer: Tokenizer, reading: Reading, device: Any) -> Teacher:
    directory = resolve(name)
    model: Any = families.load(directory, dtype=torch.float32, device=device)
    own = load_tokenizer(directory)
    order = order_of(own, tokenizer, name)
    read = reading_of(model, own, reading.longest, packing=getattr(reading, "packing", True))
    if read.longest < reading.longest:
        raise InputError(
            f"objective.teachers: {name} reads {read.longest} tokens at most; expected data.longest={read.longest}"
        )
    model.requires_grad_(False)
    weight = model.output_weight.detach()
    weight = weight[: tokenizer.vocabulary] if order is None else weight[order.to(weight.device)]
    return Teacher(model.eval(), read, weight, order)


def order_of(teacher: Tokenizer, student: Tokenizer, name: str) -> Tensor | None:
    """Return the teacher's id of each of the student's tokens, int64 [vocabulary]; None where they are the same.

    Raises:
        InputError: a token that only one of the two has.
    """
    theirs = {teacher.token(index): index for index in range(teacher.vocabulary)}
    ours = [student.token(index) for index in range(student.vocabulary)]
    advice = "expected the student's vocabulary; with another one, let it write: stemma distill sequences"
    for index, token in enumerate(ours):
        if token not in theirs:
            raise InputError(f"objective.teachers: {name} has no token {token!r} (the student's {index}); {advice}")
    if len(theirs) > len(ours):
        more = next(token for token in theirs if token not in set(ours))
        raise InputError(f"objective.teachers: {name} has a token {more!r} that the student has not; {advice}")
    order = [theirs[token] for token in ours]
    return None if order == list(range(len(order))) else torch.tensor(order)
