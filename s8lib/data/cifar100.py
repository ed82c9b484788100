"""CIFAR-100 as tensors: found on disk or downloaded, and verified to be the canonical data either way."""

import hashlib
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from s8lib.data.download import DataError, find, missing_of
from s8lib.data.download import download as download_into
from s8lib.validation import one_line, user_path

# Each superclass and its classes. Labels count both in alphabetical order, which the digests below fix, so no file
# is asked for its names.
MEMBERS = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASS_OF = {name: superclass for superclass, names in MEMBERS.items() for name in names.split()}
CLASSES = tuple(sorted(SUPERCLASS_OF))
SUPERCLASSES = tuple(MEMBERS)

# Of Toronto's files, as torchvision pins them: a pickle runs code, so a stranger's must not be opened.
MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
# Of the tensors, as Split.sha256() computes it: what every path must end in.
SHA256 = {
    "train": "900ff95444a1f2d9a09a8d25b92c7efab8a3c901e100353e74514ecc85c03f56",
    "test": "55ad31f8f61ce6bfb6afe288bdc0ef020d88abe1f1496a709146502b17a5d4bb",
}
CIFAR100_FINGERPRINT = "64e4c448bc0b3e04c30e3896dddc7cd8caa2ed1e149fafbed7f88706f8ffad0e"  # Cifar100.fingerprint()


