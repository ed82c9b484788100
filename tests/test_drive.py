"""A run's complete saves reach Google Drive and come back from it, however the Drive behaves."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import s8lib as s8
from s8lib.run import copies as copies_module
from s8lib.run.copies import Copies
from s8lib.run.drive import MANIFESTS, DriveFolder
from s8lib.run.folder import RunFolder
from s8lib.run.save import OUTGOING, Manifest, RunError
from tests.fake_colab.faulty_drive import Call, FaultyDrive, disconnecting, fails
from tests.runs import Cut, assert_same_bits, outcome, recipe, small_model, train
from tests.saves import Machine, contents

CHECKPOINT = 20_000  # bytes, at least
SHORT = recipe(epochs=4, phase1_epochs=2)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder on Drive that keeps runs."""
    folder = tmp_path / "MyDrive" / "s8lib"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def machine(tmp_path: Path, kept: Path) -> Callable[..., Machine]:
    """Makes machines that keep their run on the Drive, each with an empty disk unless it is given another's."""
    disks = (tmp_path / f"disk{n}" for n in range(1000))

    def make(disk: Path | None = None, wait: float = 60, patient: bool = True, **options: Any) -> Machine:
        kind = Patient if patient else Machine
        return kind(disk or next(disks), [Copies(DriveFolder(kept / "run"), wait=wait)], **options)

    return make


class Patient(Machine):
    """Lets each copy come to its end before the next save, so that none is skipped."""

    def save(self, *epochs: int, best_at: Iterable[int] | None = ()) -> Machine:
        for epoch in epochs:
            super().save(epoch, best_at=best_at)
            arrived(self)
        return self


def arrived(machine: Machine | None = None) -> None:
    """Wait for the copy under way, whatever comes of it."""
    for thread in threading.enumerate():
        if thread.name == "copy to Google Drive":
            thread.join(60)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dead_from(number: int) -> Callable[[Call], None]:
    return lambda call: fails(errno.ENOTCONN, call.path) if call.number >= number else None


def dead_once_new_best_is_on_its_way() -> Callable[[Call], None]:
    dead = threading.Event()

    def before(call: Call) -> None:
        if dead.is_set() or (call.name == "write" and "best.new" in call.path.parts):
            dead.set()
            fails(errno.ENOTCONN, call.path)

    return before


def test_a_new_machine_has_everything_from_the_drive(machine: Callable[..., Machine]) -> None:
    old = machine()
    old.run.write_json("recipe.json", {"lr_peak": 0.1})
    old.save(1, 2, 3, best_at=(1, 2))
    (old.run.path / "graph.jpg").write_bytes(b"a picture")
    assert old.run.sync()
    new = machine()
    assert new.resumed() == 3
    assert new.best() == 2
    for name in ("recipe.json", "graph.jpg", "epoch_log.csv"):
        assert (new.run.path / name).read_bytes() == (old.run.path / name).read_bytes()
    new.save(4)
    assert new.run.sync()
    assert machine().resumed() == 4


def test_the_folder_on_drive_is_itself_a_run_folder(machine: Callable[..., Machine], kept: Path) -> None:
    here = machine()
    for last in range(1, 9):
        here.save(last, best_at=(1, 2, 3, 4, 5))
        here.run.sync()
        there = RunFolder(kept / "run")
        assert there.manifest().epoch == last
        assert there.best_weights()[0] == min(last, 5)
    assert there.best == there.best_weights()[1]
    assert not (kept / "run" / "best.new").exists()
    assert there.resume().epoch == 8


def test_rotation_keeps_the_newest_five_and_empties_before_it_deletes(
    machine: Callable[..., Machine], kept: Path
) -> None:
    with FaultyDrive(kept).installed() as drive:
        one = machine()
        one.save(*range(1, 6))
        one.run.sync()
        other = machine()  # rotation goes by what is on Drive, not by what this machine has
        assert other.resumed() == 5
        other.save(6, 7)
        other.run.sync()
    assert checkpoints(kept / "run") == [f"epoch_{epoch:03d}.pt" for epoch in range(3, 8)]
    assert drive.trash == 0
    for name in ("epoch_001.pt", "epoch_002.pt"):
        assert [call.name for call in drive.calls if call.path.name == name][-3:] == ["open wb", "close", "unlink"]


