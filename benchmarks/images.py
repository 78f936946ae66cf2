"""DeiT's speed beside timm's model of the same size: images/s of training and of inference.

    python benchmarks/images.py [--quick] [--size ti|s|b] [--batch 32] [--rounds 5]

Both train a distilled DeiT on the same made-up photographs with the same work on each image: our augmentation and
mixing, in this process, one batch ahead in a thread; AdamW (fused), stochastic depth 0.1, float32. Theirs is timm's
model in a plain loop. Inference is of batches that lie ready. Arms in turn; medians, and the median of the ratios.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common import machine, median, table
from stemma.data.image_augmentation import Augmentation, Mixing
from stemma.data.image_preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from stemma.data.images import ImageSet
from stemma.data.repeated_images import RepeatedImages
from stemma.families.image_classification import ImageClassification
from stemma.families.vit.model import PRESETS, ViT
from stemma.training.batches import Batches, Plan
from stemma.training.optimizer import adamw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "families" / "vit"))
from timm_package import import_timm  # noqa: E402

NAMES = {"ti": "deit_tiny", "s": "deit_small", "b": "deit_base"}
CLASSES = 1000


def photographs(count: int, side: int = 256) -> ImageSet:
    """Smooth colours with noise, of the size that photographs are stored in for training."""
    rows, columns = np.mgrid[:side, :side]

    def read(index: int) -> Image.Image:
        noise = np.random.default_rng(index).integers(0, 60, (side, side, 3))
        colours = np.stack([rows // 2, columns // 2, (rows + columns + 9 * index) % 200], -1)
        return Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8))

    kept = [read(index) for index in range(count)]
    labels = np.arange(count) % CLASSES
    return ImageSet(lambda index: kept[index], labels, tuple(map(str, range(CLASSES))), "made up")


def batches(batch: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield training batches of the whole recipe; the next is made meanwhile."""
    preprocessing = Preprocessing(size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    objective = ImageClassification(preprocessing, CLASSES, Augmentation(), Mixing(), 0.1)
    made = Batches(RepeatedImages(photographs(64), 0, 3), objective, Plan(batch), seed=0)
    with ThreadPoolExecutor(max_workers=1) as pool:
        following, step = pool.submit(made.micro_batches, 0), 0
        while True:
            ready, step = following.result(), step + 1
            following = pool.submit(made.micro_batches, step)
            yield ready[0]


def training(model: Any, heads: Callable[[Tensor], tuple[Tensor, Tensor]], given: Iterator[Any], steps: int) -> float:
    """Return the images a second of some updates, after one that is not counted."""
    model.train()
    optimizer, images = adamw(model, learning_rate=1e-4, weight_decay=0.05), 0
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        batch = next(given)
        ours, other = heads(batch["images"])
        taught = batch["targets"].argmax(-1)  # in place of a teacher
        loss = 0.5 * F.cross_entropy(ours, batch["targets"]) + 0.5 * F.cross_entropy(other, taught)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        images += len(batch["images"]) * (step > 0)
    return images / (time.perf_counter() - start)


@torch.inference_mode()
def inference(model: Any, images: Tensor, steps: int) -> float:
    """Return the images a second."""
    model.eval()
    model(images)
    start = time.perf_counter()
    for _ in range(steps):
        model(images)
    return steps * len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(NAMES), default="ti")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="batches of 8, two steps, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.steps, options.rounds = 8, 2, 3
    torch.manual_seed(0)
    config = replace(PRESETS[options.size], distilled=True, stochastic_depth=0.1)
    ours = ViT(config)
    theirs = import_timm().create_model(f"{NAMES[options.size]}_distilled_patch16_224", drop_path_rate=0.1)
    theirs.set_distilled_training(True)
    given, images = batches(options.batch, config.image_size), torch.randn(options.batch, 3, 224, 224)
    arms: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "training": (
            lambda: training(ours, ours, given, options.steps),
            lambda: training(theirs, theirs, given, options.steps),
        ),
        "inference": (
            lambda: inference(ours, images, options.steps),
            lambda: inference(theirs, images, options.steps),
        ),
    }
    print(machine())
    rows = []
    for name, pair in arms.items():
        found = [[arm() for arm in pair] for _ in range(options.rounds)]
        ratios = [one / other for one, other in found]
        speeds = [median([row[place] for row in found]) for place in (0, 1)]
        rows.append([name, *(f"{speed:.1f}" for speed in speeds), f"{median(ratios):.2f}"])
    print(f"DeiT-{options.size.title()}, batches of {options.batch}\n")
    print(table(["images/s", "stemma", "timm", "ratio"], rows))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
