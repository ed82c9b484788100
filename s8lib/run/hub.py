"""A Hub repository as a place for a run's saves: what one commit holds, and how it comes back.

Two branches, each a whole save with a manifest. `main` has the best weights at its root, where `from_pretrained`
looks, and what people read. `resume` has what a run goes on from: the newest checkpoint, the same weights, and no
history, which would keep every checkpoint there ever was. It is written first, so that a break between the two
commits costs no epoch. The weights move once: the Hub takes a file that it holds without its bytes.
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
from s8lib.run.save import (
    CHECKPOINT,
    CONFIG,
    LOG,
    MANIFEST,
    WEIGHTS,
    Content,
    Manifest,
    RunError,
    differences,
    unseal,
)

if TYPE_CHECKING:
    from s8lib.run.folder import RunFolder

RESUME, MAIN = "resume", "main"
NEEDED = {WEIGHTS, CONFIG, LOG, "recipe.json", "environment.json", "report.json"}  # and a checkpoint: by a resume
CHECK_LIMIT = 30.0  # seconds that a look at the Hub may take
STILL_LIMIT = 300.0  # seconds without a byte moving, after which an upload counts as hanging
CARD = "README.md"
UNIMPORTANT = {".gitattributes", CARD}  # what a repository has when it is made
EXPORTS = "exports.json"  # what is known of the exports, as `publish.publisher` wrote it
EXPORT = re.compile(r"[^/]+\.(onnx|pt2)|exports\.json")  # of the weights it came with


class HubRepo:
    """The place for a run's saves in a repository; see `place.Place`.

    Args:
        token: by default this machine's, if there is one.
        private: whether a new repository is private.
        revision: a branch or commit to read; by default the newest.
        overwrite: replace what is in the repository, if that is another run or none of ours.

    Attributes:
        moved: bytes of the save under way, or of the last one, that have gone out.
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
        self.exports = b""  # EXPORTS on main, as of `claim`
        self._sent: Staged | None = None  # the save that `moved` is about
        self.moved, self._done = 0, list[str]()  # branches

    def check(self, stop: threading.Event | None = None) -> None:
        """See, once, that the token may write to the repository, which is made if need be; raises as `ask`."""
        if not self._checked:
            self._ask("check", CHECK_LIMIT, stop, private=self.private)
            self._checked = True

    def manifest(self) -> Manifest:
        """Of the newest save, what a resume needs; an empty one if there is no run."""
        there = self._read(MANIFEST, "config.json", LOG, "recipe.json", "environment.json")
        found = {revision: self._manifest(commit) for revision, commit in there.items()}
        last = [*found][-1]  # main, or the revision: before the other branch there was, it held the checkpoint
        revision = next((revision for revision, manifest in found.items() if manifest.checkpoints), last)
        self._there, manifest = there[revision], found[revision]
        what = differences(manifest.identity, found[last].identity)
        if what and not self.overwrite:
            raise RunError(
                f"{self.title}: its branches {RESUME} and {MAIN} hold different runs ({what}), as one that was to "
                "overwrite the other broke off there: name the revision that you mean, or say overwrite"
            )
        if manifest.best_epoch and not manifest.checkpoints and not self.overwrite:
            raise RunError(
                f"{self.title}: the best weights are there, of epoch {manifest.best_epoch}, but no manifest that "
                f"names a checkpoint to go on from: the branch {RESUME} is for that; to begin anew, say overwrite"
            )
        return manifest

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Download a file of the commit whose manifest was read."""
        name, there, api = _there(name), self._there, HfApi(token=self.token)
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
        there = self._read(MANIFEST, EXPORTS)
        try:
            for commit in there.values():
                self._ours(commit)
        except RunError as error:
            raise RunError(f"{self.title}: {error}") from None
        self.exports = there[MAIN]["contents"].get(EXPORTS, b"")

    def send(self, save: Staged, stop: threading.Event) -> str:
        """A commit on each branch; what it takes the place of leaves the branch's head in the same commit."""
        self.moved, self._done, self._sent = 0, [], save
        self.check(stop)
        there = self._read(MANIFEST, CARD, stop=stop)
        ours = {branch: self._ours(commit) or Manifest() for branch, commit in there.items()}
        for manifest in ours.values():
            self._refuse_to_replace(manifest, save.manifest)
        main, files, before = there[MAIN], save.manifest.files, ours[MAIN].files
        if CARD in main["contents"] and CARD in save.unnamed:
            theirs, card = main["contents"][CARD].decode(errors="replace"), save.folder / CARD
            card.write_text(self.renewed_card(theirs, card.read_text(encoding="utf-8")), encoding="utf-8")
        needed = {name: content for name, content in files.items() if _needed(name)}
        shown = {name: content for name, content in files.items() if not CHECKPOINT.fullmatch(name)}
        if before.get(WEIGHTS) == files.get(WEIGHTS):
            shown = {name: before[name] for name in before if EXPORT.fullmatch(name)} | shown
        resume = there.get(RESUME) or {**main, "new": True}
        # A new branch is a copy of main, of which nothing is to stay.
        copied = resume["commit"] == main["commit"]
        old = {*main["held"]} - {".gitattributes"} if copied else {*ours[RESUME].files}
        kept = self._commit(RESUME, needed, resume, old, stop)["kept"]
        self.url = self._commit(MAIN, shown, main, {*before}, stop)["url"]
        room = f"; checkpoints of before still take room there ({kept})" if kept else ""
        return f"epoch {save.manifest.epoch} is on the Hub: {self.url}{room}"

    def summary(self) -> str:
        return ""  # `send` has said it

    def missing(self, run: RunFolder, epoch: int) -> str:
        command = f"s8lib publish --run {shlex.quote(str(run.path))} --hub-repo {self.repo_id}"
        if not self.moved or not self._sent or self._sent.manifest.epoch != epoch:
            return f"epoch {epoch} is NOT on the Hub; send it with: {command}"
        sent = f"{self.moved / 1e6:.1f} MB of {self._sent.bytes / 1e6:.1f} went out"
        if RESUME in self._done:
            sent += f", and its checkpoint is there, on the branch {RESUME}"
        return f"epoch {epoch} is NOT on the Hub, though {sent}; send the rest with: {command}"

    def _ask(self, task: str, limit: float, stop: threading.Event | None, **job: Any) -> dict[str, Any]:
        return ask(task, limit, stop, token=self.token, repo_id=self.repo_id, **job)

    def _read(self, *names: str, stop: threading.Event | None = None) -> dict[str, dict[str, Any]]:
        revisions = [self.revision] if self.revision else [RESUME, MAIN]
        there = self._ask("read", CHECK_LIMIT, stop, revisions=revisions, names=names)
        for commit in there.values():
            commit["contents"] = {name: text.encode("latin-1") for name, text in commit.pop("texts").items()}
        return there

    def _manifest(self, there: dict[str, Any]) -> Manifest:
        """Of the save in a commit, as far as a resume needs it."""
        contents = there["contents"]
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
        files = {name: content for name, content in (unnamed | manifest.files).items() if _needed(name)}
        return dataclasses.replace(manifest, files=files)

    def _commit(
        self, branch: str, files: dict[str, Content], there: dict[str, Any], old: set[str], stop: threading.Event
    ) -> dict[str, Any]:
        """Commit the save under way, as far as `branch` is to have it; of `files`, those not staged are there."""
        assert self._sent
        folder, moved = self._sent.folder, self.moved
        (folder / MANIFEST).write_bytes(dataclasses.replace(self._sent.manifest, files=files).seal())
        sha256 = {name: files[name].sha256 for name in files if name in self._sent.manifest.files}
        names = [*sha256, *(self._sent.unnamed if branch == MAIN else ()), MANIFEST]
        gone = {_there(name) for name in old} - {_there(name) for name in (*files, *names)}
        commit = {
            "files": {_there(name): (str(folder / name), sha256.get(name, "")) for name in names},
            "outdated": sorted(gone & {*there["held"]}),
            **{"new": "new" in there, "squash": branch == RESUME, "revision": branch},
            **{"parent_commit": there["commit"], "commit_message": self._sent.message},
        }

        def hear(more: int) -> None:
            self.moved = moved + more

        answer = self._ask("send", STILL_LIMIT, stop, hear=hear, **commit)
        self._done.append(branch)
        return answer

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
                    f"{self.title} holds files that are no run of s8lib's, such as {foreign[0]}: "
                    "publish to another repository, or say overwrite"
                ) from None
            return None

    def _refuse_to_replace(self, there: Manifest, new: Manifest) -> None:
        what = differences(there.identity, new.identity)
        if what and not self.overwrite:
            raise HubError(f"it holds another run ({what}): publish to another repository, or say overwrite")
        # Where the checkpoint is gone with its branch, overwrite begins anew.
        ahead = there.epoch or (0 if self.overwrite else there.best_epoch or 0)
        if ahead > new.epoch and not what:
            raise RunError(
                f"it holds epoch {ahead} of this very run, and is not set back to an earlier one: go on "
                "from there in an empty run folder, or publish to another repository"
            )


def _needed(name: str) -> bool:
    return name in NEEDED or CHECKPOINT.fullmatch(name) is not None


def _there(name: str) -> str:
    """A file's name in the repository: `from_pretrained` looks for the best weights at its root."""
    return name.removeprefix("best/")