def test_what_is_there_is_not_copied_again(machine: Callable[..., Machine], kept: Path) -> None:
    with FaultyDrive(kept).installed() as drive:
        here = machine()
        here.save(1, 2, 3, best_at=(1,))
        here.run.sync()
        written = [call.path.name for call in drive.calls if call.name == "open wb"]
        assert written.count("model.safetensors") == 1
        assert all(written.count(f"epoch_00{epoch}.pt") == 1 for epoch in (1, 2, 3))
        before = len(drive.calls)
        here.run.sync()
        assert not [call for call in drive.calls[before:] if call.name == "open wb"]


@pytest.mark.parametrize(
    ("best_at", "broken"), [((2,), None), ((2, 6), None), ((2,), MANIFESTS[0]), ((2,), MANIFESTS[1])]
)
def test_a_cut_at_any_call_leaves_the_newest_save_or_the_one_before(
    tmp_path: Path, machine: Callable[..., Machine], kept: Path, best_at: tuple[int, ...], broken: str | None
) -> None:
    before = machine()
    before.save(*range(1, 6), best_at=best_at)
    before.run.sync()
    if broken:  # by an earlier cut
        os.truncate(kept / "run" / broken, 20)
    states = {path: tmp_path / f"{name}-before" for name, path in (("drive", kept), ("disk", before.run.path))}
    for path, copy in states.items():
        shutil.copytree(path, copy)
    seen, number = [], 0
    while not seen or seen[-1] != "whole":
        number += 3 if broken else 1  # to save time
        for path, copy in states.items():
            shutil.rmtree(path)
            shutil.copytree(copy, path)
        here = machine(before.path)
        with FaultyDrive(kept, dead_from(number)).installed() as drive:
            here.save(6, best_at=best_at)
            arrived(here)
        new = machine()
        epoch = new.resumed()
        assert epoch in (5, 6), f"cut at {drive.calls[number - 1]}"
        best = best_at[-1] if epoch == 6 else 2
        assert new.best() == best or (new.best() == 2 and new.run.checkpoint(best)), "best has its checkpoint"
        if number % 5 == 0:
            new.save(epoch + 1)
            assert new.run.sync()
            assert machine().resumed() == epoch + 1
        seen.append("whole" if len(drive.calls) < number else epoch)
    assert {5, 6, "whole"} == set(seen)
    assert seen == sorted(seen[:-1]) + ["whole"]


def test_a_cut_in_the_first_copy_starts_over_or_goes_on(machine: Callable[..., Machine], kept: Path) -> None:
    found, number = [], 0
    while not found or found[-1] != "whole":
        number += 1
        shutil.rmtree(kept)
        kept.mkdir()
        with FaultyDrive(kept, dead_from(number)).installed() as drive:
            here = machine()
            here.save(1, best_at=(1,))
            arrived(here)
        found.append("whole" if len(drive.calls) < number else machine().resumed())
    assert set(found) == {None, 1, "whole"}


