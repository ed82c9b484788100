"""CIFAR-100 as tensors: found on disk or downloaded, and verified to be the canonical data either way."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from s8lib.data.download import DataError, one_line
from s8lib.data.download import download as download_into

# Names in the order of the labels. The label digests below fix that order, so no file is asked for its names.
CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
    seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
    tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
    worm""".split()  # noqa: SIM905  (a list would take 100 lines)
)
SUPERCLASSES = tuple(
    """aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals
    trees vehicles_1 vehicles_2""".split()  # noqa: SIM905
)

# Of Toronto's files, as torchvision pins them: a pickle runs code, so a stranger's must not be opened.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
# Of the tensors, as Split.sha256() computes it: what every path must end in.
SHA256 = {
    "train": "900ff95444a1f2d9a09a8d25b92c7efab8a3c901e100353e74514ecc85c03f56",
    "test": "55ad31f8f61ce6bfb6afe288bdc0ef020d88abe1f1496a709146502b17a5d4bb",
}
PICKLES = {name: name for name in MD5}
PARQUET = {split: f"{split}-00000-of-00001.parquet" for split in ("train", "test")}
EXPECTED = "cifar-100-python/{train,test,meta} or cifar100/{train,test}-00000-of-00001.parquet"
REPLACE_IT = "delete it and load again, or bring another copy"


@dataclass(frozen=True, eq=False)
class Split:
    """`images` [N, 3, 32, 32] uint8, `labels` [N] int64 in 0..99, `coarse_labels` [N] int64 in 0..19."""

    images: Tensor
    labels: Tensor
    coarse_labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device), self.coarse_labels.to(device))

    def subset(self, indices: Tensor) -> Split:
        """The images at `indices` [M] int64, in that order."""
        indices = indices.to(self.images.device)
        return Split(self.images[indices], self.labels[indices], self.coarse_labels[indices])

    def sha256(self) -> str:
        """Hex digest over the bytes of images, labels and coarse labels, in this order."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.coarse_labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Cifar100:
    """Both splits, the names of the 100 classes and 20 superclasses, and where the data came from."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]
    source: str

    def to(self, device: torch.device | str) -> Cifar100:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def fingerprint(self) -> str:
        """sha256 hex over every image, label and class name: a resumed run refuses data with another one."""
        parts = (self.train.sha256(), self.test.sha256(), *self.classes, *self.superclasses)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class _Layout(NamedTuple):
    folder: Path
    files: dict[str, str]  # split, or meta -> file name

    def missing(self) -> list[Path]:
        return [self.folder / name for name in self.files.values() if not (self.folder / name).is_file()]


def load_cifar100(root: str | os.PathLike[str] | None = None, download: bool = True) -> Cifar100:
    """CIFAR-100 from `root`, else $S8_DATA, else the cache folder: the first that is given decides.

    A folder holds torchvision's `cifar-100-python/{train,test,meta}` or the Hub's
    `cifar100/{train,test}-00000-of-00001.parquet`, or is that inner folder itself. Both end in the same tensors,
    compared with pinned digests. With `download`, an empty or absent `root`, or the cache folder ($S8_CACHE, else
    $XDG_CACHE_HOME/s8lib, else ~/.cache/s8lib), is filled from the Hub dataset `uoft-cs/cifar100`, or from
    www.cs.toronto.edu if the Hub does not deliver; $S8_DATA is only ever read.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    Raises DataError, naming the file and what to do, for anything missing, damaged or different.
    """
    in_environment = os.environ.get("S8_DATA")
    if root is not None:
        folder = Path(root).expanduser()
        may_fill = download and _holds_only_a_download(folder)
    elif in_environment:
        folder, may_fill = Path(in_environment).expanduser(), False
    else:
        folder, may_fill = _cache_folder(), download
    layout = _find(folder)
    if may_fill and (layout is None or layout.missing()):
        download_into(folder)
        layout = _find(folder)
    if layout is None:
        where = "" if root is not None else " (S8_DATA)" if in_environment else " (the cache)"
        raise DataError(
            f"{folder}{where} does not hold CIFAR-100: expected {EXPECTED} there; name the folder that has "
            "them as root or S8_DATA, or leave both unset and let download=True fetch them."
        )
    if missing := layout.missing():
        raise DataError(f"{missing[0]} is missing beside the other files: bring a complete copy of CIFAR-100.")
    return _read(layout)


def at_hand() -> bool:
    """Whether `load_cifar100` has every file here, so that it downloads nothing."""
    in_environment = os.environ.get("S8_DATA")
    layout = _find(Path(in_environment).expanduser() if in_environment else _cache_folder())
    return layout is not None and not layout.missing()


