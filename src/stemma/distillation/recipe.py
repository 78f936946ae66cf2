"""What decides the distillation of a language model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stemma.alignment.recipe import DialogueRecipe, StageRecipe
from stemma.distillation.linear_divergence import SoftLoss
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


class TermsRecipe(Section):
    """The weights of a sum of three losses (Sanh et al. 2019, "DistilBERT", section 2; defaults of the authors' code).

    Args:
        soft: of the divergence from the teachers, times the temperature's square. hard: of the cross-entropy of the
            true tokens. hidden: of 1 - cosine of the last hidden states of student and teacher, which must be as wide.
    """

    soft: float = Field(default=5.0, ge=0)
    hard: float = Field(default=2.0, ge=0)
    hidden: float = Field(default=1.0, ge=0)


class MaskedRecipe(Section):
    """How a masked language model (BERT) reads texts (see `MaskedLanguageModel`); masks are drawn anew each time.

    Args:
        masked: share of the tokens that is predicted. replaced, randomized: of these, shares that become [MASK] and a
            random token. whole_words: all pieces of a word or none.
        soft: where the teachers are listened to: at the "masked" places, or at "all" (the authors' default).
    """

    masked: float = Field(default=0.15, gt=0, le=1)
    replaced: float = Field(default=0.8, ge=0, le=1)
    randomized: float = Field(default=0.1, ge=0, le=1)
    whole_words: bool = False
    soft: Literal["masked", "all"] = "masked"


class TeacherRecipe(Section):
    """Who teaches, and by which loss (see `linear_divergence.SoftLoss`).

    Args:
        teachers: checkpoint directories or hub ids of language models with the student's vocabulary; or the address of
            a server of one (see served.py), which tells its likeliest tokens: `cache` is their number.
        mean: of several teachers (see `ensembles.soft_targets`), with `weights`.
        divergence: "forward", "reverse" or "jsd", which has `beta`.
        temperature: of teachers and student. weight: of the teachers; the true tokens have the rest.
        terms: instead of `weight`: a sum with weights of its own, of hidden states, too. masked: of BERT.
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
    terms: TermsRecipe | None = None
    masked: MaskedRecipe = MaskedRecipe()
    on_policy: OnPolicyRecipe | None = None
    cache: Literal["full"] | Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "TeacherRecipe":
        if self.weights is not None and len(self.weights) != len(self.teachers):
            raise ValueError(f"{len(self.weights)} weights for {len(self.teachers)} teachers, expected one each")
        if self.on_policy is not None and self.cache is not None:
            raise ValueError("what the student will write cannot be cached, expected one of on_policy and cache")
        if self.terms is not None and self.weight != 1:
            raise ValueError("weight and terms both weigh the losses, expected one of them (objective.terms=null)")
        if self.hidden and self.cache is not None:
            raise ValueError("hidden states are not cached, expected terms.hidden=0 or no cache")
        return self

    @property
    def hidden(self) -> float:
        """The weight of the hidden states."""
        return 0.0 if self.terms is None else self.terms.hidden

    @property
    def scale(self) -> float:
        """What the mean of soft and hard loss is multiplied by."""
        return 1.0 if self.terms is None else self.terms.soft + self.terms.hard

    @property
    def soft_loss(self) -> SoftLoss:
        """Soft and hard loss, with weights that sum to one."""
        weight = self.weight if self.terms is None else self.terms.soft / (self.scale or 1.0)
        return SoftLoss(self.divergence, self.beta, self.temperature, weight)


class DistillationRecipe(StageRecipe):
    """A language model that learns from others, token by token. `model` is the student."""

    data: TransferRecipe
    objective: TeacherRecipe
