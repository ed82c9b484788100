"""A Hub repository as a place for a run's saves: what one commit holds, and how it comes back.

Two branches, each a whole save with a manifest. `main` has the best weights at its root, where `from_pretrained`
looks, and what people read. `resume` has what a run goes on from: the newest checkpoint, the same weights, and no
history, which would keep every checkpoint there ever was. It is written first, so that a break between the two
commits costs no epoch. The weights move once: the Hub takes a file that it holds without its bytes.
"""

import dataclasses
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token

from s8lib import hub_client
from s8lib.hub_client import Head, HubError, OutOfReach, check_repo_id, hub_errors
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
        private: whether a new repository is private; None if it is only read, and has to be there.
        revision: a branch or commit to read; by default the newest.
        overwrite: replace what is in the repository, if that is another run or none of ours.
    """

    def __init__(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
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
        self.exports = b""  # EXPORTS on main, as of `claim`
        self._there: Head  # the commit that is received
        self._out = ""  # how much of the newest save that was begun has gone out

    def manifest(self) -> Manifest:
        """Of the newest save, what a resume needs; an empty one if there is no run."""
        there = [*self._look().values()]
        # The last is main, or the revision: before the other branch there was, it held the checkpoint.
        self._there, manifest = next((found for found in there if found[1].checkpoints), there[-1])
        if manifest.best_epoch and not manifest.checkpoints and not self.overwrite:
            raise RunError(
                f"{self.title}: weights are there, of epoch {manifest.best_epoch}, but no manifest that names a "
                "checkpoint: name the revision or, to begin anew, say overwrite"
            )
        return dataclasses.replace(manifest, files=_needed(manifest.files))

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Download a file of the commit whose manifest was read."""
        name, there, api = _there(name), self._there, HfApi(token=self.token)
        if name not in there.held:
            return False
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".arriving") as folder,
            hub_errors(self.title),
            hub_client.without_xet(),
        ):
            os.replace(api.hf_hub_download(self.repo_id, name, revision=there.commit, local_dir=folder), target)
        return True

    def claim(self, here: Manifest) -> str:
        """See that `here` may be saved there: by this token, in the place of what is there."""
        self.exports = self._look(here)[MAIN][0].contents.get(EXPORTS, b"")
        return ""

    def send(self, save: Sending) -> str:
        """A commit on each branch; what it takes the place of leaves the branch's head in the same commit."""
        save.looked.set()  # nobody takes a repository over: it refuses a commit if someone else's came in between
        self._out = ""
        there = self._look(save.manifest, save.stop)
        if not there[MAIN][0].commit:  # only now, as whoever begins a run may be refused before its first save
            self._ask(HfApi.create_repo, CHECK_LIMIT, save.stop, private=self.private, exist_ok=True)
            there = self._look(save.manifest, save.stop)
        for _, found in there.values():
            # Where the checkpoint is gone with its branch, overwrite begins anew.
            ahead = found.epoch or (0 if self.overwrite else found.best_epoch or 0)
            if ahead > save.manifest.epoch and not differences(found.identity, save.manifest.identity):
                raise RunError(
                    f"it holds epoch {ahead} of this very run, and is not set back to an earlier one: go on from "
                    "there in an empty run folder, or publish to another repository"
                )
        (main, before), files, card = there[MAIN], save.manifest.files, save.folder / CARD
        if CARD in main.contents and card.exists():
            theirs = main.contents[CARD].decode(errors="replace")
            card.write_text(self.renewed_card(theirs, card.read_text(encoding="utf-8")), encoding="utf-8")
        shown = {name: content for name, content in files.items() if not name.startswith("checkpoints/")}
        if before.files.get(WEIGHTS) == files.get(WEIGHTS):
            shown = {name: before.files[name] for name in before.files if EXPORT.fullmatch(name)} | shown
        ask = partial(self._ask, limit=CHECK_LIMIT, stop=save.stop, branch=RESUME)
        if RESUME not in there:
            ask(HfApi.create_branch, revision=main.commit)
        resume, listed = there.get(RESUME, there[MAIN])
        # A new branch is a copy of main, of which nothing is to stay.
        old = main.held - {".gitattributes"} if resume.commit == main.commit else listed.files
        self._commit(save, RESUME, _needed(files), resume, old)
        self.url, room = self._commit(save, MAIN, shown, main, before.files), ""
        try:
            ask(HfApi.super_squash_history, commit_message=save.message)
        except (HubError, OutOfReach) as error:  # the save is there; the next one tries again
            room = f"; checkpoints of before still take room there ({error})"
        return f"epoch {save.manifest.epoch} is on the Hub: {self.url}{room}"

    def missing(self, path: Path, epoch: int) -> str:
        command = f"s8lib publish --run {shlex.quote(str(path))} --hub-repo {self.repo_id}"
        return f"epoch {epoch} is NOT on the Hub{self._out}; send it with: {command}"

    def _look(
        self, here: Manifest | None = None, stop: threading.Event | None = None
    ) -> dict[str, tuple[Head, Manifest]]:
        """What each branch holds and its manifest; RunError for what may not give place to the save `here`."""
        names, write = (MANIFEST, CARD, EXPORTS) if here else (MANIFEST,), self.private is not None
        read = partial(self._ask, hub_client.read, CHECK_LIMIT, stop)
        heads = read(revisions=self.revisions, names=names, write=write)
        there = {branch: (head, self._manifest(head)) for branch, head in heads.items()}
        for _, manifest in there.values():
            if here and not self.overwrite:
                refuse_another(manifest.identity, here.identity, self.address)
        return there

    def _manifest(self, head: Head) -> Manifest:
        what = min(head.held - UNIMPORTANT, default="")
        try:
            if MANIFEST in head.contents:
                return Manifest.unseal(head.contents[MANIFEST])
        except RunError as error:  # of a later s8lib
            raise RunError(f"{self.title}: {error}") from None
        except ValueError as error:
            what = f"{MANIFEST} ({error})"
        if what and not self.overwrite:
            raise RunError(
                f"{self.title} holds files that are no run of s8lib's, such as {what}: "
                "name another repository or revision or, to publish there, say overwrite"
            )
        return Manifest()

    def _commit(
        self, save: Sending, branch: str, files: dict[str, Content], head: Head, old: Iterable[str]
    ) -> str:
        """Commit `save`, as far as `branch` is to have it; of `files`, those not staged are there."""
        (save.folder / MANIFEST).write_bytes(dataclasses.replace(save.manifest, files=files).seal())
        sent = {name: content.sha256 for name, content in files.items() if name in save.manifest.files}
        beside = [MANIFEST, CARD] if branch == MAIN else [MANIFEST]
        sent |= {name: "" for name in beside if (save.folder / name).exists()}
        there = {_there(name): (str(save.folder / name), sha256) for name, sha256 in sent.items()}
        outdated = {_there(name) for name in old} & head.held - there.keys() - {_there(name) for name in files}
        commit = {"revision": branch, "parent_commit": head.commit, "commit_message": save.message}
        moved, arrived = save.moved, f", and its checkpoint is there, on the branch {RESUME}" * (branch == MAIN)

        def hear(more: int) -> None:
            save.moved = moved + more
            part = f"{save.moved / 1e6:.1f} of {save.bytes / 1e6:.1f} MB"
            self._out = f"; of epoch {save.manifest.epoch}, {part} went out{arrived}"

        hear(0)
        send = partial(self._ask, hub_client.send, STILL_LIMIT, save.stop, hear)
        return send(files=there, outdated=sorted(outdated), **commit)


def _needed(files: dict[str, Content]) -> dict[str, Content]:
    """Those of a save's files that a resume needs."""
    return {name: content for name, content in files.items() if NEEDED.fullmatch(name)}


def _there(name: str) -> str:
    """A file's name in the repository: `from_pretrained` looks for the best weights at its root."""
    return name.removeprefix("best/")
