"""Teachers of images: a model of ours, or any of timm's, asked about what its student sees."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma import families
from stemma.data.hub_datasets import first_line
from stemma.data.image_preprocessing import Preprocessing
from stemma.errors import InputError, closest
from stemma.families.directory import resolve

TIMM = "timm:"


class Teacher:
    """A model in evaluation mode that sees the images as they were prepared for another model.

    Args:
        model: maps float [batch, channels, size, size] to logits. own, seen: how it wants images, and how they come.
    """

    def __init__(self, model: nn.Module, own: Preprocessing, seen: Preprocessing) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size = own.size
        # From (x - mean) / std of the student's to the teacher's: x * scale + shift, for each channel.
        mean, std, own_mean, own_std = (np.asarray(values) for values in (seen.mean, seen.std, own.mean, own.std))
        self.scale = torch.tensor(std / own_std, dtype=torch.float32).view(-1, 1, 1)
        self.shift = torch.tensor((mean - own_mean) / own_std, dtype=torch.float32).view(-1, 1, 1)
        self.channels = len(own.mean)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, float [batch, classes], for the student's images, float [batch, channels, size, size]."""
        parameter = next(self.model.parameters())
        if parameter.device != images.device:
            self.model.to(images.device)
        images = images * self.scale.to(images.device) + self.shift.to(images.device)
        if images.shape[1] != self.channels:  # grey to colours, or back
            images = images.expand(-1, self.channels, -1, -1) if images.shape[1] == 1 else images.mean(1, keepdim=True)
        if images.shape[-1] != self.size:
            sides = (self.size, self.size)
            images = F.interpolate(images, sides, mode="bicubic", antialias=self.size < images.shape[-1])
        return self.model(images.to(parameter.dtype))


def load_teacher(name: str, class_names: tuple[str, ...], seen: Preprocessing) -> Teacher:
    """Load a teacher.

    Args:
        name: a checkpoint that `stemma.load` takes, or "timm:NAME" with an optional "=FILE" of weights after it.
        class_names: of the student's data. seen: how images are prepared for the student.
    Raises:
        InputError: no such teacher, or one of other classes.
    """
    model, own, names = _of_timm(name, len(class_names)) if name.startswith(TIMM) else _of_ours(name)
    if names and names != class_names:
        different = next((one for one in class_names if one not in names), None)
        what = "in another order" if different is None else f"without '{different}'{closest(different, names)}"
        raise InputError(f"distillation.teacher: {name} knows other classes than the data: {what}")
    teacher = Teacher(model, own, seen)
    classes = teacher(torch.zeros(1, len(seen.mean), seen.size, seen.size)).shape[-1]
    if classes != len(class_names):
        raise InputError(f"distillation.teacher: {name} knows {classes} classes, and the data has {len(class_names)}")
    return teacher


def _of_ours(name: str) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    model: Any = families.load(name)
    if not families.reads_images(model):
        raise InputError(f"distillation.teacher: {name} is a {type(model).__name__}, which reads no images")
    return model, Preprocessing.load(resolve(name), channels=model.config.channels), model.config.class_names


def _of_timm(given: str, classes: int) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # the latter: a torchvision of another build than torch
        reason = first_line(error)
        raise InputError(
            f"distillation.teacher: {given} needs timm and a torchvision of torch's own build ({reason})"
        ) from error
    name, _, file = given.removeprefix(TIMM).partition("=")
    own: dict[str, Any] = {"checkpoint_path": str(Path(file).expanduser()), "num_classes": classes}
    try:
        model = timm.create_model(name, **(own if file else {"pretrained": True}))
    except Exception as error:  # whatever timm, and the network library beneath it, raises
        reason = first_line(error) or type(error).__name__
        raise InputError(f"distillation.teacher: {given}: timm gives no such model ({reason})") from error
    config: Any = model.pretrained_cfg
    size = int(config["input_size"][-1])
    return model, Preprocessing(size, mean=tuple(config["mean"]), std=tuple(config["std"])), ()
