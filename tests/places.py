"""The places that hold saves, alike for the tests: this disk, Google Drive, a Hub on loopback."""

from __future__ import annotations

from pathlib import Path

import s8lib as s8
from s8lib.hub_client import usable_token
from s8lib.run.copies import Copies
from s8lib.run.drive import MANIFESTS, DriveFolder
from s8lib.run.hub import HubRepo
from tests.hub_endpoints import Commit, File
from tests.local_hub import LocalHub
from tests.saves import Machine


class Disk:
    """A run trains in this folder; another process goes on with it there."""

    title = "run"

    def __init__(self, root: Path) -> None:
        self.folder = root / "run"

    def machine(self, recipe: s8.Recipe | None = None) -> Machine:
        """A training process that has nothing but what the place holds."""
        return Machine(self.folder, **({"recipe": recipe} if recipe else {}))

    def keep(self, machine: Machine) -> None:
        """Bring the machine's saves there."""

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes | None) -> None:
        """Change a file there; None removes it."""
        path = self.folder / name
        path.write_bytes(content) if content is not None else path.unlink()

    def manifests(self) -> tuple[str, ...]:
        return ("manifest.json",)

    def checkpoints(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob("checkpoints/*.pt"))


class Drive(Disk):
    """A run trains on a machine whose disk is lost, and is kept on a Drive."""

    title = "Google Drive"

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.machines = root, root / "MyDrive" / "run", 0
        self.folder.parent.mkdir()

    def machine(self, recipe: s8.Recipe | None = None) -> Machine:
        self.machines += 1
        copies = [Copies(DriveFolder(self.folder), wait=60)]
        return Machine(self.root / f"disk{self.machines}", copies, **({"recipe": recipe} if recipe else {}))

    def keep(self, machine: Machine) -> None:
        machine.run.sync()

    def manifests(self) -> tuple[str, ...]:
        return MANIFESTS


class Hub(Drive):
    """A run trains on a machine whose disk is lost, and is kept in a repository, on its branch to resume from."""

    title = "tester/net on the Hub"

    def __init__(self, root: Path, hub: LocalHub) -> None:
        super().__init__(root)
        self.hub = hub

    def machine(self, recipe: s8.Recipe | None = None) -> Machine:
        self.machines += 1
        place = HubRepo("tester/net", usable_token(), private=False)
        copies = [Copies(place, every=1000, wait=60, pause=0.0)]
        return Machine(self.root / f"disk{self.machines}", copies, **({"recipe": recipe} if recipe else {}))

    @property
    def commits(self) -> list[Commit]:
        return self.hub.endpoints.repos["tester/net"].branches["resume"]

    def read(self, name: str) -> bytes:
        return self.commits[-1].files[name.removeprefix("best/")].content

    def write(self, name: str, content: bytes | None) -> None:
        name, files = name.removeprefix("best/"), dict(self.commits[-1].files)
        old = files.pop(name)
        if content is not None:
            files[name] = File(content, old.lfs)
        self.commits.append(Commit("changed", files, self.commits[-1].oid))

    def manifests(self) -> tuple[str, ...]:
        return ("manifest.json",)

    def checkpoints(self) -> list[str]:
        return sorted(name for name in self.commits[-1].files if name.startswith("checkpoints/"))
