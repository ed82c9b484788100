"""How a run lies in a Hub repository: what one commit holds, and how it comes back into a run folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s8lib.data.download import one_line
from s8lib.models.weights import CONFIG, SAFETENSORS
from s8lib.publish.export import Export
from s8lib.run.folder import RunError, RunFolder, differences
from s8lib.run.log import EpochLog
from s8lib.run.save import holds

OUTGOING, ARRIVING = ".hub/outgoing", ".hub/arriving"  # in the run folder, for as long as they are needed
MANIFEST = "manifest.json"
_SMALL = (CONFIG, "epoch_log.csv", "recipe.json", "environment.json", MANIFEST)


class HubError(ValueError):
    """A repository, a token or a setting that cannot be published with; the message says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """One commit: what it says, and its files by their names in the repository, each a file here or a text."""

    message: str
    files: dict[str, Path | str]
    sha256: dict[str, str]  # of those that the manifest vouches for


def snapshot(run: RunFolder, log: EpochLog, repo_id: str, exports: Sequence[Export] = ()) -> Snapshot:
    """What the repository shall hold of `run` after the log's last epoch: all of one moment, or an error.

    Best weights at its root, where `from_pretrained` looks; that epoch's checkpoint and a manifest of just it; the
    log, the recipe and the environment; the report, the curves, the card, and the exports at the root.

    Raises:
        RunError: the folder does not hold the log's last epoch, or its best.
        ValueError: it has no recipe to write into the card.
    """
    from s8lib.report.card import make_card

    make_report(run, log)
    last, best = log[-1], log.best
    manifest, held = run.manifest(), run.best_weights()
    name = f"epoch_{last.epoch:03d}.pt"
    if name not in manifest["checkpoints"]:
        raise RunError(f"{run.checkpoints} does not hold epoch {last.epoch}")
    if held[0] != best.epoch:
        raise RunError(f"{run.best} does not hold epoch {best.epoch}, the best so far")
    checkpoint = manifest["checkpoints"][name]
    manifest_of_it = manifest | {"checkpoints": {name: checkpoint}}
    small = ("recipe.json", "environment.json", "report.json", "graph.jpg")
    return Snapshot(
        message=f"epoch {last.epoch}: {last.test_acc:.2f}% top-1; best epoch {best.epoch}: {best.test_acc:.2f}%",
        files={
            SAFETENSORS: held[1] / SAFETENSORS,
            CONFIG: held[1] / CONFIG,
            f"checkpoints/{name}": run.checkpoints / name,
            MANIFEST: json.dumps(manifest_of_it, indent=2) + "\n",
            "epoch_log.csv": log.to_csv(),
            "README.md": str(make_card(run, repo_id, log, exports)),
            **{file: run.path / file for file in small if (run.path / file).exists()},
            **{export.path.name: export.path for export in exports},
        },
        sha256={SAFETENSORS: manifest["best"]["sha256"], f"checkpoints/{name}": checkpoint["sha256"]},
    )


def make_report(run: RunFolder, log: EpochLog) -> None:
    """Bring `report.json` and `graph.jpg` in the run folder up to date, without measuring anything again."""
    from s8lib.report import write_log  # here: matplotlib is slow to load

    write_log(run, log)


def stage(commit: Snapshot, run: RunFolder) -> dict[str, str]:
    """Put a copy that training cannot change beside the run; where each of its files is."""
    folder = run.path / OUTGOING
    unstage(run.path)
    for name, source in commit.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            target.write_text(source, encoding="utf-8")
        elif name not in commit.sha256 or not _link(source, target):
            shutil.copyfile(source, target)
    return {name: str(folder / name) for name in commit.files}


def unstage(path: Path) -> None:
    """Remove what `stage` left in the run folder at `path`."""
    shutil.rmtree(path / Path(OUTGOING).parent, ignore_errors=True)


def fetch_run(repo_id: str, run: RunFolder, token: str | bool | None = None, revision: str | None = None) -> bool:
    """Fill a run folder that holds no epoch with the run in a Hub repository; `train` then goes on with it.

    Every file is of one commit, and verified before the first of them takes its place.

    Args:
        token: by default this machine's; only a private repository needs one.
        revision: a branch or commit; by default the newest.
    Returns:
        Whether it was filled: not if it holds an epoch already, or the repository holds no run.
    Raises:
        HubError: there is no such repository or revision, or what it holds is damaged.
        ConnectionError: the Hub cannot be reached, or the connection broke; nothing was changed.
        RunError: another process is training in the folder.
    """
    with RunFolder(run.path).lock():  # without its mirror, which may hold later epochs and must not follow this
        return run.last_epoch() is None and receive_run(repo_id, run, token, revision)