def test_one_manifest_may_be_cut_or_changed_at_any_byte(machine: Callable[..., Machine], kept: Path) -> None:
    here = machine()
    here.save(1, 2, best_at=(1,))
    here.run.sync()
    old = (kept / "run" / MANIFESTS[0]).read_bytes()
    here.save(3)
    here.run.sync()
    new = (kept / "run" / MANIFESTS[0]).read_bytes()
    for length in range(len(new)):
        for damaged in (new[:length], new[:length] + b"#" + new[length + 1 :]):
            with pytest.raises(ValueError, match="."):
                Manifest.unseal(damaged)
    for cut_one, whole_one in (MANIFESTS, MANIFESTS[::-1]):
        (kept / "run" / whole_one).write_bytes(old)
        for length in (0, 1, len(new) // 2, len(new) - 1):
            (kept / "run" / cut_one).write_bytes(new[:length])
            assert len(DriveFolder(kept / "run").manifest().checkpoints) == 2
        (kept / "run" / cut_one).write_bytes(new)
        assert len(DriveFolder(kept / "run").manifest().checkpoints) == 3


def test_a_drive_that_disconnects_and_comes_back_costs_lines_and_nothing_else(
    machine: Callable[..., Machine], kept: Path
) -> None:
    with FaultyDrive(kept, disconnecting(errno.ENOTCONN, after_checkpoints=2, copies=3)).installed():
        here = machine()
        here.save(1, 2, 3, 4, 5, 6, 7, best_at=(1, 4))
        here.run.sync()
    assert [re.findall(r"epoch (\d)", line)[0] for line in here.problems()] == ["3", "4", "5"]
    assert all("[Errno 107]" in line and "\n" not in line for line in here.problems())
    assert sum("works again" in line for line in here.lines) == 1
    new = machine()
    assert new.resumed() == 7
    assert new.best() == 4


def test_best_weights_whose_checkpoint_is_gone_reach_the_drive_before_what_names_them(
    machine: Callable[..., Machine], kept: Path
) -> None:
    here = machine()
    here.save(1, best_at=(1,))
    here.run.sync()
    with FaultyDrive(kept, dead_from(1)).installed():
        here.save(*range(2, 10), best_at=(3,))  # epoch 3 is rotated away meanwhile
        arrived(here)
    with FaultyDrive(kept, dead_once_new_best_is_on_its_way()).installed():
        here.run.sync()
    new = machine()
    assert (new.resumed(), new.best()) == (1, 1), "an older save, but a whole one"
    here.run.sync()
    new = machine()
    assert (new.resumed(), new.best()) == (9, 3)


def test_a_drive_that_never_comes_back_does_not_stop_training_and_is_said_to_lack_the_run(
    machine: Callable[..., Machine], kept: Path
) -> None:
    with FaultyDrive(kept, dead_from(200)).installed():
        here = machine()
        for epoch in range(1, 9):
            here.save(epoch)
        with here.run.lock():
            pass
        assert not here.run.sync()
    assert "on this machine only" in here.lines[-1]
    assert here.resumed() == 8


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_newest_checkpoint_on_drive_is_passed_over(
    machine: Callable[..., Machine], kept: Path, damage: str
) -> None:
    old = machine()
    old.save(1, 2, 3, best_at=(1, 3))
    old.run.sync()
    newest = kept / "run" / "checkpoints" / "epoch_003.pt"
    if damage == "truncated":
        os.truncate(newest, 100)
    elif damage == "changed":
        newest.write_bytes(newest.read_bytes()[:-1] + b"#")
    else:
        newest.unlink()
    new = machine()
    assert new.resumed() == 2
    assert sum("epoch_003.pt is damaged there" in line for line in new.lines) == 1
    assert new.best() is None, "best is of an epoch that is lost"
    assert new.run.checkpoint(1) is not None, "the best before it may be here only"
    new.save(3, best_at=(3,))
    assert new.run.sync()
    last = machine()
    assert (last.resumed(), last.best()) == (3, 3)


def test_a_drive_on_which_nothing_is_intact_is_an_error_and_never_a_fresh_start(
    machine: Callable[..., Machine], kept: Path
) -> None:
    old = machine()
    old.save(1, 2)
    old.run.sync()
    for path in (kept / "run" / "checkpoints").iterdir():
        os.truncate(path, 10)
    with pytest.raises(RunError, match="none of the checkpoints in .* is intact"):
        machine().resumed()
    for name in MANIFESTS:
        os.truncate(kept / "run" / name, 10)
    with pytest.raises(RunError, match="no manifest that names them"):
        machine().resumed()
    again = machine(old.path)
    assert again.resumed() == 2, "what is on the machine counts"
    again.save(3)
    assert not again.run.sync(), "what cannot be read is not overwritten"


def test_writes_that_vanish_are_made_again(tmp_path: Path, machine: Callable[..., Machine], kept: Path) -> None:
    here = machine()
    here.save(1, 2, best_at=(1,))
    here.run.sync()
    shutil.copytree(kept, tmp_path / "earlier")
    here.save(3, best_at=(3,))
    here.run.sync()
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "earlier", kept)  # as if the copy of epoch 3 had never arrived
    here.save(4)
    assert here.run.sync()
    new = machine()
    assert (new.resumed(), new.best()) == (4, 3)


def test_what_was_written_before_a_disconnect_is_looked_at_again(
    machine: Callable[..., Machine], kept: Path
) -> None:
    def no_manifest_with_new_best(call: Call) -> None:
        if call.name == "open wb" and call.path.name in MANIFESTS and weights.exists():
            fails(errno.ENOTCONN, call.path)

    weights = kept / "run" / "best.new" / "model.safetensors"
    here = machine()
    here.save(1, best_at=(1,))
    here.run.sync()
    with FaultyDrive(kept, no_manifest_with_new_best).installed():
        here.save(2, best_at=(2,))
        assert not here.run.sync()
    weights.write_bytes(bytes(CHECKPOINT))  # the size has arrived, the bytes have not
    here.run.sync()
    new = machine()
    assert (new.resumed(), new.best()) == (2, 2)


