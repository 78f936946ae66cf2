"""What is done to an image before a model sees it; it belongs to the checkpoint (preprocessor_config.json)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.errors import InputError
from stemma.files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# PIL's numbers of its filters, by which transformers names them.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, cut out the middle, normalise.

    Args:
        size: side of the square that the model sees. resized: to what the shorter side is resized before the middle is
            cut out; default: `size`. stretched: the whole image becomes a square of `resized`, whatever its sides.
        mean, std: of each channel, with values from 0 to 1; as many as the model has channels, 1 (grey) or 3.
        resample: a key of `RESAMPLE`.
    """

    size: int
    resized: int | None = None
    stretched: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"

    def __call__(self, image: "Image") -> np.ndarray:
        """Return float32 [channels, size, size]."""
        wanted = self.resized or self.size
        width, height = image.size
        image = self.coloured(image)
        sides = (wanted, wanted) if self.stretched else _by_shorter_side(width, height, wanted)
        if image.size != sides:
            image = image.resize(sides, RESAMPLE[self.resample])
        left, top = (round((side - self.size) / 2) for side in image.size)
        return self.normalised(image.crop((left, top, left + self.size, top + self.size)))

    def coloured(self, image: "Image") -> "Image":
        """Return the image in grey or in colours, as the model has it."""
        mode = "L" if len(self.mean) == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)

    def normalised(self, image: "Image") -> np.ndarray:
        """Return the pixels of an image of the right size and channels, float32 [channels, height, width]."""
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / 255
        return np.ascontiguousarray(((pixels - self._array(self.mean)) / self._array(self.std)).transpose(2, 0, 1))

    @staticmethod
    def _array(values: tuple[float, ...]) -> np.ndarray:
        return np.asarray(values, np.float32)

    def save(self, directory: Path) -> None:
        """Write preprocessor_config.json as transformers' image processors have it."""
        resized = self.resized or self.size
        content = {
            "image_processor_type": "ViTImageProcessor" if self.stretched else "DeiTImageProcessor",
            "do_resize": True,
            "size": {"height": resized, "width": resized} if self.stretched else {"shortest_edge": resized},
            "resample": RESAMPLE[self.resample],
            "do_center_crop": not self.stretched or resized != self.size,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        with write_whole(directory / FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, *, channels: int = 3) -> "Preprocessing":
        """Read that of a checkpoint directory: preprocessor_config.json, or what timm's config.json says.

        Args:
            channels: of the model; a file may give one mean for all of them.
        Raises:
            InputError: there is none, or one that does something else.
        """
        path, described = Path(directory) / FILE, Path(directory) / "config.json"
        try:
            if path.is_file():
                return _of_transformers(json.loads(path.read_text(encoding="utf-8")), channels)
            timm = json.loads(described.read_text(encoding="utf-8")).get("pretrained_cfg")
            if timm is not None:
                return _of_timm(timm)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not what an image processor of transformers writes ({error!r})") from error
        raise InputError(f"{directory}: no {FILE}, so it is not known what the model wants images to be")


def for_channels(values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a number for each channel; one is that of all.

    Raises:
        InputError: there are as many neither as 1 nor as channels.
    """
    listed = [values] if isinstance(values, int | float) else list(values)
    if len(listed) not in (1, channels):
        raise InputError(f"preprocessing: {len(listed)} numbers for {channels} channels")
    return tuple(map(float, listed * channels if len(listed) == 1 else listed))


def _by_shorter_side(width: int, height: int, wanted: int) -> tuple[int, int]:
    if width <= height:
        return wanted, int(wanted * height / width)
    return int(wanted * width / height), wanted


def _of_transformers(content: Mapping[str, Any], channels: int) -> Preprocessing:
    size: Any = content["size"]
    stretched = not isinstance(size, int) and "height" in size
    resized = size if isinstance(size, int) else size["height"] if stretched else size["shortest_edge"]
    crop = content.get("crop_size", resized)
    cropped = content.get("do_center_crop", False)
    names = {number: name for name, number in RESAMPLE.items()}
    mean, std = (for_channels(content[name], channels) for name in ("image_mean", "image_std"))
    # Older files have one number for the side of the square that the image becomes.
    stretched = stretched or isinstance(size, int) and not cropped
    seen = (crop if isinstance(crop, int) else crop["height"]) if cropped else resized
    return Preprocessing(seen, resized, stretched, mean, std, names[content.get("resample", 2)])


def _of_timm(content: Mapping[str, Any]) -> Preprocessing:
    size = int(content["input_size"][-1])
    resized = int(size / content.get("crop_pct", 0.875))
    mean, std = tuple(content["mean"]), tuple(content["std"])
    return Preprocessing(size, resized, False, mean, std, content.get("interpolation", "bicubic"))
