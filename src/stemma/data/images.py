"""Labelled images, from wherever they lie.

digits                           those of scikit-learn, 1,797 of 8 x 8 pixels: 1,000 to train, 797 to test
FOLDER, FILE.zip                 a folder a class; in `train` and `test` (or `val`, `validation`) where there are these
FOLDER, FILE of MNIST            ...images-idx3-ubyte[.gz] and ...labels-idx1-ubyte[.gz]
FOLDER, FILE of CIFAR            its batches, in Python's or the binary version
hf:owner/name[:config][:split]   a data set with a column of images and one of classes; a folder of `save_to_disk` too
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.dataset_rows import chosen, loaded
from stemma.data.hub_datasets import PREFIX
from stemma.data.image_files import IDX_IMAGES, cifar_names, is_cifar, read_cifar, read_idx_pair
from stemma.errors import InputError, closest

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN, TEST = ("train", "training"), ("test", "val", "validation", "valid")
DIGITS_TO_TRAIN = 1000


@dataclass(frozen=True)
class ImageSet:
    """Images with their classes by number.

    Args:
        read: gives the image of a number, which any thread may ask for. labels: int64 [images].
        class_names: of the classes. fingerprint: identifies images and labels.
    """

    read: Callable[[int], "Image"]
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def selected(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """Return those images, in that order."""
        chosen = np.asarray(indices, np.int64)
        name = digest([self.fingerprint, hashlib.sha256(chosen.tobytes()).hexdigest()])
        read = self.read
        return replace(self, read=lambda index: read(int(chosen[index])), labels=self.labels[chosen], fingerprint=name)

    def with_classes(self, class_names: Sequence[str]) -> "ImageSet":
        """Return the same images with the classes numbered as in another set.

        Raises:
            InputError: a class that is not there.
        """
        if tuple(class_names) == self.class_names:
            return self
        for name in self.class_names:
            if name not in class_names:
                hint = closest(name, class_names) or f", expected one of {', '.join(class_names)}"
                raise InputError(f"images of class '{name}', which the model does not know{hint}")
        places = np.array([list(class_names).index(name) for name in self.class_names], np.int64)
        return replace(self, labels=places[self.labels], class_names=tuple(class_names))


def read_images(what: str) -> tuple[ImageSet, ImageSet | None]:
    """Return the images to train on, and those to test on where the source has a part for that.

    Raises:
        InputError: there are none, or they cannot be read (names the place).
    """
    require_pillow()
    if what == "digits":
        return _digits()
    path = Path(what).expanduser()
    if what.startswith(PREFIX) or any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _of_datasets(what)
    if path.is_file():
        return _of_file(path), None
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"no images '{what}'{closest(path.name, siblings)}: expected 'digits', a folder, a file or hf:"
        )
    return _of_folder(path)


def held_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images without a random share of them, and that share.

    Raises:
        InputError: one of the two would be empty.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    cut = round(share * len(images))
    if not 0 < cut < len(images):
        raise InputError(f"data.held_out: a share of {share} of {len(images)} images is {cut} of them")
    return images.selected(np.sort(order[cut:])), images.selected(np.sort(order[:cut]))


def require_pillow() -> None:
    """Raise InputError if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError("images need Pillow: pip install 'stemma-lm[images]'") from None


def _digits() -> tuple[ImageSet, ImageSet]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits come with scikit-learn: pip install 'stemma-lm[images]'") from None
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    digits = _of_arrays(pixels, found.target, tuple(map(str, range(10))))
    order = np.random.default_rng(0).permutation(len(digits))
    return digits.selected(order[:DIGITS_TO_TRAIN]), digits.selected(order[DIGITS_TO_TRAIN:])


def _of_arrays(pixels: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...] | None) -> ImageSet:
    from PIL import Image

    labels = labels.astype(np.int64)
    names = class_names or tuple(str(number) for number in range(int(labels.max()) + 1))
    content = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + labels.tobytes()).hexdigest()
    return ImageSet(lambda index: Image.fromarray(np.ascontiguousarray(pixels[index])), labels, names, content[:32])


def _of_file(path: Path) -> ImageSet:
    if IDX_IMAGES.fullmatch(path.name):
        return _of_arrays(*read_idx_pair(path), None)
    if is_cifar(path):
        return _of_arrays(*read_cifar(path), cifar_names(path.parent))
    if path.suffix == ".zip":
        return _of_zip(path)
    raise InputError(f"{path}: not a zip of images, a file of MNIST (...images-idx3-ubyte) or a batch of CIFAR")


