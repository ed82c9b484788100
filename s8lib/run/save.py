"""A save: a set of files with a manifest. Until the manifest names its files, a save never happened.

A file lies under its name or, while another file of that name is still needed, in one more place (`places`). Size
and sha256 in the manifest tell which of them is the one.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic_core
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from s8lib.recipe import Recipe
from s8lib.validation import BadInput, check

# Of the manifest; 1, without a number, had no sha256 of its own and named fewer files. On the Hub a save of format
# 2 was on one branch: who knows no other would find no checkpoint on `main`, and start over.
FORMAT = 3
KEEP = 5  # checkpoints
PARTIAL = ".partial"  # ends the name of a file that is being written
FULL = (errno.ENOSPC, errno.EDQUOT)
MANIFEST, LOG = "manifest.json", "epoch_log.csv"
NEW, OUTGOING = ".new", ".outgoing"  # folders of a run folder: for files that come, and for copies on their way
WEIGHTS, CONFIG = "best/model.safetensors", "best/config.json"
CARD = "README.md"  # comes with a copy for the Hub; no manifest answers for it, as it is changed on its way
CHECKPOINT = re.compile(r"checkpoints/epoch_([0-9]+)\.pt")


class RunError(BadInput):
    """A run that cannot be used as asked; the message says what to do. The run is unchanged."""


class RunFault(RuntimeError):
    """What ended a run in the middle; the message says why, and from where the same command goes on."""


@dataclass(frozen=True)
class Content:
    """What a manifest knows of a file."""

    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


FILE_NAME = r"[\w-][\w.-]*"
Name = Annotated[str, Field(pattern=f"^{FILE_NAME}(/{FILE_NAME})?$", max_length=200)]  # stays in its folder


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Manifest:
    """What a complete save consists of.

    Attributes:
        files: by their names, such as `checkpoints/epoch_007.pt` or `best/config.json`.
        best_epoch: the epoch of the weights in `best/`.
        identity: the recipe, the model and the data of the run; None before the first save.
        writer: the training process that wrote it last.
        sequence: how often it has been written.
    """

    files: dict[Name, Content] = dataclasses.field(default_factory=dict)
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    identity: dict[str, dict[str, Any]] | None = None
    writer: str = ""
    sequence: Annotated[int, Field(ge=0)] = 0

    @property
    def checkpoints(self) -> dict[int, str]:
        """Names of the checkpoints by their epochs, the newest first."""
        epochs = {int(match[1]): name for name in self.files if (match := CHECKPOINT.fullmatch(name))}
        return dict(sorted(epochs.items(), reverse=True))

    @property
    def epoch(self) -> int:
        """The epoch of the newest checkpoint; 0 if there is none."""
        return next(iter(self.checkpoints), 0)

    def best(self) -> dict[str, Content]:
        """The files of the best weights, those that are there."""
        return {name: self.files[name] for name in (WEIGHTS, CONFIG) if name in self.files}

    def seal(self) -> bytes:
        """The text of the file, with a sha256 that tells when a byte of it is missing or changed."""
        files = dict(sorted(self.files.items()))  # so that the same save is the same text
        return _sealed({"format": FORMAT, **dataclasses.asdict(dataclasses.replace(self, files=files))})

    @classmethod
    def unseal(cls, text: bytes) -> "Manifest":
        """The manifest in a file.

        Raises:
            RunError: a later version of s8lib has written it.
            ValueError: it is damaged, or no manifest.
        """
        values = pydantic_core.from_json(text)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        version = values.get("format", 1)
        if isinstance(version, int) and version > FORMAT:
            raise RunError(f"it was saved by a later version of s8lib (format {version}): update s8lib")
        seal = values.pop("sha256", None)
        if (seal is not None or version != 1) and _sealed(values) != text:
            raise ValueError("a part of it is missing or changed")
        values = _from_format_1(values) if version == 1 else values
        return check(cls, json.dumps(values).encode(), ValueError)


def _sealed(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, indent=2)
    return json.dumps({**values, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=2).encode()


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """The values of format 2 in a manifest of the version before, from a disk, Drive or the Hub."""
    try:
        best = values["best"] or {}
        entries = {f"checkpoints/{name}": entry for name, entry in values["checkpoints"].items()}
        entries |= {WEIGHTS: best, CONFIG: best.get("config")} | values.get("files", {})
        known = {"best_epoch": best.get("epoch"), "identity": values.get("identity")}
        files = {name: {k: entry[k] for k in ("bytes", "sha256")} for name, entry in entries.items() if entry}
        return {"files": files, **known, "sequence": values.get("sequence", 0)}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no manifest of a run ({type(error).__name__}: {error})") from None


def identity_of(
    recipe: Recipe, model: Mapping[str, Any], data_sha256: str, holdout: int
) -> dict[str, dict[str, Any]]:
    """What two runs must share for one to go on with the other's save; primitives only."""
    return {"recipe": recipe.to_dict(), "model": dict(model), "data": {"sha256": data_sha256, "holdout": holdout}}


def differences(there: Mapping[str, Any] | None, here: Mapping[str, Any] | None) -> str:
    """How the identities of two runs differ, as a list in words; "" if they are one run, or one is not known.

    A recipe's name is no difference. A field that a recipe lacks had its default when that recipe was trained.
    """
    if there is None or here is None:
        return ""
    usual = {"recipe": Recipe().to_dict()}
    one, other = ({part: usual.get(part, {}) | values[part] for part in values} for values in (there, here))
    return "; ".join(
        f"{part} {key} is {one[part].get(key)!r} there and {other[part].get(key)!r} here"
        for part in sorted(one.keys() & other.keys())
        for key in sorted(one[part].keys() | other[part].keys())
        if one[part].get(key) != other[part].get(key) and (part, key) != ("recipe", "name")
    )


def refuse_another(there: Mapping[str, Any] | None, here: Mapping[str, Any] | None, where: object) -> None:
    """Raise RunError if the identity `there` is that of another run than `here`."""
    if differing := differences(there, here):
        raise RunError(
            f"{where} holds another run: {differing}. Use those values to go on with it, or another folder or "
            "repository for this one; on the Hub, overwrite replaces it"
        )


def places(name: str) -> list[str]:
    """Where a file of a save may lie: in its place, among the new ones, or in `best.new/` as on Drive."""
    return [name, f"{NEW}/{name}"] + ([f"best.new/{name[5:]}"] if name.startswith("best/") else [])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place, on disk for good, if the block succeeds."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, on disk for good."""
    folder = path.is_dir()
    # Windows and some network mounts cannot sync a folder; its files are safe.
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():
        number = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def content_of(path: Path) -> Content:
    """Size and sha256 of a file."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Content(file.tell(), sha256)


def holds(path: Path, content: Content) -> bool:
    """Whether `path` is the file that a manifest describes."""
    return path.is_file() and path.stat().st_size == content.bytes and content_of(path) == content
