"""`stemma look`: a page of pictures of what a model of images is trained on and looks at."""

from pathlib import Path
from typing import Annotated

import typer


def look(
    model: Annotated[str, typer.Argument(help="A run of stemma pretrain vit/..., or any checkpoint of a ViT.")],
    images: Annotated[str, typer.Argument(help="digits, a folder for each class, MNIST's or CIFAR's files, hf:...")],
    count: Annotated[int, typer.Option(min=2, help="How many images are shown.")] = 6,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("look.html"),
) -> None:
    """Show what augmentation does to images, and where a ViT's class and distillation token look.

    The augmentation is that of the run's recipe, or DeiT's.

    Example: stemma look runs/vit-tiny digits --out look.html
    """
    from stemma.insights.image_page import write_page

    write_page(model, images, count, out)
    print(out)
