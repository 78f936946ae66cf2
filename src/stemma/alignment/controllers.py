"""What the divergence from the reference costs: a coefficient that stays, or follows a target."""

from dataclasses import dataclass


@dataclass
class AdaptiveKL:
    """A coefficient that grows while the divergence is above its target and shrinks while it is below.

    (Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.)

    Args:
        coefficient: now. target: nats of a whole response. horizon: episodes in which the coefficient can change by
            about a fifth at most; None: it stays.
    """

    coefficient: float
    target: float = 6.0
    horizon: int | None = None

    def update(self, kl: float, episodes: int) -> None:
        """Take in the mean divergence of so many episodes, in nats a response."""
        if self.horizon is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * episodes / self.horizon
