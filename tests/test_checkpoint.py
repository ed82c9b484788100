"""The run folder keeps the last complete saves through crashes, damage and rotation."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from s8lib.models.weights import save_model
from s8lib.run.folder import RunError, RunFolder
from tests.runs import small_model


def state(epoch: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(epoch)), "epoch": epoch}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, lines: list[str]) -> RunFolder:
    folder = RunFolder(tmp_path / "run", say=lines.append)
    folder.checkpoints.mkdir(parents=True)
    assert folder.resume() is None
    return folder


def saved(run: RunFolder, epochs: range, best_at: tuple[int, ...] = ()) -> None:
    for epoch in epochs:
        save_best = partial(save_model, small_model(seed=epoch)) if epoch in best_at else None
        run.save(epoch, state(epoch), f"log to {epoch}\n", save_best)


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def newest(run: RunFolder) -> int:
    found = run.resume()
    assert found is not None
    return found["epoch"]


def test_the_last_five_checkpoints_stay_and_the_manifest_names_just_them(run: RunFolder) -> None:
    saved(run, range(1, 9))
    assert names(run) == [f"epoch_{epoch:03d}.pt" for epoch in range(4, 9)]
    assert list(run.manifest()["checkpoints"]) == names(run)
    assert (run.path / "epoch_log.csv").read_text() == "log to 8\n"


def test_rotation_counts_what_is_on_disk_not_what_this_process_wrote(run: RunFolder) -> None:
    saved(run, range(1, 6))
    saved(RunFolder(run.path), range(6, 8))
    assert names(run) == [f"epoch_{epoch:03d}.pt" for epoch in range(3, 8)]


def test_rotation_goes_by_the_epoch_beyond_three_digits(run: RunFolder) -> None:
    saved(run, range(997, 1003))
    assert newest(run) == 1002
    assert names(run)[0] == "epoch_1000.pt"
    assert len(names(run)) == 5


def test_a_resume_takes_the_newest_checkpoint_that_verifies(run: RunFolder, lines: list[str]) -> None:
    saved(run, range(1, 5))
    with open(run.checkpoints / "epoch_004.pt", "r+b") as file:
        file.seek(2000)
        file.write(b"\xff\xff\xff\xff")
    os.truncate(run.checkpoints / "epoch_003.pt", 100)
    assert newest(run) == 2
    assert [("epoch_004.pt" in line, "damaged" in line) for line in lines] == [(True, True), (False, True)]


def test_checkpoints_that_all_fail_are_an_error_and_never_a_fresh_start(run: RunFolder) -> None:
    saved(run, range(1, 3))
    for name in names(run):
        os.truncate(run.checkpoints / name, 10)
    with pytest.raises(RunError, match="none of the checkpoints"):
        run.resume()


def test_checkpoints_that_vanished_are_an_error_and_never_a_fresh_start(run: RunFolder) -> None:
    saved(run, range(1, 2))
    (run.checkpoints / "epoch_001.pt").unlink()
    with pytest.raises(RunError, match="none of the checkpoints"):
        run.resume()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"checkpoints": 3, "best": null}'])
def test_a_damaged_or_missing_manifest_beside_checkpoints_is_an_error(run: RunFolder, content: str | None) -> None:
    saved(run, range(1, 2))
    manifest = run.path / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json"):
        run.resume()


class Killed(BaseException):
    """Stands for a kill: nothing of the interrupted code but `finally` runs after it."""


@pytest.mark.parametrize("before", range(6))  # a save with new best weights replaces 5 files
def test_a_kill_before_any_replacement_loses_at_most_the_save_it_hit(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    saved(run, range(1, 4), best_at=(1, 3))
    calls = 0
    replace = os.replace

    def replace_or_die(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > before:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        try:
            saved(run, range(4, 5), best_at=(4,))
            finished = True
        except Killed:
            finished = False
    after = RunFolder(run.path, say=lambda line: None)
    epoch = newest(after)
    assert epoch == 4 if finished else epoch in (3, 4)
    assert after.best_weights() == (epoch, after.best), "best and checkpoint are one save"
    assert not list(after.path.glob("**/*.partial"))
    saved(after, range(epoch + 1, epoch + 2))
    assert newest(after) == epoch + 1


@contextlib.contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    """Writing past `limit` bytes fails in the kernel, as on a full disk (EFBIG for ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [3_000, 100_000])
def test_a_save_that_the_disk_refuses_is_an_os_error_and_leaves_the_earlier_ones_whole(
    run: RunFolder, limit: int
) -> None:
    saved(run, range(1, 3), best_at=(2,))
    with files_no_larger_than(limit), pytest.raises(OSError, match="epoch_003|safetensors"):
        saved(run, range(3, 4), best_at=(3,))
    assert newest(run) == 2
    assert run.best_weights() == (2, run.best)
    assert not list(run.path.rglob("*.partial"))
    saved(run, range(3, 4), best_at=(3,))
    assert newest(run) == 3


def test_leftovers_of_a_kill_are_removed_and_nothing_that_is_not_the_runs(run: RunFolder) -> None:
    saved(run, range(1, 2))
    mine = [run.checkpoints / "epoch_002.pt.partial", run.path / "manifest.json.partial"]
    others = [run.path / "film.mkv.partial", run.path / "other-run" / "manifest.json.partial"]
    others[1].parent.mkdir()
    for path in mine + others:
        path.write_text("half")
    assert newest(run) == 1
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in others)


def test_looking_at_the_best_weights_does_not_disturb_a_save_in_progress(run: RunFolder) -> None:
    saved(run, range(1, 2), best_at=(1,))
    in_progress = run.path / "best.new"
    in_progress.mkdir()
    (in_progress / "model.safetensors").write_bytes(b"half of the next best")
    assert RunFolder(run.path).best_weights() == (1, run.best)
    assert (in_progress / "model.safetensors").exists()


def test_a_folder_with_results_but_no_manifest_is_never_overwritten(run: RunFolder) -> None:
    (run.path / "manifest.json").unlink()
    (run.path / "epoch_log.csv").write_text("somebody's results")
    with pytest.raises(RunError, match=r"manifest\.json is missing"):
        run.resume()


def test_damaged_best_weights_are_not_handed_out(run: RunFolder) -> None:
    saved(run, range(1, 2), best_at=(1,))
    assert run.best_weights() == (1, run.best)
    os.truncate(run.best / "model.safetensors", 100)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        run.best_weights()


def test_two_processes_cannot_train_in_one_folder(run: RunFolder) -> None:
    with run.lock(), pytest.raises(RunError, match="another process"), RunFolder(run.path).lock():
        pass


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="file"), RunFolder(tmp_path / "file" / "run").lock():
        pass


def test_the_manifest_is_json_with_sizes_and_sha256(run: RunFolder) -> None:
    saved(run, range(1, 2), best_at=(1,))
    manifest = json.loads((run.path / "manifest.json").read_text())
    entry = manifest["checkpoints"]["epoch_001.pt"]
    assert entry["epoch"] == 1
    assert entry["bytes"] == (run.checkpoints / "epoch_001.pt").stat().st_size
    assert len(entry["sha256"]) == len(manifest["best"]["sha256"]) == 64
