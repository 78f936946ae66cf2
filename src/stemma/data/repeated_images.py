"""The order in which images are trained on, with repeated augmentation."""

from functools import lru_cache

import numpy as np
import torch

from stemma.data.content_hashes import digest
from stemma.data.images import ImageSet


class RepeatedImages:
    """Images by number, shuffled anew in each epoch, each several times in a row (Hoffer et al. 2020).

    An epoch is as many samples as there are images, and sees so many fewer different ones. The order is that of the
    sampler in DeiT's code, whose seed is 0: the workers, who take samples in turn, get different augmentations of the
    same image. (That sampler also leaves out up to 255 samples of each epoch, which this does not.)

    Args:
        repeats: of each image in a row.
    """

    def __init__(self, images: ImageSet, seed: int, repeats: int = 1) -> None:
        self.images, self.seed, self.repeats = images, seed, repeats
        self.fingerprint = digest([images.fingerprint, str(repeats)])
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.images)

    def sequence(self, index: int) -> tuple[ImageSet, int]:
        """Return the images and the number of the one that is sample `index`, counted on through the epochs."""
        epoch, place = divmod(index, len(self.images))
        return self.images, int(self._order(epoch)[place // self.repeats])

    def _shuffled(self, epoch: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(len(self.images), generator=generator).numpy()