def _cache_folder() -> Path:
    if given := os.environ.get("S8_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s8lib"


def _holds_only_a_download(folder: Path) -> bool:
    """Whether `folder` is absent, empty, or as an interrupted download left it: nobody else's gets filled."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(p.name == "cifar100" or p.name.startswith(".") for p in folder.iterdir())


def _find(folder: Path) -> _Layout | None:
    """The most complete copy in `folder`, if there is any trace of one."""
    layouts = [
        *(_Layout(place, PICKLES) for place in (folder / "cifar-100-python", folder)),
        *(_Layout(place, PARQUET) for place in (folder / "cifar100", folder)),
    ]
    traces = [layout for layout in layouts if len(layout.missing()) < len(layout.files)]
    return min(traces, key=lambda layout: len(layout.missing()), default=None)


def _read(layout: _Layout) -> Cifar100:
    splits: dict[str, Split] = {}
    for name, file in layout.files.items():
        path = layout.folder / file
        if layout.files is PARQUET:
            splits[name] = _read_parquet(path)
        else:
            blob = _read_verified(path, MD5[name])
            if name == "meta":
                continue  # only holds the names
            splits[name] = _unpickle(blob)
        if (found := splits[name].sha256()) != SHA256[name]:
            raise DataError(
                f"{path} does not hold the images and labels of CIFAR-100 (sha256 of the tensors {found}, "
                f"expected {SHA256[name]}): {REPLACE_IT}."
            )
    kind = "parquet files" if layout.files is PARQUET else "cifar-100-python"
    return Cifar100(splits["train"], splits["test"], CLASSES, SUPERCLASSES, f"{kind} in {layout.folder}")


def _read_verified(path: Path, expected: str) -> bytes:
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {REPLACE_IT}.") from error
    if (found := hashlib.md5(blob, usedforsecurity=False).hexdigest()) != expected:
        raise DataError(f"{path} is not Toronto's file (md5 {found}, expected {expected}): {REPLACE_IT}.")
    return blob


def _unpickle(blob: bytes) -> Split:
    """A split of Toronto's: `data` [N, 3072] uint8, planes R, G, B of 32x32, and two lists of labels."""
    content = pickle.loads(blob, encoding="latin1")
    images = torch.from_numpy(content["data"]).view(-1, 3, 32, 32)
    return Split(images, torch.tensor(content["fine_labels"]), torch.tensor(content["coarse_labels"]))


def _read_parquet(path: Path) -> Split:
    """A split of the Hub's: PNGs in img{bytes, path}, fine_label, coarse_label. All 60,000 take about 6 s."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from PIL import Image

    where = f"{path}"
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        fine, coarse = (
            torch.tensor(table[name].cast(pa.int64()).fill_null(-1).to_numpy())
            for name in ("fine_label", "coarse_label")
        )
        pixels = np.empty((len(table), 32, 32, 3), np.uint8)
        for row, png in enumerate(pc.struct_field(table["img"], "bytes").to_pylist()):
            where = f"{path}, row {row},"
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                if (image.mode, image.size) != ("RGB", (32, 32)):
                    raise ValueError(f"image of mode {image.mode} and size {image.size}, not RGB 32x32")
                pixels[row] = np.asarray(image)
    # KeyError: a column is missing. SyntaxError: Pillow's word for some broken PNG chunks.
    except (OSError, ValueError, KeyError, SyntaxError, pa.ArrowException) as error:
        raise DataError(f"{where} cannot be decoded ({one_line(error)}): {REPLACE_IT}.") from error
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), fine, coarse)


def holdout(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Split off `n` images, stratified by fine label: (rest, held), both in the order of `split`.

    While every class has enough images, held classes differ by at most one. The same `seed` holds the same images.
    Raises DataError unless 0 < n < len(split).
    """
    if not 0 < n < len(split):
        raise DataError(f"holdout can take 1 to {len(split) - 1} of {len(split)} images; got n={n}.")
    shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    labels = split.labels.cpu()[shuffled]
    by_class, counts = labels.argsort(stable=True), labels.bincount()
    rank = torch.empty_like(shuffled)  # how many images of its class come before it in the shuffled order
    rank[by_class] = torch.arange(len(split)) - (counts.cumsum(0) - counts)[labels[by_class]]
    held = torch.zeros(len(split), dtype=torch.bool)
    held[shuffled[rank.argsort(stable=True)[:n]]] = (
        True  # the first of every class, then the second of every class...
    )
    return split.subset((~held).nonzero().flatten()), split.subset(held.nonzero().flatten())
