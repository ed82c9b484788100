"""CIFAR-100 is the canonical data whichever way it comes, or an error that names the file."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from s8lib.data import cifar100 as data
from s8lib.data.cifar100 import Cifar100, DataError, Split, holdout, load_cifar100
from s8lib.data.synthetic import synthetic_cifar100
from tests.dataset_servers import Loader, MadeUp, Server, hub_table, make_up, png, serve

TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make_up(tmp_path_factory.mktemp("made-up"))


@pytest.fixture
def pinned(made: MadeUp, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """The made-up data, taken for the canonical data in this process."""
    monkeypatch.setattr(data, "MD5", made.md5)
    monkeypatch.setattr(data, "SHA256", made.sha256)
    for name in ("S8_DATA", "S8_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def pickles(pinned: MadeUp, tmp_path: Path) -> Path:
    """A copy of cifar-100-python/ to damage; its parent is the root."""
    return Path(shutil.copytree(pinned.pickles / "cifar-100-python", tmp_path / "root" / "cifar-100-python"))


@pytest.fixture
def parquet(pinned: MadeUp, tmp_path: Path) -> Path:
    """A copy of cifar100/ to damage; its parent is the root."""
    return Path(shutil.copytree(pinned.parquet / "cifar100", tmp_path / "root" / "cifar100"))


def refused(root: Path | None, *mentions: str) -> str:
    with pytest.raises(DataError) as caught:
        load_cifar100(root, download=False)
    message = str(caught.value)
    for mention in mentions:
        assert mention in message
    assert "\n" not in message
    return message


# --- the real data -----------------------------------------------------------------------------------------


def test_both_layouts_of_the_real_data_end_in_the_same_tensors(real_root: Path, tmp_path: Path) -> None:
    toronto = load_cifar100(real_root, download=False)
    assert (len(toronto.train), len(toronto.test)) == (50_000, 10_000)
    for split, file in ((toronto.train, TRAIN), (toronto.test, TEST)):
        assert split.labels.bincount().unique().numel() == 1
        assert split.coarse_labels.bincount().unique().numel() == 1
        table = hub_table(split.images.numpy(), split.labels.tolist(), split.coarse_labels.tolist())
        pq.write_table(table, tmp_path / file)
    hub = load_cifar100(tmp_path, download=False)
    assert hub.fingerprint() == toronto.fingerprint()
    assert torch.equal(hub.test.images, toronto.test.images)
    assert hub.train.images.is_contiguous()


def test_names_are_those_of_the_meta_file(real_root: Path) -> None:
    meta = pickle.loads((real_root / "cifar-100-python" / "meta").read_bytes(), encoding="latin1")
    assert list(data.CLASSES) == meta["fine_label_names"]
    assert list(data.SUPERCLASSES) == meta["coarse_label_names"]


# --- where it is looked for --------------------------------------------------------------------------------


def test_root_may_be_the_inner_folder_of_either_layout(pinned: MadeUp) -> None:
    roots = (pinned.pickles, pinned.pickles / "cifar-100-python", pinned.parquet, pinned.parquet / "cifar100")
    assert len({load_cifar100(root, download=False).fingerprint() for root in roots}) == 1


def test_root_goes_before_s8_data_and_s8_data_before_the_cache(
    pinned: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S8_CACHE", str(pinned.parquet))
    assert str(pinned.parquet) in load_cifar100().source
    monkeypatch.setenv("S8_DATA", str(pinned.pickles))
    assert str(pinned.pickles) in load_cifar100().source
    assert str(pinned.parquet) in load_cifar100(pinned.parquet).source


def test_s8_data_without_the_data_is_an_error_and_never_a_download(
    pinned: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S8_CACHE", str(pinned.pickles))
    for place in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setenv("S8_DATA", str(place))
        with pytest.raises(DataError, match=r"S8_DATA.*cifar-100-python"):
            load_cifar100(download=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300 + "/b", "nul\0", "file/below"])
def test_what_can_be_no_folder_is_refused_in_a_sentence_before_anything_is_written(
    pinned: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for where in ("root", "S8_DATA", "S8_CACHE"):
        if where != "root" and "\0" in name:
            continue  # no variable can hold it
        monkeypatch.delenv("S8_DATA", raising=False)
        if where != "root":
            monkeypatch.setenv(where, name)
        with pytest.raises(DataError) as caught:
            load_cifar100(name if where == "root" else None, download=True)
        assert len(str(caught.value)) < 700
        assert not data.at_hand()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_empty_root_and_an_empty_cache_are_errors_without_download(
    pinned: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(tmp_path, str(tmp_path), "cifar-100-python/{train,test,meta}", "cifar100/{train,test}-")
    monkeypatch.setenv("S8_CACHE", str(tmp_path / "cache"))
    refused(None, str(tmp_path / "cache"))


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_flipped_byte_or_a_missing_end_of_a_pickle_is_refused(pickles: Path) -> None:
    whole = (pickles / "train").read_bytes()
    for damaged in (whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], whole[:-100]):
        (pickles / "train").write_bytes(damaged)
        refused(pickles.parent, str(pickles / "train"), data.MD5["train"], "delete it")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_missing_file_is_named(pickles: Path, name: str) -> None:
    (pickles / name).unlink()
    refused(pickles.parent, str(pickles / name), "missing")


class Trap:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_hostile_pickle_is_never_unpickled(pickles: Path, tmp_path: Path, name: str) -> None:
    (pickles / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    if name == "meta":  # only holds names, and is not opened
        load_cifar100(pickles.parent, download=False)
    else:
        refused(pickles.parent, str(pickles / name))
    assert not (tmp_path / "sprung").exists()
    pickle.loads((pickles / name).read_bytes())
    assert (tmp_path / "sprung").exists()  # it was a trap


def image_7(content: bytes | None) -> Callable[[list[dict]], None]:
    return lambda rows: rows[7].update(img={"bytes": content, "path": None})


def every(**values: object) -> Callable[[list[dict]], None]:
    return lambda rows: [row.update(values) for row in rows] and None


DAMAGE: dict[str, tuple[Callable[[list[dict]], object], str]] = {
    "an image of 28x28": (image_7(png(np.zeros((3, 28, 28), np.uint8))), "row 7"),
    "an image that is no PNG": (image_7(b"GIF89a"), "row 7"),
    "an image that is missing": (image_7(None), "row 7"),
    "text for bytes": (every(img={"bytes": "text", "path": None}), "row 0"),
    "text for images": (every(img="cat"), "does not hold its part"),
    "text for labels": (every(fine_label="cat"), "does not hold its part"),
    "fractions for labels": (every(fine_label=0.5), "does not hold its part"),
    "a column that is missing": (lambda rows: [row.pop("coarse_label") for row in rows], "coarse_label"),
    "a label that is missing": (lambda rows: rows[3].update(fine_label=None), "sha256"),
    "a label of another": (lambda rows: rows[0].update(fine_label=rows[1]["fine_label"]), "sha256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_parquet_file_of_other_content_is_refused(parquet: Path, damage: str) -> None:
    change, mention = DAMAGE[damage]
    rows = pq.read_table(parquet / TEST).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), parquet / TEST)
    refused(parquet.parent, str(parquet / TEST), mention, "delete it")


def test_a_parquet_file_that_is_cut_or_empty_is_refused(parquet: Path) -> None:
    whole = (parquet / TRAIN).read_bytes()
    pq.write_table(pq.read_table(parquet / TRAIN).slice(0, 0), parquet / TEST)
    for content in (whole[:-50], whole[:4], b"", (parquet / TEST).read_bytes()):
        (parquet / TRAIN).write_bytes(content)
        refused(parquet.parent, str(parquet / TRAIN), "delete it")


def test_a_png_that_claims_more_pixels_than_pillow_unpacks_is_refused(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    refused(parquet.parent, str(parquet / TRAIN), "row 0", "bomb")


def test_half_of_the_parquet_layout_names_the_other_half(parquet: Path) -> None:
    (parquet / TEST).unlink()
    refused(parquet.parent, str(parquet / TEST), "missing")


# --- download ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(made: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Loader]]:
    with serve(made) as server, Loader(made, server.url, tmp_path_factory.mktemp("hf")) as loader:
        yield server, loader


@pytest.fixture
def server(running: tuple[Server, Loader]) -> Server:
    server = running[0]
    server.mode = {"hub": "ok", "toronto": "ok"}
    server.requests.clear()
    server.holding.clear()
    server.release.clear()
    return server


@pytest.fixture
def loader(running: tuple[Server, Loader]) -> Loader:
    return running[1]


def visible(folder: Path) -> list[str]:
    """Every file under its final name."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(f) for f in files if not f.parts[0].startswith("."))


