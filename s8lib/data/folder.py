"""One's own pictures in the place of CIFAR-100: a folder for each class, as torchvision's ImageFolder has them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from s8lib.data.cifar100 import Cifar100, Split
from s8lib.data.download import DataError
from s8lib.data.pictures import SUFFIXES, picture
from s8lib.machine.progress import progress_bar
from s8lib.validation import user_path

HELD = 6  # without a test folder, one in so many pictures of each class is a test picture


def load_folder(path: str | os.PathLike[str], seed: int = 0) -> Cifar100:
    """The pictures in `path`, one folder a class: `train/<class>/...` and `test/<class>/...`.

    Without `test/`, a sixth of each class, chosen by `seed`, is the test set, and `source` says so; `path` may
    then hold the classes itself. Classes are in alphabetical order, and each is its own superclass. Every picture
    is prepared as `predict` prepares it; hidden files, and those without the ending of a picture, are left out.

    Raises:
        DataError: less than two classes, a class without pictures, or one in `test/` that `train/` lacks.
        ImageError: naming the picture that cannot be used.
    """
    folder = user_path(path).absolute()
    train, test = folder / "train", folder / "test"
    tested = os.path.isdir(test)
    train = train if tested or os.path.isdir(train) else folder
    classes = class_folders(train)
    if len(classes) < 2:
        raise DataError(f"{str(train)[:300]} should hold a folder of pictures for each of two or more classes.")
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"{train} holds a class named {odd[0]!r}: give it a name that can be printed.")
    if unknown := sorted({*class_folders(test)} - {*classes}) if tested else []:
        raise DataError(f"{test} holds a class that {train} does not have: {unknown[0]!r}.")
    train_set, source = _read(train, classes, 1 if tested else 2), f"{folder.name}, {len(classes)} classes"
    if tested:
        test_set = _read(test, classes)
    else:
        held = torch.zeros(len(train_set), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for own in ((train_set.labels == label).nonzero()[:, 0] for label in range(len(classes))):
            held[own[torch.randperm(len(own), generator=generator)[: max(1, len(own) // HELD)]]] = True
        train_set, test_set = (train_set.subset(which.nonzero()[:, 0]) for which in (~held, held))
        source += f", a sixth of each held back as test images by seed {seed}"
    return Cifar100(train_set, test_set, classes, classes, f"{source} in {folder.parent}")


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in `folder`, but for hidden ones, in alphabetical order."""
    try:
        return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    except (OSError, ValueError):  # no folder, an unreadable one, a NUL in its name
        return ()


def _read(folder: Path, classes: tuple[str, ...], at_least: int = 1) -> Split:
    """The pictures in those folders of `classes` that are in `folder`, `at_least` so many in each."""
    from torchvision.datasets.folder import make_dataset  # here: it takes a second to load

    def is_picture(file: str) -> bool:
        return file.lower().endswith(SUFFIXES) and not os.path.basename(file).startswith(".")

    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(folder), numbers, is_valid_file=is_picture, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    for name in class_folders(folder):
        if (count := int((labels == numbers[name]).sum())) < at_least:
            what = f"{folder / name} holds {('no picture', 'only one')[count]} (they end in {', '.join(SUFFIXES)})"
            raise DataError(f"{what}: bring {at_least} or more.")
    with ThreadPoolExecutor() as pool:  # Pillow unpacks without Python's lock
        read = pool.map(lambda file: picture(file, file), [file for file, _ in found])
        images = [image for image, _ in zip(read, progress_bar(range(len(found)), folder.name), strict=True)]
    return Split(torch.stack(images), labels, labels)