@dataclass(frozen=True, eq=False)
class Split:
    """`images` [N, 3, 32, 32] uint8, `labels` [N] int64, `coarse_labels` [N] int64, with N at least 1.

    Raises DataError for anything else.
    """

    images: Tensor
    labels: Tensor
    coarse_labels: Tensor

    def __post_init__(self) -> None:
        # No look at the values: on a GPU it would make the host wait. `Cifar100`, made once, looks at the labels.
        n = next(iter(getattr(self.images, "shape", ())), 0)
        labels = f"torch.int64 [{n}]"
        kinds = {"images": f"torch.uint8 [{max(n, 1)}, 3, 32, 32]", "labels": labels, "coarse_labels": labels}
        for name, kind in kinds.items():
            value = getattr(self, name)
            found = f"{getattr(value, 'dtype', type(value).__name__)} {list(getattr(value, 'shape', ()))}"
            if found != kind:
                raise DataError(
                    f"{name} is {found}, not {kind}: a split holds RGB images of 32x32 pixels, channels first, a "
                    "label and a coarse label for each, and at least one of them."
                )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device), self.coarse_labels.to(device))

    def subset(self, indices: Tensor) -> "Split":
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
    """Both splits, the names of the 100 classes and 20 superclasses, what the data are called and where they lie.

    Data of `load_folder` have classes of their own, each of which is its own superclass. The `name` is published.

    Raises DataError for a label that has no name, or names that are no text or not all different.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]
    name: str
    folder: Path | None = None

    def __post_init__(self) -> None:
        for names in (self.classes, self.superclasses):
            if len({*names}) < len(names) or not all(isinstance(name, str) for name in names):
                raise DataError("classes and superclasses need names that are text and all different.")
        for part, split in (("train", self.train), ("test", self.test)):
            for name, names in (("labels", self.classes), ("coarse_labels", self.superclasses)):
                low, high = (int(end) for end in getattr(split, name).aminmax())
                if low < 0 or high >= len(names):
                    raise DataError(
                        f"{part}.{name} go from {low} to {high}: {len(names)} names need 0 to {len(names) - 1}."
                    )

    @property
    def source(self) -> str:
        """Name and folder, for whoever sits at this machine."""
        return f"{self.name} in {self.folder}" if self.folder else self.name

    def fingerprint(self) -> str:
        """sha256 hex over every image, label and class name: a resumed run refuses data with another one."""
        parts = (self.train.sha256(), self.test.sha256(), *self.classes, *self.superclasses)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_cifar100(root: str | os.PathLike[str] | None = None, download: bool = True) -> Cifar100:
    """CIFAR-100 from `root`, else $S8_DATA, else the cache folder: the first that is given decides.

    A folder holds torchvision's `cifar-100-python/{train,test,meta}` or the Hub's
    `cifar100/{train,test}-00000-of-00001.parquet`, or is that inner folder itself. Both end in the same tensors,
    compared with pinned digests. With `download`, what is missing in `root` or the cache folder ($S8_CACHE, else
    $XDG_CACHE_HOME/s8lib, else ~/.cache/s8lib), comes from the Hub dataset `uoft-cs/cifar100`, or from
    www.cs.toronto.edu if the Hub does not deliver; $S8_DATA is only ever read.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    Raises DataError, naming the file and what to do, for anything missing, damaged or different.
    """
    folder, named_by = _folder(root)
    if download and named_by != "S8_DATA" and missing_of(find(folder)):
        download_into(folder)
    files = find(folder)
    missing = missing_of(files)
    if len(missing) == len(files):
        raise DataError(
            f"{str(folder)[:300]} ({named_by}) does not hold CIFAR-100, or cannot be read: expected "
            "cifar-100-python/{train,test,meta} or cifar100/{train,test}-00000-of-00001.parquet, or pictures of "
            "your own in train/CLASS/ and test/CLASS/; name their folder, or none, and CIFAR-100 is downloaded."
        )
    if missing:
        raise DataError(f"{missing[0]} is missing beside the other files: bring a complete copy of CIFAR-100.")
    train, test = (_read(files[name], MD5[name], SHA256[name]) for name in ("train", "test"))
    name = "parquet files" if files["test"].suffix else "cifar-100-python"
    return Cifar100(train, test, CLASSES, SUPERCLASSES, name, files["test"].parent)


def at_hand() -> bool:
    """Whether `load_cifar100` has every file here, so that it downloads nothing."""
    return not missing_of(find(_folder(None)[0]))


def _folder(root: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Where to look, and which setting says so."""
    if root is not None:
        return user_path(root), "as named"
    if named := os.environ.get("S8_DATA"):
        return user_path(named), "S8_DATA"
    cache = os.environ.get("S8_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "s8lib")
    return user_path(cache), "the cache"


def _read(path: Path, md5: str, sha256: str) -> Split:
    """The split in a file of either layout; DataError, naming the file, unless it is the canonical one."""
    try:
        split = _read_parquet(path) if path.suffix else _read_pickle(path, md5)
        if (found := split.sha256()) != sha256:
            raise ValueError(f"the sha256 of its images and labels is {found}, not {sha256}")
    # pyarrow's errors are of these kinds.
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        reason = f"{path} does not hold its part of CIFAR-100 ({one_line(error)})"
        raise DataError(f"{reason}: delete it and load again, or bring another copy.") from error
    return split


def _read_pickle(path: Path, md5: str) -> Split:
    """A split of Toronto's: `data` [N, 3072] uint8, planes R, G, B of 32x32, and two lists of labels."""
    blob = path.read_bytes()
    if (found := hashlib.md5(blob, usedforsecurity=False).hexdigest()) != md5:
        raise ValueError(f"its md5 is {found}, not {md5}")
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

    with pq.ParquetFile(path) as file:
        table = file.read()
    labels = (table[f"{kind}_label"].cast(pa.int64()).fill_null(-1).to_numpy() for kind in ("fine", "coarse"))
    pixels = np.empty((len(table), 32, 32, 3), np.uint8)
    for row, png in enumerate(pc.struct_field(table["img"], "bytes").cast(pa.binary()).to_pylist()):
        try:
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                pixels[row] = np.asarray(image)  # refuses another size, and another number of channels
        # SyntaxError is Pillow's word for some broken chunks; the bomb claims more pixels than it cares to unpack.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"row {row}: {one_line(error)}") from None
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), *map(torch.tensor, labels))


def holdout(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Split off `n` images, stratified by fine label: (rest, held), both in the order of `split`.

    While every class has enough images, held classes differ by at most one. The same `seed` holds the same images.
    Raises DataError unless 0 < n < len(split).
    """
    if not (isinstance(n, int) and 0 < n < len(split)):
        raise DataError(f"holdout can take 1 to {len(split) - 1} of {len(split)} images; got n={n}.")
    shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    labels = split.labels.cpu()[shuffled, None]
    turn = F.one_hot(labels[:, 0]).cumsum(0).gather(1, labels)[:, 0]  # 1 for the first image of its class, 2, ...
    by_turn = shuffled[turn.argsort(stable=True)]  # the first of every class, then the second of every class
    return split.subset(by_turn[n:].sort().values), split.subset(by_turn[:n].sort().values)