def test_a_write_that_reads_back_as_something_else_does_not_count(
    machine: Callable[..., Machine], kept: Path
) -> None:
    def shorten(call: Call) -> None:
        if call.name == "close" and call.path.name == "epoch_002.pt":
            os.truncate(call.path, max(0, call.path.stat().st_size - 1))

    here = machine()
    here.save(1)
    here.run.sync()
    with FaultyDrive(kept, shorten).installed():
        here.save(2)
        assert not here.run.sync()
    assert "epoch_002.pt reads back as something else" in here.problems()[-2]
    assert machine().resumed() == 1


def test_a_full_drive_gives_up_old_checkpoints_but_never_the_only_good_one(
    machine: Callable[..., Machine], kept: Path
) -> None:
    with FaultyDrive(kept, quota=4 * CHECKPOINT).installed() as drive:
        here = machine()
        here.save(1, 2, 3, 4)
        assert here.run.sync()
        assert 1 <= len(checkpoints(kept / "run")) < 4
        assert checkpoints(kept / "run")[-1] == "epoch_004.pt"
        (kept / "holiday.mp4").write_bytes(bytes(max(0, drive.room())))  # somebody else fills the rest
        drive.quota -= 3 * CHECKPOINT
        here.save(5, 6)
        assert not here.run.sync()
        assert "[Errno 28]" in here.problems()[-2]
        assert machine().resumed() == 4, "the only good one"
        (kept / "holiday.mp4").unlink()
        drive.quota = None
        here.save(7)
        assert here.run.sync()
    assert machine().resumed() == 7


def test_a_drive_without_room_that_would_take_a_file_and_lose_it_is_full(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine()
    here.save(1, 2, 3)
    assert here.run.sync()
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=CHECKPOINT // 2))
        here.save(4)
        assert not here.run.sync()
        assert "[Errno 28]" in here.problems()[-2]
        assert machine().resumed() == 3, "the only good one"
    here.save(5)
    assert here.run.sync()


def test_a_disk_that_is_really_full_is_used_again_when_there_is_room(
    tmp_path: Path, machine: Callable[..., Machine], kept: Path
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={8 * CHECKPOINT}", "tmpfs", kept]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small filesystem to fill")
    try:
        here = machine()
        here.save(1, 2)
        assert here.run.sync()
        filling = kept / "holiday.mp4"
        with pytest.raises(OSError, match="No space left"):
            filling.write_bytes(bytes(100 * CHECKPOINT))
        here.save(3)
        here.run.sync()
        assert machine().resumed() in (2, 3)
        filling.unlink()
        here.save(4)
        assert here.run.sync()
        assert machine().resumed() == 4
    finally:
        subprocess.run(["umount", kept], check=True)


def test_a_hanging_drive_does_not_stop_training(machine: Callable[..., Machine], kept: Path) -> None:
    release = threading.Event()

    def hang(call: Call) -> None:
        if call.name == "write" and call.path.name == "epoch_002.pt":
            release.wait(60)

    with FaultyDrive(kept, hang).installed() as drive:
        here = machine(wait=0.3, patient=False)
        here.save(1)
        here.run.sync()
        here.save(2, 3, 4)
        assert not here.run.sync()
        assert len(here.problems()) == 1, "training went on, and asked for nothing while it hung"
        assert not [call for call in drive.calls if call.path.name in ("epoch_003.pt", "epoch_004.pt")]
        assert here.resumed() == 4
        release.set()
        for thread in threading.enumerate():
            if thread.name == "copy to Google Drive":
                thread.join(60)
        here.save(5)
        assert here.run.sync()
    assert machine().resumed() == 5


def test_stopping_by_hand_waits_for_no_copy(machine: Callable[..., Machine], kept: Path) -> None:
    def interrupted(machine: Machine) -> None:
        with machine.run.lock():
            machine.save(1)
            raise KeyboardInterrupt

    release = threading.Event()

    def hang(call: Call) -> None:
        if threading.current_thread() is not threading.main_thread():
            release.wait(60)

    with FaultyDrive(kept, hang).installed():
        here = machine(patient=False)
        with pytest.raises(KeyboardInterrupt):
            interrupted(here)
        assert not (kept / "run" / "checkpoints").exists()
        release.set()
        again = machine()
        assert again.resumed() == 1, "the copy that was under way is waited for, then read"


def test_the_newer_of_machine_and_drive_is_resumed(
    tmp_path: Path, machine: Callable[..., Machine], kept: Path
) -> None:
    first = machine()
    first.save(1, 2)
    first.run.sync()
    second = machine()
    assert second.resumed() == 2
    second.save(3, 4, best_at=(3,))
    second.run.sync()
    again = machine(first.path)
    assert again.resumed() == 4, "the Drive is newer"
    assert again.best() == 3
    shutil.copytree(kept, tmp_path / "earlier")
    again.save(5)
    again.run.sync()
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "earlier", kept)
    once_more = machine(first.path)
    assert once_more.resumed() == 5, "the machine is newer"
    assert once_more.run.sync()
    assert machine().resumed() == 5


