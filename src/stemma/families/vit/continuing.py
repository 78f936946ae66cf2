"""A trained model as the start of another: of another resolution, or with other classes."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stemma.families.vit.model import ViT
from stemma.families.vit.positions import resize_positions


@torch.no_grad()
def continued(model: ViT, class_names: tuple[str, ...], **changes: Any) -> ViT:
    """Return a copy of a model with changes of its configuration.

    Positions are interpolated to another `image_size`. Output layers of other classes are new: zeros, as in the
    fine-tuning of ViT's paper (section 3.2).

    Args:
        class_names: of the data it is trained on. changes: image_size, dropout, stochastic_depth.
    Raises:
        InputError: a configuration that does not fit.
    """
    classes = len(class_names)
    same = model.config.class_names == class_names or (not model.config.class_names and model.config.classes == classes)
    config = replace(model.config, **changes, classes=classes, class_names=class_names)
    other = ViT(config).to(next(model.parameters()).dtype)
    state = dict(model.state_dict())
    side = config.image_size // config.patch_size
    state["embeddings.position"] = resize_positions(model.embeddings.position, (side, side), config.prefix)
    if not same:
        for head in (other.head, other.distillation_head):
            if head is not None:
                nn.init.zeros_(head.weight)
        state |= {name: value for name, value in other.state_dict().items() if "head." in name}
    other.load_state_dict(state)
    return other
