"""When learning from rewards has gone wrong: the policy has run away from its reference, or says only one thing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stemma.errors import Diverged

CLIPPED_IN_A_ROW = 3


class RunAway(Diverged):
    """The run was stopped; its last good checkpoint is intact."""


@dataclass
class Rails:
    """Watches a run.

    Args:
        kl: nats of a response that are too many. entropy: share of the first entropy that is too little.
        clip_fraction: share of clipped tokens that is too large, three rollouts in a row.
        first_entropy, clipped: what was seen so far; part of a checkpoint.
    """

    kl: float
    entropy: float
    clip_fraction: float
    first_entropy: float | None = None
    clipped: int = 0

    def check_rollout(self, values: Mapping[str, float]) -> None:
        """Look at the `kl` and `entropy` of a rollout, and whether all numbers are finite.

        Raises:
            RunAway: it must not go on.
        """
        wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise RunAway(f"{wrong.replace('_', ' ')} is {values[wrong]}")
        if self.first_entropy is None:
            self.first_entropy = values["entropy"]
        if values["kl"] > self.kl:
            raise RunAway(
                f"the policy has left its reference by {values['kl']:.1f} nats a response, more than {self.kl:g} "
                "(rails.kl): a larger reference.coefficient or a smaller learning rate may help"
            )
        if values["entropy"] < self.entropy * self.first_entropy:
            raise RunAway(
                f"the policy's entropy fell from {self.first_entropy:.3f} to {values['entropy']:.3f} nats a token, "
                f"less than {self.entropy:g} of it (rails.entropy): it says only one thing"
            )

    def check_update(self, values: Mapping[str, float]) -> None:
        """Look at the `clip_fraction` of the updates of a rollout, and whether all numbers are finite.

        Raises:
            RunAway: it must not go on.
        """
        wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise RunAway(f"{wrong.replace('_', ' ')} is {values[wrong]}")
        self.clipped = self.clipped + 1 if values["clip_fraction"] > self.clip_fraction else 0
        if self.clipped >= CLIPPED_IN_A_ROW:
            raise RunAway(
                f"{values['clip_fraction']:.0%} of the tokens were clipped, more than {self.clip_fraction:.0%} "
                f"(rails.clip_fraction) {CLIPPED_IN_A_ROW} rollouts in a row: the learning rate is too large"
            )