def test_two_different_runs_are_refused_and_stay_as_they_are(machine: Callable[..., Machine], kept: Path) -> None:
    there, here = machine(), machine(recipe=recipe(lr_peak=0.2))
    there.save(1, 2)
    there.run.sync()
    with FaultyDrive(kept, dead_from(1)).installed():
        here.save(1, 2, 3)
        arrived(here)
    before = contents(kept), contents(here.path)
    with pytest.raises(RunError, match="holds another run: recipe lr_peak is 0.1 there and 0.2 here"):
        here.resumed()
    assert not here.run.sync(), "nor is the Drive's overwritten where a resume could not read it"
    assert (contents(kept), contents(here.path)) == before


def test_a_full_disk_here_is_not_taken_for_a_drive_that_cannot_be_read(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = machine()
    old.save(1)
    old.run.sync()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("s8lib.run.drive.shutil.copyfileobj", full)
    with pytest.raises(RunError, match=r"no room for what comes from Google Drive \(\[Errno 28\]"):
        machine().resumed()


def test_a_drive_that_cannot_be_read_is_no_reason_to_start_over(
    machine: Callable[..., Machine], kept: Path
) -> None:
    old = machine()
    old.save(1, 2)
    old.run.sync()
    new = machine(old.path)
    further = machine()
    assert further.resumed() == 2
    further.save(3, 4)
    further.run.sync()
    on_drive = files(kept)
    with FaultyDrive(kept, lambda call: fails(errno.EIO, call.path)).installed():
        with pytest.raises(RunError, match=r"cannot be read \(\[Errno 5\].*must not start over"):
            machine().resumed()
        assert new.resumed() == 2
    assert ["going on from epoch 2" in line for line in new.lines if "cannot be read" in line] == [True]
    new.save(3)
    assert not new.run.sync()
    assert "epoch_004.pt: start again to go on from it" in new.problems()[-2]
    assert files(kept) == on_drive, "a newer save is not overwritten by an older one"
    assert machine(old.path).resumed() == 4


def test_a_run_that_trained_in_the_folder_on_drive_itself_is_left_alone(
    machine: Callable[..., Machine], kept: Path
) -> None:
    here = machine()
    here.save(1)
    here.run.sync()
    old = json.loads((kept / "run" / MANIFESTS[0]).read_text())  # as the version before wrote one on a disk
    name, entry = "epoch_002.pt", next(iter(old["files"].values())) | {"epoch": 2}
    (kept / "run" / MANIFESTS[0]).write_text(json.dumps({"checkpoints": {name: entry}, "best": None}))
    before = files(kept)
    here.save(2)
    assert not here.run.sync()
    with pytest.raises(RunError, match="trained in this very folder"):
        machine().resumed()
    assert files(kept) == before


def test_nothing_is_made_where_the_drive_was(machine: Callable[..., Machine], kept: Path) -> None:
    here, other = machine(), machine()
    here.save(1)
    here.run.sync()
    shutil.rmtree(kept)
    here.save(2, 3)
    assert not here.run.sync()
    with pytest.raises(RunError, match="cannot be read"):
        other.resumed()
    with pytest.raises(RunError, match="is not there: mount Google Drive"):
        machine()
    assert not kept.exists()


def test_reports_written_after_training_follow_and_half_written_files_do_not(
    machine: Callable[..., Machine], kept: Path
) -> None:
    here = machine()
    here.save(1)
    here.run.sync()
    (here.run.path / "report.json").write_text("{}")
    (here.run.path / "graph.jpg.partial").write_text("half")
    (here.run.path / "notes (1).txt").write_text("of somebody, under a name that no manifest takes")
    assert here.run.sync()
    assert (kept / "run" / "report.json").read_text() == "{}"
    (here.run.path / "report.json").write_text('{"top1": 80}')
    assert here.run.sync()
    assert (kept / "run" / "report.json").read_text() == '{"top1": 80}'
    assert not [*kept.rglob("*.partial"), *kept.rglob("notes*"), *(here.run.path / OUTGOING).iterdir()]
    assert machine().resumed() == 1


def test_a_file_beside_the_save_that_cannot_be_read_keeps_nothing_else_from_the_drive(
    machine: Callable[..., Machine], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, copyfile = machine(), shutil.copyfile

    def locked(source: Path, target: Path) -> object:  # root may read everything
        if source.name == "notes.txt":
            raise PermissionError(13, "Permission denied")
        return copyfile(source, target)

    monkeypatch.setattr("s8lib.run.copies.shutil.copyfile", locked)
    (here.run.path / "notes.txt").touch()
    here.save(1)
    assert here.run.sync()
    assert any("notes.txt cannot be read (Permission denied): left out" in line for line in here.lines)
    assert not (kept / "run" / "notes.txt").exists()
    assert machine().resumed() == 1


def test_what_became_of_a_copy_that_an_ended_training_began_does_not_end_this_one(
    machine: Callable[..., Machine], kept: Path
) -> None:
    old = machine()
    old.save(1)
    old.run.sync()
    (copies,) = old.run.copies
    left = copies_module.stage(copies.place, old.run, {}, "epoch 1")
    left.problem = s8.RunFault("another machine goes on")  # and so did this one, when the cell was run again
    new = machine(old.path)
    assert new.resumed() == 1
    copies_module._SENDING[copies.place.address] = left
    new.save(2)
    assert new.run.sync()


# Real training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, tiny, recipe=SHORT, precision="fp32")
    return outcome(folder)


@pytest.mark.parametrize("fault", [None, "disconnecting", "truncated", "full", "dead before best"])
def test_a_run_resumed_from_the_drive_alone_equals_the_uninterrupted_one(
    tmp_path: Path, kept: Path, tiny: s8.Cifar100, uninterrupted: dict[str, Any], fault: str | None
) -> None:
    def run(disk: str) -> RunFolder:
        return RunFolder(tmp_path / disk, lines.append, [Copies(DriveFolder(kept / "run"))])

    lines: list[str] = []
    drive = FaultyDrive(kept)
    if fault == "disconnecting":
        drive = FaultyDrive(kept, disconnecting(errno.ENOTCONN, after_checkpoints=1, copies=1))
    elif fault == "dead before best":
        drive = FaultyDrive(kept, dead_once_new_best_is_on_its_way())
    elif fault == "full":
        drive = FaultyDrive(kept, quota=2_000_000)
    with drive.installed():
        with pytest.raises(Cut):
            train(run("lost"), tiny, recipe=SHORT, cut_after=3, precision="fp32")
        arrived()
        newest = sorted((kept / "run" / "checkpoints").iterdir())[-1]
        if fault == "truncated":
            os.truncate(newest, 1000)
        shutil.rmtree(tmp_path / "lost")
        drive.before = lambda call: None
        log = train(run("new"), tiny, recipe=SHORT, model=small_model(seed=99), precision="fp32")
    assert len(log) == 4
    found = outcome(tmp_path / "new")
    assert_same_bits(found | {"kept": None}, uninterrupted | {"kept": None})
    assert "holds the checkpoints of epochs" in lines[-1]


def test_a_save_that_is_damaged_here_and_there_keeps_nobody_from_taking_the_run_over(
    machine: Callable[..., Machine], kept: Path
) -> None:
    first = machine().until(3)
    for folder in (first.path, kept / "run"):
        os.truncate(folder / "checkpoints" / "epoch_003.pt", 10)
    second = machine(first.path)
    assert second.resumed() == 2
    second.run.claim()
    assert DriveFolder(kept / "run").manifest().writer == second.run.writer
