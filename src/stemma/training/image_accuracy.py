"""What a model says of held-out images: by each of its heads, and by both."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import ImageSet
from stemma.families.vit.model import ViT
from stemma.training.objective import Measurement

BATCH = 64


@torch.no_grad()
def predict(model: Any, images: ImageSet, preprocessing: Preprocessing, batch: int = BATCH) -> dict[str, Tensor]:
    """Return the logits of images, float32 [images, classes], by what they are of: "class", "distillation".

    Args:
        model: in evaluation mode; where it has no distillation token, its logits are the class's.
    """
    found: dict[str, list[Tensor]] = {}
    device = next(model.parameters()).device
    for pixels in batches(images, preprocessing, batch):
        pixels = pixels.to(device)
        heads = model.heads(pixels) if isinstance(model, ViT) else (model(pixels), None)
        for name, logits in zip(("class", "distillation"), heads, strict=True):
            if logits is not None:
                found.setdefault(name, []).append(logits.float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def measure(model: Any, images: ImageSet, preprocessing: Preprocessing, batch: int = BATCH) -> Measurement:
    """Return loss and accuracy; of a DeiT also the accuracy of each head, that of both by the paper's sum of the
    probabilities, and the cosine of the two tokens' final states in the mean.

    Args:
        model: in evaluation mode.
    """
    heads, labels = predict(model, images, preprocessing, batch), torch.from_numpy(images.labels)
    logits = torch.stack(list(heads.values())).mean(0)
    metrics = {"accuracy": accuracy(logits, labels)}
    if len(heads) > 1:
        probabilities = torch.stack(list(heads.values())).softmax(-1).sum(0)
        metrics["accuracy_by_probabilities"] = accuracy(probabilities, labels)
        metrics |= {f"{name}_accuracy": accuracy(own, labels) for name, own in heads.items()}
        metrics["token_cosine"] = token_cosines(model, images, preprocessing, batch)[-1]
    loss = float(F.cross_entropy(logits, labels))
    return Measurement(loss, len(images), metrics, metrics["accuracy"])


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the share of rows of float [images, classes] whose largest value is the label's."""
    return float((scores.argmax(-1) == labels).double().mean())


@torch.no_grad()
def token_cosines(
    model: ViT, images: ImageSet, preprocessing: Preprocessing, batch: int = BATCH, most: int = 256
) -> list[float]:
    """Return the cosine of a DeiT's class and distillation token: as parameters, then after each block in the mean.

    The paper's are .06 at the input and .93 at the output (section 4).

    Args:
        most: images that the mean is taken over.
    """
    ours, other = model.embeddings.class_token, model.embeddings.distillation_token
    assert other is not None, "the model has no distillation token"
    cosines = [float(F.cosine_similarity(ours, other, dim=-1))]
    device, some = next(model.parameters()).device, images.selected(np.arange(min(len(images), most)))
    found = [
        torch.stack([F.cosine_similarity(x[:, 0], x[:, 1], dim=-1) for x in model.hidden_states(pixels.to(device))[1:]])
        for pixels in batches(some, preprocessing, batch)
    ]
    return cosines + torch.cat(found, dim=1).double().mean(1).tolist()


def batches(images: ImageSet, preprocessing: Preprocessing, size: int) -> Iterator[Tensor]:
    """Yield the images in order, float32 [size, channels, side, side] each; the next are read meanwhile."""

    def read(start: int) -> Tensor:
        numbers = range(start, min(start + size, len(images)))
        return torch.from_numpy(np.stack([preprocessing(images.read(number)) for number in numbers]))

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(read, 0)
        for start in range(0, len(images), size):
            ready = following.result()
            if start + size < len(images):
                following = pool.submit(read, start + size)
            yield ready