@pytest.mark.skipif(
    tuple(map(int, huggingface_hub.__version__.split(".")[:2])) < (1, 20),
    reason="before 1.20 the Hub's client takes up no connection that breaks: Toronto follows at once",
)
def test_the_hub_comes_first_and_a_connection_that_breaks_is_taken_up_again(
    server: Server, loader: Loader, made: MadeUp, tmp_path: Path
) -> None:
    server.mode["hub"] = "cut"
    outcome = loader.load(tmp_path / "new" / "folder")
    assert outcome.sha256 == list(made.sha256.values())
    assert "parquet" in outcome.source
    assert visible(tmp_path / "new" / "folder") == [f"cifar100/{TEST}", f"cifar100/{TRAIN}"]
    assert [("range" in r.headers) for r in server.gets(TRAIN)] == [False, True]
    assert not any("authorization" in r.headers for r in server.requests)  # an expired token cannot hurt
    before = len(server.requests)
    assert loader.load(tmp_path / "new" / "folder").sha256 == outcome.sha256
    assert len(server.requests) == before


def test_a_download_killed_in_mid_file_leaves_no_half_file_and_the_next_completes(
    server: Server, loader: Loader, made: MadeUp, tmp_path: Path
) -> None:
    server.mode["hub"] = "held"
    with Loader(made, server.url, tmp_path / "hf") as victim:
        victim.start(tmp_path / "data")
        assert server.holding.wait(60)
    assert visible(tmp_path / "data") == []
    server.mode["hub"] = "ok"
    assert loader.load(tmp_path / "data").sha256 == list(made.sha256.values())


