"""Images and their classes -> augmented, mixed batches -> loss; with a teacher, DeiT's distillation.

Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", section 4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.image_augmentation import Augmentation, Mixing
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import ImageSet
from stemma.families.weights import build_empty
from stemma.layers.ensembles import Mean, soft_targets
from stemma.layers.soft_targets import soft_target_loss, with_hard_targets


@dataclass(frozen=True)
class Distillation:
    """What teachers say of the same augmented, mixed images, and how much that counts.

    Args:
        teachers: each maps normalised images of the student, float [batch, channels, height, width], to logits, float
            [batch, classes], without a gradient.
        kind: "hard": the class that the teacher finds likeliest; "soft": its probabilities, see `soft_target_loss`.
        alpha: share of the loss. temperature: of "soft".
        mean: of what several teachers say (see `ensembles.soft_targets`).
    """

    teachers: Sequence[Callable[[Tensor], Tensor]]
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    temperature: float = 3.0
    mean: Mean = "arithmetic"

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the loss of each image, float [batch].

        The mean is taken over images: DeiT's code divides the soft loss by the number of classes too, and is so much
        weaker.
        """
        taught = [teacher(images) for teacher in self.teachers]
        if self.kind == "hard":
            return F.cross_entropy(logits, soft_targets(taught, mean=self.mean).argmax(-1), reduction="none")
        return soft_target_loss(logits, soft_targets(taught, self.temperature, self.mean), self.temperature)


@dataclass(frozen=True)
class ImageClassification:
    """Cross entropy with the labels, which augmentation mixes and smooths, and with what a teacher says.

    Where the model has a distillation token, the teacher's part is that of its head, else of the class token's. A
    distillation token without a teacher learns the labels too: a second class token.

    Args:
        augmentation, mixing: None: the images as they are. Images are mixed with those of their micro-batch.
        classes: how many. label_smoothing: share of each target that is spread over all classes.
    """

    preprocessing: Preprocessing
    classes: int
    augmentation: Augmentation | None = None
    mixing: Mixing | None = None
    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def example(self, sequence: tuple[ImageSet, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return an image, float32 [channels, size, size], its class, and a seed for the mixing of its batch."""
        images, index = sequence
        image = images.read(index)
        pixels = (
            self.preprocessing(image)
            if self.augmentation is None
            else self.augmentation(image, self.preprocessing, rng)
        )
        return {"images": pixels, "label": images.labels[index], "seed": rng.integers(1 << 62)}

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        """Return "images", float32 [batch, channels, size, size], and "targets", float32 [batch, classes]."""
        images = np.stack([example["images"] for example in examples])
        targets = np.full((len(examples), self.classes), self.label_smoothing / self.classes, np.float32)
        targets[np.arange(len(examples)), [example["label"] for example in examples]] += 1 - self.label_smoothing
        if self.mixing is not None:
            images, targets = self.mixing(images, targets, np.random.default_rng(int(examples[0]["seed"])))
        return {"images": torch.from_numpy(images), "targets": torch.from_numpy(targets)}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the number of images."""
        return {"targets": len(batch["images"])}

    def loss(
        self, model: Any, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss over the number of images in `totals` (default: the batch's), and sums to report."""
        images, targets = batch["images"], batch["targets"]
        logits = model(images)
        ours, other = logits if isinstance(logits, tuple) else (logits, logits)
        loss = F.cross_entropy(ours, targets, reduction="none")
        sums: dict[str, Tensor | float] = {"nll": loss.detach().sum(), "targets": float(len(images))}
        if self.distillation is not None:
            taught = self.distillation.loss(other, images)
            loss = with_hard_targets(loss, taught, self.distillation.alpha)
            sums["distillation_loss"] = taught.detach().sum()
        elif other is not ours:
            loss = with_hard_targets(loss, F.cross_entropy(other, targets, reduction="none"), 0.5)
        return loss.sum() / (totals or self.counts(batch))["targets"], sums

    def training_flops(self, model: Any, length: int) -> float:
        """Return the floating-point operations of forward and backward pass of an image, the teacher's left out."""
        from torch.utils.flop_counter import FlopCounterMode

        config = model.config
        shell = build_empty(lambda: type(model)(config))
        with FlopCounterMode(display=False) as counter:
            shell(torch.empty(1, config.channels, config.image_size, config.image_size, device="meta"))
        return 3.0 * counter.get_total_flops()
