"""A Hub repository as a place for a run's saves: what one commit holds, and how it comes back.

One commit is one save: the best weights at its root, where `from_pretrained` looks, the newest checkpoint, and a
manifest of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, get_token

from s8lib.hub_client import HubError, ask, check_repo_id, hub_errors
from s8lib.run.place import Staged
from s8lib.run.save import CHECKPOINT, CONFIG, LOG, MANIFEST, Content, Manifest, RunError, differences, unseal

if TYPE_CHECKING:
    from s8lib.run.folder import RunFolder

CHECK_LIMIT = 30.0  # seconds that a look at the Hub may take
UPLOAD_LIMIT = 1800.0  # seconds after which an upload counts as hanging; 440 MB take that long at 2 Mbit/s
CARD = "README.md"
UNIMPORTANT = {".gitattributes", CARD}  # what a repository has when it is made
EXPORT = re.compile(r"[^/]+\.(onnx|pt2)")  # of the weights it came with


class HubRepo:
    """The place for a run's saves in a repository; see `place.Place`.

    Args:
        token: by default this machine's, if there is one.
        private: whether a new repository is private.
        revision: a branch or commit to read; by default the newest.
        overwrite: replace what is in the repository, if that is another run or none of ours.
    """

    required = False  # a run that is published can begin while the Hub is out of reach

    def __init__(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.repo_id, self.private, self.revision = check_repo_id(repo_id), private, revision
        self.overwrite = overwrite
        self.token = token or get_token()  # here, as Colab gives its secrets to the main thread only
        self.title = f"{repo_id} on the Hub"
        self.address = f"https://huggingface.co/{repo_id}"
        self.url = ""  # of the newest commit that was sent
        self.renewed_card: Callable[[str, str], str] = lambda theirs, ours: ours  # what becomes of the card there
        self._checked = False  # that the token may write there
        self._there: dict[str, Any] = {}  # the commit that is received, as `hub_client.read` describes it

    def check(self, stop: threading.Event | None = None) -> None:
        """See, once, that the token may write to the repository, which is made if need be; raises as `ask`."""
        if not self._checked:
            self._ask("check", CHECK_LIMIT, stop, private=self.private)
            self._checked = True

    def manifest(self) -> Manifest:
        """Of the newest commit; an empty one if it holds no run."""
        self._there = self._read(MANIFEST, "config.json", LOG, "recipe.json", "environment.json")
        contents = self._there["contents"]
        if MANIFEST not in contents:
            return Manifest()
        try:
            manifest = unseal(contents.pop(MANIFEST))
        except ValueError as error:
            raise RunError(
                f"{self.title}: its {MANIFEST} is not that of a run ({error}): use another repository or revision"
            ) from None
        unnamed = {  # by format 1
            CONFIG if name == "config.json" else name: Content(len(text), hashlib.sha256(text).hexdigest())
            for name, text in contents.items()
        }
        return dataclasses.replace(manifest, files=unnamed | manifest.files)

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Download a file of the commit whose manifest was read."""
        name, there, api = name.removeprefix("best/"), self._there, HfApi(token=self.token)
        if name not in there["held"]:
            return False
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arriving") as folder, hub_errors(self.title):
            os.replace(api.hf_hub_download(self.repo_id, name, revision=there["commit"], local_dir=folder), target)
        return True

    def look(self, new: Manifest) -> None:
        """Nobody takes a repository over: the Hub refuses a commit if someone else's came in between."""

    def claim(self, here: Manifest) -> None:
        """Refuse, before training, a repository that holds something else; another run `bring` has refused."""
        self.check()
        self._ours(self._read(MANIFEST))

    def send(self, save: Staged, stop: threading.Event) -> str:
        """One commit; what it takes the place of leaves the repository's head in the same commit."""
        self.check(stop)
        there = self._read(MANIFEST, CARD, stop=stop)
        if CARD in there["contents"] and CARD in save.unnamed:
            theirs, card = there["contents"][CARD].decode(errors="replace"), save.folder / CARD
            card.write_text(self.renewed_card(theirs, card.read_text(encoding="utf-8")), encoding="utf-8")
        if ours := self._ours(there):
            self._refuse_to_replace(ours, save.manifest)
        (save.folder / MANIFEST).write_bytes(save.manifest.seal())
        sha256 = {name: content.sha256 for name, content in save.manifest.files.items()}
        names = [*sha256, *save.unnamed, MANIFEST]
        commit = {
            "files": {n.removeprefix("best/"): (str(save.folder / n), sha256.get(n, "")) for n in names},
            "outdated": [n for n in there["held"] if ours and (CHECKPOINT.fullmatch(n) or EXPORT.fullmatch(n))],
            "message": save.message,
            "parent": there["commit"],
        }
        self.url = self._ask("send", UPLOAD_LIMIT, stop, **commit)["url"]
        return f"epoch {save.manifest.epoch} is on the Hub: {self.url}"

    def summary(self) -> str:
        return ""  # `send` has said it

    def missing(self, run: RunFolder, epoch: int) -> str:
        command = f"s8lib publish --run {shlex.quote(str(run.path))} --hub-repo {self.repo_id}"
        return f"epoch {epoch} is NOT on the Hub; send it with: {command}"

    def _ask(self, task: str, limit: float, stop: threading.Event | None, **job: Any) -> dict[str, Any]:
        return ask(task, limit, stop, token=self.token, repo_id=self.repo_id, **job)

    def _read(self, *names: str, stop: threading.Event | None = None) -> dict[str, Any]:
        there = self._ask("read", CHECK_LIMIT, stop, revision=self.revision, names=names)
        return there | {"contents": {name: text.encode("latin-1") for name, text in there["texts"].items()}}

    def _ours(self, there: dict[str, Any]) -> Manifest | None:
        """The manifest of the run that is there, None if there is none; raises if there is something else."""
        try:
            return unseal(there["contents"].get(MANIFEST, b""))
        except RunError:  # of a later s8lib
            raise
        except ValueError:  # none, or damaged
            foreign = sorted({*there["held"]} - UNIMPORTANT)
            if foreign and not self.overwrite:
                raise HubError(
                    f"{self.title} holds {len(foreign)} files that are no run of s8lib's, such as {foreign[0]}: "
                    "publish to another repository, or say overwrite"
                ) from None
            return None

    def _refuse_to_replace(self, there: Manifest, new: Manifest) -> None:
        what = differences(there.identity, new.identity)
        if what and not self.overwrite:
            raise HubError(f"it holds another run ({what}): publish to another repository, or say overwrite")
        if there.epoch > new.epoch and not what:
            raise RunError(
                f"it holds epoch {there.epoch} of this very run, and is not set back to an earlier one: go on "
                "from there in an empty run folder, or publish to another repository"
            )