def test_two_processes_download_once(server: Server, loader: Loader, made: MadeUp, tmp_path: Path) -> None:
    server.mode["hub"] = "held"
    loader.start(tmp_path / "data")
    assert server.holding.wait(60)
    with Loader(made, server.url, tmp_path / "hf") as second:
        second.start(tmp_path / "data")
        assert "waiting" in second.line()
        server.release.set()
        outcomes = loader.outcome(), second.outcome()
    assert [o.sha256 for o in outcomes] == [list(made.sha256.values())] * 2
    assert [len(server.gets(name)) for name in (TRAIN, TEST)] == [1, 1]
    asked = [r for r in server.requests if "parquet" in r.path]
    assert len(asked) == 4  # a HEAD and a GET for each file: the second process asked for nothing


def test_toronto_follows_the_hub_and_leaves_nothing_when_it_is_cut(
    server: Server, loader: Loader, made: MadeUp, tmp_path: Path
) -> None:
    server.mode = {"hub": "down", "toronto": "cut"}
    failed = loader.load(tmp_path)
    assert "503" in failed.error
    assert "corrupted" in failed.error
    assert "S8_DATA" in failed.error
    assert "\n" not in failed.error
    assert failed.printed.count("503 Service") == 1  # said once when the second is tried, and in the error
    assert "corrupted" not in failed.printed
    assert visible(tmp_path) == []
    assert not (tmp_path / ".toronto").exists()

    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "meta").write_bytes(b"left by a copy that somebody has deleted a file of")
    server.mode = {"hub": "broken", "toronto": "ok"}  # the Hub answers, but its file breaks off again and again
    outcome = loader.load(tmp_path)
    assert outcome.sha256 == list(made.sha256.values())
    assert "did not come from the Hugging Face Hub" in outcome.printed
    assert visible(tmp_path) == [f"cifar-100-python/{name}" for name in ("meta", "test", "train")]
    assert not (tmp_path / ".toronto").exists()
    assert outcome.timeout is None  # torchvision's download had one; nobody else keeps it


def test_with_no_network_one_sentence_says_what_to_do(made: MadeUp, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, never listening
        with Loader(made, f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path / "hf") as loader:
            error = loader.load(tmp_path / "data").error
    hidden = "client has been closed"  # what the Hub's client 1.11 makes of a connection that is refused
    assert error.count("refused") + error.count(hidden) == 2
    assert str(tmp_path / "data") in error
    assert "S8_DATA" in error
    assert visible(tmp_path / "data") == []


# --- what a split and a dataset refuse ---------------------------------------------------------------------


def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


GOOD = {"images": zeros(8, 3, 32, 32)} | dict.fromkeys(("labels", "coarse_labels"), zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", zeros(8, 3, 32, 32, dtype=torch.float32)),
        ("images", zeros(8, 32, 32, 3)),  # channels last
        ("images", zeros(8, 1, 32, 32)),  # grey
        ("images", zeros(8, 32, 32)),
        ("images", zeros(8, 3, 64, 64)),
        ("images", zeros(3, 32, 32)),
        ("images", zeros(0, 3, 32, 32)),
        ("images", torch.tensor(0, dtype=torch.uint8)),
        ("images", np.zeros((8, 3, 32, 32), np.uint8)),
        ("images", None),
        ("labels", GOOD["labels"][:7]),
        ("labels", GOOD["labels"].int()),
        ("labels", [0] * 8),
        ("coarse_labels", GOOD["labels"].repeat(2)),
        ("coarse_labels", GOOD["labels"].float()),
        ("coarse_labels", zeros(8, 20, dtype=torch.int64)),
    ],
)
def test_a_split_of_another_kind_is_refused_in_a_sentence(name: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"^{name} is [^\n]*, not torch.u?int[^\n]*: a split holds RGB[^\n]*$"):
        Split(**GOOD | {name: value})


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("name", "names"), [("labels", 100), ("coarse_labels", 20)])
def test_a_label_without_a_name_is_refused(tiny: Cifar100, part: str, name: str, names: int) -> None:
    split = getattr(tiny, part)
    for label in (-1, names):
        labels = getattr(split, name).clone()
        labels[5] = label
        with pytest.raises(DataError, match=rf"^{part}\.{name} go from .*{names} names need 0 to {names - 1}\.$"):
            dataclasses.replace(tiny, **{part: dataclasses.replace(split, **{name: labels})})


