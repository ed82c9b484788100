"""A Hub repository as a place for a run's saves: what one commit holds, and how it comes back.

Two branches, each a whole save with a manifest. `main` has the best weights at its root, where `from_pretrained`
looks, and what people read. `resume` has what a run goes on from: the newest checkpoint, the same weights, and no
history, which would keep every checkpoint there ever was. It is written first, so that a break between the two
commits costs no epoch. The weights move once: the Hub takes a file that it holds without its bytes.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token

from s8lib import hub_client
from s8lib.hub_client import Head, HubError, check_repo_id, hub_errors
from s8lib.run.place import Place, Sending
from s8lib.run.save import CARD, MANIFEST, WEIGHTS, Content, Manifest, RunError, differences, refuse_another

RESUME, MAIN = "resume", "main"
NEEDED = re.compile(r"best/.*|checkpoints/.*|epoch_log\.csv|(recipe|environment|report)\.json")  # by a resume
CHECK_LIMIT = 30.0  # seconds that a look at the Hub may take
STILL_LIMIT = 300.0  # seconds without a byte moving, after which an upload counts as hanging
UNIMPORTANT = {".gitattributes", CARD}  # what a repository has when it is made
EXPORTS = "exports.json"  # what is known of the exports, as `publish.publisher` wrote it
EXPORT = re.compile(r"[^/]+\.(onnx|pt2)|exports\.json")  # of the weights it came with


class HubRepo(Place):
    """The place for a run's saves in a repository; see `place.Place`.

    Args:
        token: by default this machine's, if there is one.
        private: whether a new repository is private.
        revision: a branch or commit to read; by default the newest.
        overwrite: replace what is in the repository, if that is another run or none of ours.
    """

    def __init__(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.repo_id, self.private, self.overwrite = check_repo_id(repo_id), private, overwrite
        self.revisions = [revision] if revision else [RESUME, MAIN]
        self.token = token or get_token()  # here, as Colab gives its secrets to the main thread only
        self._ask = partial(hub_client.ask, token=self.token, repo_id=repo_id)
        self.title = f"{repo_id} on the Hub"
        self.address = f"https://huggingface.co/{repo_id}"
        self.url = ""  # of the newest commit that was sent
        self.renewed_card: Callable[[str, str], str] = lambda theirs, ours: ours  # what becomes of the card there
        self._checked = False  # that the token may write there
        self._there: Head  # the commit that is received
        self.exports = b""  # EXPORTS on main, as of `claim`
        self._out = 0, ""  # the epoch under way, or the last one, and how much of it has gone out

    def check(self, stop: threading.Event | None = None) -> None:
        """See, once, that the token may write to the repository, which is made if need be; raises as `ask`."""
        if not self._checked:
            self._ask(hub_client.check, CHECK_LIMIT, stop, private=self.private)
            self._checked = True

    def manifest(self) -> Manifest:
        """Of the newest save, what a resume needs; an empty one if there is no run."""
        there = self._read(MANIFEST)
        found = {revision: self._manifest(head) for revision, head in there.items()}
        last = [*found][-1]  # main, or the revision: before the other branch there was, it held the checkpoint
        revision = next((revision for revision, manifest in found.items() if manifest.checkpoints), last)
        self._there, manifest = there[revision], found[revision]
        problem, what = "", differences(manifest.identity, found[last].identity)
        if what:  # as one that was to overwrite the other broke off
            problem = f"its branches {RESUME} and {MAIN} hold different runs ({what})"
        elif manifest.best_epoch and not manifest.checkpoints:
            problem = f"weights are there, of epoch {manifest.best_epoch}, but no manifest that names a checkpoint"
        if problem and not self.overwrite:
            raise RunError(f"{self.title}: {problem}: name the revision or, to begin anew, say overwrite")
        return manifest

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Download a file of the commit whose manifest was read."""
        name, there, api = _there(name), self._there, HfApi(token=self.token)
        if name not in there.held:
            return False
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arriving") as folder, hub_errors(self.title):
            os.replace(api.hf_hub_download(self.repo_id, name, revision=there.commit, local_dir=folder), target)
        return True

    def claim(self, here: Manifest) -> None:
        """Refuse, before training, a repository that holds something else; another run `bring` has refused."""
        self.check()
        there = self._read(MANIFEST, EXPORTS)
        for head in there.values():
            self._ours(head)
        self.exports = there[MAIN].contents.get(EXPORTS, b"")

    def send(self, save: Sending) -> str:
        """A commit on each branch; what it takes the place of leaves the branch's head in the same commit."""
        save.looked.set()  # nobody takes a repository over: it refuses a commit if someone else's came in between
        self._out = 0, ""
        self.check(save.stop)
        there = self._read(MANIFEST, CARD, stop=save.stop)
        ours = {branch: self._ours(head) for branch, head in there.items()}
        for manifest in ours.values():
            self._refuse_to_replace(manifest, save.manifest)
        main, files, before, card = there[MAIN], save.manifest.files, ours[MAIN].files, save.folder / CARD
        if CARD in main.contents and card.exists():
            theirs = main.contents[CARD].decode(errors="replace")
            card.write_text(self.renewed_card(theirs, card.read_text(encoding="utf-8")), encoding="utf-8")
        needed = {name: content for name, content in files.items() if NEEDED.fullmatch(name)}
        shown = {name: content for name, content in files.items() if not name.startswith("checkpoints/")}
        if before.get(WEIGHTS) == files.get(WEIGHTS):
            shown = {name: before[name] for name in before if EXPORT.fullmatch(name)} | shown
        resume = there.get(RESUME, main)
        # A new branch is a copy of main, of which nothing is to stay.
        old = main.held - {".gitattributes"} if resume.commit == main.commit else ours[RESUME].files.keys()
        _, kept = self._commit(save, RESUME, needed, resume, old, new=RESUME not in there)
        self.url, _ = self._commit(save, MAIN, shown, main, before.keys())
        room = f"; checkpoints of before still take room there ({kept})" if kept else ""
        return f"epoch {save.manifest.epoch} is on the Hub: {self.url}{room}"

    def missing(self, path: Path, epoch: int) -> str:
        command = f"s8lib publish --run {shlex.quote(str(path))} --hub-repo {self.repo_id}"
        under_way, went_out = self._out
        though = f", though {went_out}" if under_way == epoch else ""
        return f"epoch {epoch} is NOT on the Hub{though}; send it with: {command}"

    def _read(self, *names: str, stop: threading.Event | None = None) -> dict[str, Head]:
        return self._ask(hub_client.read, CHECK_LIMIT, stop, revisions=self.revisions, names=names)

    def _manifest(self, head: Head) -> Manifest:
        """Of the save in a commit, as far as a resume needs it."""
        try:
            manifest = Manifest.unseal(head.contents[MANIFEST]) if MANIFEST in head.contents else Manifest()
        except ValueError as error:
            raise RunError(
                f"{self.title}: its {MANIFEST} is not that of a run ({error}): use another repository or revision"
            ) from None
        needed = {name: content for name, content in manifest.files.items() if NEEDED.fullmatch(name)}
        return dataclasses.replace(manifest, files=needed)

    def _commit(
        self, save: Sending, branch: str, files: dict[str, Content], head: Head, old: Set[str], new: bool = False
    ) -> tuple[str, str]:
        """Commit `save`, as far as `branch` is to have it; of `files`, those not staged are there."""
        (save.folder / MANIFEST).write_bytes(dataclasses.replace(save.manifest, files=files).seal())
        sha256 = {name: files[name].sha256 for name in files if name in save.manifest.files}
        names = [*sha256, MANIFEST, *([CARD] if branch == MAIN and (save.folder / CARD).exists() else [])]
        gone = {_there(name) for name in old} - {_there(name) for name in (*files, *names)}
        commit = {"revision": branch, "parent_commit": head.commit, "commit_message": save.message}
        moved = save.moved

        def hear(more: int) -> None:
            save.moved = moved + more
            if save.moved:
                arrived = f", and its checkpoint is there, on the branch {RESUME}" if branch == MAIN else ""
                out = f"{save.moved / 1e6:.1f} MB of {save.bytes / 1e6:.1f} went out{arrived}"
                self._out = save.manifest.epoch, out

        hear(0)
        return self._ask(
            hub_client.send,
            STILL_LIMIT,
            save.stop,
            hear=hear,
            files={_there(name): (str(save.folder / name), sha256.get(name, "")) for name in names},
            outdated=sorted(gone & head.held),
            new=new,
            squash=branch == RESUME,
            **commit,
        )

    def _ours(self, head: Head) -> Manifest:
        """The manifest of the run that is there, empty if there is none; raises if there is something else."""
        try:
            return Manifest.unseal(head.contents.get(MANIFEST, b""))
        except RunError as error:  # of a later s8lib
            raise RunError(f"{self.title}: {error}") from None
        except ValueError:  # none, or damaged
            foreign = sorted(head.held - UNIMPORTANT)
            if foreign and not self.overwrite:
                raise HubError(
                    f"{self.title} holds files that are no run of s8lib's, such as {foreign[0]}: "
                    "publish to another repository, or say overwrite"
                ) from None
            return Manifest()

    def _refuse_to_replace(self, there: Manifest, new: Manifest) -> None:
        if not self.overwrite:
            refuse_another(there.identity, new.identity, "it")
        # Where the checkpoint is gone with its branch, overwrite begins anew.
        ahead = there.epoch or (0 if self.overwrite else there.best_epoch or 0)
        if ahead > new.epoch and not differences(there.identity, new.identity):
            raise RunError(
                f"it holds epoch {ahead} of this very run, and is not set back to an earlier one: go on "
                "from there in an empty run folder, or publish to another repository"
            )


def _there(name: str) -> str:
    """A file's name in the repository: `from_pretrained` looks for the best weights at its root."""
    return name.removeprefix("best/")