def receive_run(
    repo_id: str,
    run: RunFolder,
    token: str | bool | None = None,
    revision: str | None = None,
    identity: dict[str, Any] | None = None,
) -> bool:
    """`fetch_run` into a folder that is locked and holds no epoch.

    Args:
        identity: of the run that is wanted; another one is told and left there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

    arriving = run.path / ARRIVING
    try:
        api = HfApi(token=token)
        info = api.model_info(repo_id, revision=revision, timeout=30)
        held = {sibling.rfilename for sibling in info.siblings or ()}
        if MANIFEST not in held:
            return False
        unstage(run.path)
        api.hf_hub_download(repo_id, MANIFEST, revision=info.sha, local_dir=arriving)
        manifest = _read_manifest(arriving / MANIFEST)
        if another := differences(manifest["identity"], identity):
            run.say(f"{repo_id} on the Hub holds another run ({another}): this one starts without")
            return False
        for name in filter(_belongs_to_a_run, held):
            api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=arriving)
        epoch = _move_in(run, arriving, manifest)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: write USER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise HubError(f"the Hub has no {repo_id} that this token may read ({status})") from None
        raise ConnectionError(f"the Hub does not deliver {repo_id}: it answered {status}") from None
    # HTTPError (httpx's or httpx2's), LocalEntryNotFoundError: no connection, or one that breaks.
    # RuntimeError: the same in the client's Xet transport.
    except (HTTPError, LocalEntryNotFoundError, RuntimeError) as error:
        raise ConnectionError(f"the Hub does not deliver {repo_id}: {one_line(error)}") from None
    finally:
        unstage(run.path)
    run.say(
        f"{run.path} was empty: it now holds epoch {epoch} of {repo_id} on the Hub, commit {str(info.sha)[:7]}"
    )
    return True


def _read_manifest(path: Path) -> dict[str, Any]:
    """A manifest of one checkpoint, as `snapshot` wrote it."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        ((name, checkpoint),) = manifest["checkpoints"].items()
        if not _belongs_to_a_run(f"checkpoints/{name}"):  # what leads out of the folder, for one
            raise ValueError(f"{name!r} is no checkpoint")
        known = {"best": dict(manifest["best"]), "identity": manifest.get("identity")}
        return known | {"checkpoints": {name: {**checkpoint, "epoch": int(checkpoint["epoch"])}}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(f"{MANIFEST} on the Hub is not that of a run ({error})") from error


def _move_in(run: RunFolder, arriving: Path, manifest: dict[str, Any]) -> int:
    """Put the files in their places if all verify; their epoch. Until the manifest says so, nothing arrived."""
    ((name, checkpoint),) = manifest["checkpoints"].items()
    vouched_for = {f"checkpoints/{name}": checkpoint, SAFETENSORS: manifest["best"]}
    for file, entry in vouched_for.items():
        if not holds(arriving / file, entry):
            raise HubError(f"{file} on the Hub is not what its manifest.json says: fetch another revision")
    for file in _SMALL:
        if not (arriving / file).is_file():
            raise HubError(f"the run on the Hub lacks its {file}: fetch another revision")
    run.write_json(MANIFEST, {"checkpoints": {}, "best": None})
    run.best.mkdir(exist_ok=True)
    os.replace(arriving / CONFIG, run.best / CONFIG)
    os.replace(arriving / SAFETENSORS, run.best / SAFETENSORS)
    for file in (f"checkpoints/{name}", "epoch_log.csv", "recipe.json", "environment.json"):
        os.replace(arriving / file, run.path / file)
    run.write_json(MANIFEST, manifest)
    return checkpoint["epoch"]


def _belongs_to_a_run(name: str) -> bool:
    return name in (SAFETENSORS, *_SMALL) or re.fullmatch(r"checkpoints/epoch_\d+\.pt", name) is not None


def _link(source: Path, target: Path) -> bool:
    """Give `source`, which is replaced or removed but never written again, a second name; whether that worked."""
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        return False
    return True