def _of_folder(path: Path) -> tuple[ImageSet, ImageSet | None]:
    files = sorted(path.iterdir())
    idx = [file for file in files if IDX_IMAGES.fullmatch(file.name)]
    if idx:
        train, test = ([file for file in idx if file.name.startswith(begin)] for begin in ("train", "t10k"))
        first = (train or idx)[0]
        return _of_file(first), _of_file(test[0]) if test and train else None
    batches = [file for file in files if is_cifar(file)]
    if batches:
        train, test = ([file for file in batches if file.name.startswith("test") == tests] for tests in (False, True))
        return _of_cifar(train or batches), _of_cifar(test) if test and train else None
    folders = {entry.name.lower(): entry for entry in files if entry.is_dir()}
    train_folder = next((folders[name] for name in TRAIN if name in folders), None)
    test_folder = next((folders[name] for name in TEST if name in folders), None)
    if train_folder is None:
        return _of_class_folders(path), None
    training = _of_class_folders(train_folder)
    if test_folder is None:
        return training, None
    return training, _of_class_folders(test_folder).with_classes(training.class_names)


def _of_cifar(batches: Sequence[Path]) -> ImageSet:
    pixels, labels = zip(*map(read_cifar, batches), strict=True)
    return _of_arrays(np.concatenate(pixels), np.concatenate(labels), cifar_names(batches[0].parent))


def _of_class_folders(path: Path) -> ImageSet:
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        for folder in sorted(path.iterdir())
        if folder.is_dir()
    }
    by_class = {name: files for name, files in found.items() if files}
    return _of_named(str(path), {name: [str(file) for file in files] for name, files in by_class.items()}, Path)


def _of_zip(path: Path) -> ImageSet:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a zip ({error})") from error
    by_class: dict[str, list[str]] = {}
    for name in sorted(archive.namelist()):
        if Path(name).suffix.lower() in SUFFIXES and "/" in name:
            by_class.setdefault(Path(name).parent.name, []).append(name)
    ordered = dict(sorted(by_class.items()))
    return _of_named(str(path), ordered, lambda name: io.BytesIO(archive.read(name)))


def _of_named(what: str, by_class: Mapping[str, Sequence[str]], opened: Callable[[str], Any]) -> ImageSet:
    """Return images that are files: `opened` gives what Pillow reads one of them from."""
    from PIL import Image, UnidentifiedImageError

    if not by_class:
        raise InputError(f"{what}: no images; expected a folder for each class with files such as .png or .jpg in it")
    names = [name for files in by_class.values() for name in files]
    labels = np.repeat(np.arange(len(by_class)), [len(files) for files in by_class.values()])

    def read(index: int) -> "Image.Image":
        try:
            with Image.open(opened(names[index])) as image:
                image.load()
                return image
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{what}: {names[index]} cannot be read as an image ({error})") from error

    # Names stand for contents: hashing all pixels of a large set would take longer than a short run.
    return ImageSet(read, labels, tuple(by_class), digest([what, *names]))


def _of_datasets(what: str) -> tuple[ImageSet, ImageSet | None]:
    found, split = loaded(what)
    train = _of_dataset(what, chosen(what, found, split))
    if split is not None or not isinstance(found, Mapping):
        return train, None
    test = next((name for name in TEST if name in found), None)
    return train, None if test is None else _of_dataset(what, found[test]).with_classes(train.class_names)


def _of_dataset(what: str, rows: Any) -> ImageSet:
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [name for name, feature in rows.features.items() if isinstance(feature, ImageFeature)]
    labels = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if not images or not labels:
        raise InputError(f"{what}: expected a column of images and one of classes, found {', '.join(rows.features)}")
    names, numbers = tuple(rows.features[labels[-1]].names), np.asarray(rows[labels[-1]], np.int64)
    if (numbers < 0).any():  # how test sets of the hub keep theirs secret
        raise InputError(
            f"{what}: column '{labels[-1]}' has rows without a class; expected a split that has them, such as "
            "hf:owner/name:train"
        )
    return ImageSet(lambda index: rows[index][images[0]], numbers, names, str(rows._fingerprint))