@pytest.mark.parametrize("names", [("x",) * 100, tuple(range(100))])
@pytest.mark.parametrize("kind", ["classes", "superclasses"])
def test_names_of_classes_are_text_and_all_different(tiny: Cifar100, kind: str, names: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match=r"names that are text and all different"):
        dataclasses.replace(tiny, **{kind: names})


def test_the_pinned_fingerprint_is_that_of_the_data_that_loading_insists_on(
    tiny: Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = dataclasses.replace(tiny, classes=data.CLASSES, superclasses=data.SUPERCLASSES)
    monkeypatch.setattr(Split, "sha256", lambda split: data.SHA256["train" if split is named.train else "test"])
    assert named.fingerprint() == data.CIFAR100_FINGERPRINT


# --- splits ------------------------------------------------------------------------------------------------


def numbered(labels: torch.Tensor) -> Split:
    """Images that carry their own index in the first pixels."""
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(len(labels)) % 256, torch.arange(len(labels)) // 256
    return Split(images, labels, labels // 5)


def indices(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].long() + 256 * split.images[:, 0, 0, 1].long()).tolist()


@pytest.mark.parametrize("n", [1, 99, 100, 250, 1234, 1999])
def test_holdout_is_stratified_disjoint_and_complete(n: int) -> None:
    split = numbered(torch.arange(2000) % 100)
    rest, held = holdout(split, n, seed=0)
    assert len(held) == n
    assert sorted(indices(rest) + indices(held)) == list(range(2000))
    counts = held.labels.bincount(minlength=100)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(held.coarse_labels, held.labels // 5)
    assert indices(held) == sorted(indices(held))


def test_holdout_stays_even_while_classes_last() -> None:
    split = numbered(torch.tensor([0] * 60 + [1] * 5 + [2] * 35))
    first, second, third = holdout(split, 31, seed=0)[1].labels.bincount().tolist()
    assert (first, second, third) == (13, 5, 13)


def test_holdout_depends_on_the_seed_alone() -> None:
    split = numbered(torch.arange(1000) % 100)
    state = torch.get_rng_state()
    first, again, other = (indices(holdout(split, 150, seed)[1]) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [-1, 0, 300, 301, 1.5])
def test_holdout_of_nothing_or_everything_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"1 to 299 .* n={n}"):
        holdout(numbered(torch.arange(300) % 100), n, seed=0)


def test_subset_takes_images_and_labels_in_the_order_asked_for() -> None:
    part = numbered(torch.arange(300) % 100).subset(torch.tensor([250, 3]))
    assert indices(part) == [250, 3]
    assert part.labels.tolist() == [50, 3]
    assert part.coarse_labels.tolist() == [10, 0]
    with pytest.raises(DataError, match="at least one"):
        part.subset(torch.arange(0))


# --- synthetic ---------------------------------------------------------------------------------------------


def test_synthetic_data_is_balanced_and_coarse_is_a_function_of_fine() -> None:
    made_up = synthetic_cifar100(seed=0, train=500, test=200)
    for split, each in ((made_up.train, 5), (made_up.test, 2)):
        assert split.images.shape == (100 * each, 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert split.labels.bincount().tolist() == [each] * 100
        assert torch.equal(split.coarse_labels, split.labels // 5)
    assert len(set(made_up.classes)) == 100
    assert len(set(made_up.superclasses)) == 20
    seen = {image.numpy().tobytes() for image in made_up.train.images}
    assert not any(image.numpy().tobytes() in seen for image in made_up.test.images)


def test_synthetic_data_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (synthetic_cifar100(seed, train=200, test=100) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    longer = synthetic_cifar100(0, train=300, test=100)
    assert longer.test.sha256() == first.test.sha256()
    assert longer.fingerprint() != first.fingerprint()


def test_synthetic_classes_look_alike_within_and_differ_between() -> None:
    """Mean colour alone tells a class apart far better than chance, on images never seen."""
    made_up = synthetic_cifar100(seed=0, train=2000, test=500)
    colour = made_up.train.images.float().mean((2, 3))
    centres = torch.stack([colour[made_up.train.labels == c].mean(0) for c in range(100)])
    nearest = torch.cdist(made_up.test.images.float().mean((2, 3)), centres).argmin(1)
    assert (nearest == made_up.test.labels).float().mean() > 0.03


@pytest.mark.parametrize("sizes", [{"train": 0}, {"test": 0}])
def test_an_empty_synthetic_split_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(DataError, match="at least one image"):
        synthetic_cifar100(**sizes)
