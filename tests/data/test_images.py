"""Images from every place: digits, folders, zips, MNIST's idx, CIFAR's batches, data sets; the order of training."""

import gzip
import pickle
import struct
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import ImageSet, held_out, read_images
from stemma.data.repeated_images import RepeatedImages
from stemma.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def numbered(count: int) -> ImageSet:
    return ImageSet(lambda index: Image.new("L", (1, 1), index), np.zeros(count, np.int64), ("a",), "numbers")


def write_folders(path: Path) -> None:
    for name, images in (("dog", PIXELS[:2]), ("cat", PIXELS[2:5])):
        (path / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(path / name / f"{number}.png")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_digits_are_there_and_divided_the_same_way_each_time() -> None:
    train, test = read_images("digits")
    again, _ = read_images("digits")
    assert test is not None and (len(train), len(test)) == (1000, 797)
    assert train.fingerprint == again.fingerprint != test.fingerprint
    assert train.read(0).size == (8, 8) and train.class_names[3] == "3"
    assert np.asarray(train.read(0)).max() == 255  # of 16
    counts = np.bincount(np.concatenate([train.labels, test.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_folder_for_each_class_and_a_zip_of_it(tmp_path: Path) -> None:
    write_folders(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").rglob("*.png"):
            archive.write(file, f"some/where/{file.parent.name}/{file.name}")
    for place in ("set", "set.zip"):
        images, test = read_images(str(tmp_path / place))
        assert test is None and images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 0, 0, 1, 1]
        assert np.array_equal(images.read(3), PIXELS[0]) and np.array_equal(images.read(2), PIXELS[4])


def test_parts_for_training_and_testing(tmp_path: Path) -> None:
    write_folders(tmp_path / "train")
    (tmp_path / "val" / "dog").mkdir(parents=True)
    Image.fromarray(PIXELS[5]).save(tmp_path / "val" / "dog" / "x.jpg")
    train, test = read_images(str(tmp_path))
    assert test is not None and len(train) == 5 and test.labels.tolist() == [1]
    assert test.class_names == ("cat", "dog")
    (tmp_path / "val" / "cow").mkdir()
    Image.fromarray(PIXELS[5]).save(tmp_path / "val" / "cow" / "x.png")
    with pytest.raises(InputError, match="images of class 'cow', which the model does not know"):
        read_images(str(tmp_path))


def test_mnists_files(tmp_path: Path) -> None:
    grey, labels = PIXELS[..., 0], np.array([3, 1, 2, 0, 1, 3])
    for begin, some in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        write_idx(tmp_path / f"{begin}-images-idx3-ubyte.gz", grey[some])
        write_idx(tmp_path / f"{begin}-labels-idx1-ubyte.gz", labels[some])
    train, test = read_images(str(tmp_path))
    assert test is not None and train.labels.tolist() == [3, 1, 2, 0] and test.labels.tolist() == [1, 3]
    assert np.array_equal(train.read(1), grey[1]) and train.class_names == ("0", "1", "2", "3")
    only, nothing = read_images(str(tmp_path / "t10k-images-idx3-ubyte.gz"))
    assert nothing is None and len(only) == 2
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    with pytest.raises(InputError, match=r"\[2, 32, 32\], and t10k-labels"):
        read_images(str(tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09ab"))
    with pytest.raises(InputError, match="2 bytes, and it says 9"):
        read_images(str(tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_images(str(tmp_path))


def test_cifars_batches_in_both_versions(tmp_path: Path) -> None:
    rows = PIXELS.transpose(0, 3, 1, 2).reshape(6, -1)  # a channel after the other
    labels = [0, 1, 1, 0, 1, 0]
    python, binary = tmp_path / "python", tmp_path / "binary"
    python.mkdir()
    binary.mkdir()
    for name, some in (("data_batch_1", slice(0, 2)), ("data_batch_2", slice(2, 4)), ("test_batch", slice(4, 6))):
        (python / name).write_bytes(pickle.dumps({"data": rows[some], "labels": labels[some]}, protocol=2))
        with_labels = np.concatenate([np.array(labels[some], np.uint8)[:, None], rows[some]], 1)
        (binary / f"{name}.bin").write_bytes(with_labels.tobytes())
    (python / "batches.meta").write_bytes(pickle.dumps({"label_names": ["car", "bird"]}))
    (binary / "batches.meta.txt").write_text("car\nbird\n")
    for folder in (python, binary):
        train, test = read_images(str(folder))
        assert test is not None and train.labels.tolist() == labels[:4] and test.labels.tolist() == labels[4:]
        assert train.class_names == ("car", "bird")
        assert np.array_equal(train.read(3), PIXELS[3]) and np.array_equal(test.read(0), PIXELS[4])
    hundred = tmp_path / "train.bin"
    hundred.write_bytes(bytes([9, 1]) + rows[0].tobytes())
    assert read_images(str(hundred))[0].labels.tolist() == [1]  # the fine one
    (python / "data_batch_1").write_bytes(pickle.dumps(Path))
    with pytest.raises(InputError, match="not a batch of CIFAR"):
        read_images(str(python))
    (binary / "data_batch_1.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes, expected a multiple of 3073"):
        read_images(str(binary))


def test_a_data_set(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    parts = {
        name: datasets.Dataset.from_dict(
            {"img": [Image.fromarray(PIXELS[n]) for n in some], "label": [n % 2 for n in some]}, features=features
        )
        for name, some in (("train", (0, 1, 2)), ("test", (3,)))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    train, test = read_images(str(tmp_path / "set"))
    assert test is not None and train.labels.tolist() == [0, 1, 0] and test.labels.tolist() == [1]
    assert np.array_equal(train.read(2), PIXELS[2]) and train.class_names == ("x", "y")
    parts["test"] = datasets.Dataset.from_dict({"img": [Image.fromarray(PIXELS[3])], "label": [-1]}, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "secret")
    with pytest.raises(InputError, match="column 'label' has rows without a class"):
        read_images(str(tmp_path / "secret"))
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(InputError, match="expected a column of images and one of classes, found text"):
        read_images(str(tmp_path / "texts"))


def test_what_is_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images 'digit'"):
        read_images("digit")
    with pytest.raises(InputError, match="expected a folder for each class"):
        read_images(str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match="not a zip of images"):
        read_images(str(tmp_path / "x.txt"))
    (tmp_path / "x.zip").write_text("x")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        read_images(str(tmp_path / "x.zip"))
    write_folders(tmp_path / "set")
    (tmp_path / "set" / "cat" / "0.png").write_text("x")
    with pytest.raises(InputError, match="0.png cannot be read as an image"):
        read_images(str(tmp_path / "set"))[0].read(0)


def test_a_share_is_held_out_once() -> None:
    train, test = held_out(numbered(10), 0.3, seed=1)
    values = [[int(np.asarray(part.read(n))[0, 0]) for n in range(len(part))] for part in (train, test)]
    assert len(values[1]) == 3 and sorted(values[0] + values[1]) == list(range(10))
    assert held_out(numbered(10), 0.3, seed=1)[1].fingerprint == test.fingerprint
    with pytest.raises(InputError, match="a share of 0.01 of 10 images is 0 of them"):
        held_out(numbered(10), 0.01, seed=1)


def published_sampler(count: int, epoch: int, rank: int, world: int) -> list[int]:
    """RASampler of facebookresearch/deit, by its definition: shuffle by the epoch, repeat, deal out, cut."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()
    return [index for index in order for _ in range(3)][rank::world][: count // 256 * 256 // world]


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("epoch", [0, 1])
def test_repeated_augmentation_is_in_the_published_samplers_order(world: int, epoch: int) -> None:
    sequences = RepeatedImages(numbered(1000), seed=0, repeats=3)
    for rank in range(world):
        mine = [sequences.sequence(epoch * 1000 + place)[1] for place in range(rank, 1000, world)]
        expected = published_sampler(1000, epoch, rank, world)
        assert mine[: len(expected)] == expected
    assert len(sequences) == 1000
    assert len({sequences.sequence(place)[1] for place in range(1000)}) == 334


def test_without_repeats_an_epoch_sees_every_image_once() -> None:
    sequences = RepeatedImages(numbered(7), seed=3)
    assert sorted(sequences.sequence(place)[1] for place in range(7, 14)) == list(range(7))


def test_preprocessing_by_hand() -> None:
    image = Image.fromarray(PIXELS[0])
    plain = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))(image)
    assert plain[1, 2, 3] == pytest.approx((PIXELS[0][2, 3, 1] / 255 - 0.2) / 0.4, abs=1e-5)
    wide = Image.fromarray(np.tile(PIXELS[0], (1, 2, 1)))
    middle = Preprocessing(32)(wide)
    assert np.allclose(middle, Preprocessing(32)(wide.crop((16, 0, 48, 32))))
    assert not np.allclose(middle, Preprocessing(32, stretched=True)(wide))
    assert Preprocessing(16, mean=(0.5,), std=(0.5,))(image).shape == (1, 16, 16)


def test_pixels_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    own = Preprocessing(24, stretched=True, resample="bilinear")
    own.save(tmp_path)
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path)(Image.fromarray(PIXELS[0]), return_tensors="np")
    assert np.abs(theirs["pixel_values"][0] - own(Image.fromarray(PIXELS[0]))).max() < 1e-5
    assert Preprocessing.load(tmp_path) == Preprocessing(24, 24, stretched=True, resample="bilinear")


def test_older_files_and_missing_ones(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"size": 224, "image_mean": 0.5, "image_std": [0.5, 0.5, 0.5], "resample": 2}')
    assert Preprocessing.load(tmp_path) == Preprocessing(224, 224, stretched=True, resample="bilinear")
    path.write_text('{"size": 256, "do_center_crop": true, "crop_size": 224, "image_mean": 0.5, "image_std": 0.5}')
    loaded = Preprocessing.load(tmp_path, channels=1)
    assert (loaded.size, loaded.resized, loaded.mean) == (224, 256, (0.5,))
    path.write_text('{"size": 224, "image_mean": [0.5, 0.4, 0.3], "image_std": 0.5}')
    with pytest.raises(InputError, match="3 numbers for 1 channels"):
        Preprocessing.load(tmp_path, channels=1)
    path.write_text("{}")
    with pytest.raises(InputError, match="not what an image processor of transformers writes"):
        Preprocessing.load(tmp_path)
    path.unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        Preprocessing.load(tmp_path)
