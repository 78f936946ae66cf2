"""What decides the distillation of a language model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stemma.alignment.recipe import DialogueRecipe, StageRecipe
from stemma.layers.ensembles import Mean
from stemma.training.recipe import Section


class TransferRecipe(DialogueRecipe):
    """What the student reads while the teachers tell it what they think.

    Args:
        text: the column of whole texts, which are learned from their second token on and come in any form that a
            corpus has (see `data.corpora.CorpusSource`, "python" among them); null: demonstrations, of which the
            responses are learned (see `DialogueRecipe`).
        documents: what is one document of a text file.
    """

    text: str | None = None
    documents: Literal["file", "paragraph", "line"] = "file"


class OnPolicyRecipe(Section):
    """Responses that the student writes itself, for the teacher to judge (Agarwal et al. 2024, algorithm 1).

    Args:
        share: of the updates that are on the student's own responses; the others are on the data's.
        temperature: that it writes with. longest: most tokens of a response.
    """

    share: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=0.9, gt=0)
    longest: int = Field(default=64, gt=0)


class TeacherRecipe(Section):
    """Who teaches, and by which loss (see `linear_divergence.SoftLoss`).

    Args:
        teachers: checkpoint directories or hub ids of language models with the student's vocabulary. mean: of several
            (see `ensembles.soft_targets`), with `weights`.
        divergence: "forward", "reverse" or "jsd", which has `beta`.
        temperature: of teachers and student. weight: of the teachers; the true tokens have the rest.
        on_policy: null: the data's responses are all that is learned from.
        cache: what the teachers think is computed once and kept beside the run: "full", the probabilities of all
            tokens, or so many likeliest ones with the sum of the rest; null: it is computed as it is needed.
    """

    teachers: tuple[str, ...] = Field(min_length=1)
    mean: Mean = "arithmetic"
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0)
    weight: float = Field(default=1.0, ge=0, le=1)
    on_policy: OnPolicyRecipe | None = None
    cache: Literal["full"] | Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "TeacherRecipe":
        if self.weights is not None and len(self.weights) != len(self.teachers):
            raise ValueError(f"{len(self.weights)} weights for {len(self.teachers)} teachers, expected one each")
        if self.on_policy is not None and self.cache is not None:
            raise ValueError("what the student will write cannot be cached, expected one of on_policy and cache")
        return self


class DistillationRecipe(StageRecipe):
    """A language model that learns from others, token by token. `model` is the student."""

    data: TransferRecipe
    objective: TeacherRecipe
