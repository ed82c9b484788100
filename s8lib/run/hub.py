"""A Hub repository as a place for a run's saves: what one commit holds, and how it comes back.

One commit is one save: the best weights at its root, where `from_pretrained` looks, the newest checkpoint, and a
manifest of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi

from s8lib.hub_client import HubError, check_repo_id, hub_errors, run_job, usable_token
from s8lib.run.copies import NotSent, Staged
from s8lib.run.save import (
    CHECKPOINT,
    CONFIG,
    LOG,
    MANIFEST,
    Content,
    Manifest,
    RunError,
    content_of,
    differences,
    unseal,
)

if TYPE_CHECKING:
    from s8lib.run.folder import RunFolder

CHECK_LIMIT = 30.0  # seconds that a look at the Hub may take
UPLOAD_LIMIT = 1800.0  # seconds after which an upload counts as hanging; 440 MB take that long at 2 Mbit/s
EXPORTS = (".onnx", ".pt2")  # at the root: of the weights they came with


class HubRepo:
    """The place for a run's saves in a repository; see `copies.Place`.

    Args:
        repo_id: "user/name".
        token: None to read without one, or with this machine's.
        private: whether a new repository is private.
        revision: a branch or commit to read; by default the newest.
    Raises:
        HubError: for a name that none can have.
    """

    required = False  # a run that is published can begin while the Hub is out of reach

    def __init__(
        self, repo_id: str, token: str | None = None, private: bool = False, revision: str | None = None
    ) -> None:
        self.repo_id, self.token, self.private, self.revision = check_repo_id(repo_id), token, private, revision
        self.title = f"{repo_id} on the Hub"
        self.address = f"https://huggingface.co/{repo_id}"
        self.checked = False  # that the token may write there
        self.url = ""  # of the newest commit that was sent
        self._commit: str | None = None  # that is read
        self._held: set[str] = set()

    def check(self) -> str:
        """See that the token may write to the repository, which is made if need be; why that is not known, if so.

        Raises:
            HubError: it may not.
        """
        job = {"repo_id": self.repo_id, "private": self.private, "token": usable_token(self.token), "check": True}
        answer = run_job(job, CHECK_LIMIT)
        if answer.get("permanent"):
            raise HubError(answer["error"])
        self.checked = not answer
        return answer.get("error", "")

    def manifest(self) -> Manifest:
        """Of the newest commit; an empty one if it holds no run."""
        with hub_errors(self.title):
            info = HfApi(token=self.token).model_info(self.repo_id, revision=self.revision, timeout=CHECK_LIMIT)
            self._commit, self._held = info.sha, {sibling.rfilename for sibling in info.siblings or ()}
            if MANIFEST not in self._held:
                return Manifest()
            with self._download(MANIFEST) as file:
                try:
                    manifest = unseal(file.read_bytes())
                except ValueError as error:
                    raise RunError(f"{self.title}: its {MANIFEST} is not that of a run ({error})") from None
            files = dict(manifest.files)
            for name in (CONFIG, LOG, "recipe.json", "environment.json"):
                if name not in files and _in_repo(name) in self._held:  # format 1 did not name them
                    with self._download(name) as file:
                        files[name] = content_of(file)
        return dataclasses.replace(manifest, files=files)

    def receive(self, name: str, content: Content, target: Path) -> bool:
        """Download a file of the commit whose manifest was read."""
        if _in_repo(name) not in self._held:
            return False
        with hub_errors(self.title), self._download(name, target.parent) as file:
            os.replace(file, target)
        return True

    @contextlib.contextmanager
    def _download(self, name: str, beside: Path | None = None) -> Any:
        with tempfile.TemporaryDirectory(dir=beside, prefix=".arriving") as folder:
            api = HfApi(token=self.token)
            yield Path(api.hf_hub_download(self.repo_id, _in_repo(name), revision=self._commit, local_dir=folder))

    def look(self, new: Manifest) -> None:
        """Nobody takes a repository over: a commit of someone else in between is refused by the Hub."""

    def claim(self, here: Manifest) -> None:
        """As `look`."""

    def send(self, save: Staged, stop: threading.Event) -> str:
        """One commit; what it takes the place of leaves the repository's head in the same commit."""
        account = {"repo_id": self.repo_id, "private": self.private, "token": usable_token(self.token)}
        there = self._answer(run_job(account | {"check": not self.checked, "read": MANIFEST}, CHECK_LIMIT, stop))
        self.checked, held = True, set(there["held"])
        with contextlib.suppress(ValueError):  # a manifest that is damaged is no reason to keep it
            found = unseal(there["text"].encode())
            if found.epoch > save.manifest.epoch and not differences(found.identity, save.manifest.identity):
                raise NotSent(
                    f"it holds epoch {found.epoch} of this very run, and is not set back to an earlier one: go on "
                    "from there in an empty run folder, or publish to another repository",
                    permanent=True,
                )
        (save.folder / MANIFEST).write_bytes(save.manifest.seal())
        files = {
            _in_repo(name): str(save.folder / name) for name in (*save.manifest.files, *save.unnamed, MANIFEST)
        }
        commit = {
            "files": files,
            "sha256": {_in_repo(name): content.sha256 for name, content in save.manifest.files.items()},
            "outdated": [name for name in held - files.keys() if CHECKPOINT.fullmatch(name) or _is_export(name)],
            "message": save.message,
            "parent": there["head"],
        }
        self.url = self._answer(run_job(account | commit, UPLOAD_LIMIT, stop))["url"]
        return f"epoch {save.manifest.epoch} is on the Hub: {self.url}"

    def _answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise NotSent(answer["error"], answer.get("permanent", False), answer.get("retry_after", 0.0))
        return answer

    def summary(self) -> str:
        return ""  # `send` has said it

    def missing(self, run: RunFolder, epoch: int) -> str:
        command = f"s8lib publish --run {shlex.quote(str(run.path))} --hub-repo {self.repo_id}"
        return f"epoch {epoch} is NOT on the Hub; send it with: {command}"


def _in_repo(name: str) -> str:
    return name.removeprefix("best/")


def _is_export(name: str) -> bool:
    return "/" not in name and name.endswith(EXPORTS)
