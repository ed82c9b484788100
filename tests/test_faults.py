"""One trial of each kind of benchmarks.faults, and one test for each thing that its longer runs have found."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import s8lib as s8
from benchmarks.faults import KINDS
from s8lib.run.copies import Copies, stage
from s8lib.run.drive import MANIFESTS, DriveFolder
from s8lib.run.save import WEIGHTS, Manifest, holds
from tests.fake_colab.faulty_drive import Call, FaultyDrive, fails
from tests.places import Drive
from tests.saves import Machine

ROOT = Path(s8.__file__).parents[1]


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"),
    reason="the faults come from a library in C that is preloaded",
)
def test_a_training_hit_by_a_fault_of_any_kind_ends_exactly() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--count", str(len(KINDS)), "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^all +{len(KINDS)} tried +{len(KINDS)} exact", done.stdout, re.MULTILINE)


def test_a_first_copy_to_drive_that_was_cut_off_twice_is_made_the_third_time(tmp_path: Path) -> None:
    def before(call: Call) -> None:
        if call.name == "write" and call.path.name in MANIFESTS and place.checkpoints():
            fails(errno.ENOTCONN, call.path)

    place = Drive(tmp_path)
    machine = place.machine()
    with FaultyDrive(place.folder.parent, before).installed():
        for epoch in (1, 2):
            place.keep(machine.until(epoch))
            assert len(place.checkpoints()) == 1
    place.keep(machine.until(3))
    assert place.machine().resumed() == 3


@pytest.mark.parametrize("name", ["best/config.json", WEIGHTS])
def test_best_weights_of_which_a_file_is_damaged_on_drive_are_not_given_up(tmp_path: Path, name: str) -> None:
    place = Drive(tmp_path)
    machine = place.machine()
    for epoch in range(1, 9):  # the best one is 7
        place.keep(machine.until(epoch))
    place.write(name, b"#")
    new = place.machine()
    assert new.resumed() == 8
    manifest = new.run.manifest()
    if name == WEIGHTS:
        assert new.run.checkpoint(7), "has the weights too"
    else:
        assert manifest.best_epoch == 7
        assert holds(new.run.find(WEIGHTS), manifest.files[WEIGHTS])


@pytest.mark.parametrize("name", MANIFESTS)
def test_drive_gets_back_the_second_copy_of_its_manifest_when_no_epoch_is_left_to_train(
    tmp_path: Path, name: str
) -> None:
    place = Drive(tmp_path)
    place.keep(place.machine().until(2))
    place.write(name, None)
    machine = place.machine()
    assert machine.resumed() == 2
    place.keep(machine)
    assert place.read(MANIFESTS[0]) == place.read(MANIFESTS[1])


@pytest.mark.parametrize("torn", MANIFESTS)
def test_a_machine_that_takes_over_while_a_save_is_on_its_way_to_drive_is_not_undone(
    tmp_path: Path, torn: str
) -> None:
    def before(call: Call) -> None:
        if call.name == "write" and call.path.name == "epoch_003.pt":
            newer.run.claim()
            os.truncate(place.folder / torn, 20)  # its next save is on its way

    place = Drive(tmp_path)
    older = place.machine().until(2)
    place.keep(older)
    newer = place.machine()
    assert newer.resumed() == 2
    with FaultyDrive(place.folder.parent, before).installed(), pytest.raises(s8.RunFault, match="another machine"):
        place.keep(older.until(3))
    whole = next(name for name in MANIFESTS if name != torn)
    assert Manifest.unseal(place.read(whole)).writer == newer.run.writer


@pytest.mark.parametrize(
    ("stopped_at", "number"),
    [(("write", "epoch_003.pt"), 0), (("write", "epoch_003.pt"), errno.ENOSPC), (("stat", "epoch_log.csv"), 0)],
)
def test_what_a_machine_that_takes_over_has_saved_is_not_touched_by_one_that_wakes_inside_a_save(
    tmp_path: Path, stopped_at: tuple[str, str], number: int
) -> None:
    def before(now: Call) -> None:
        if not newer.training and (now.name, now.path.name) == stopped_at:
            (copies,) = newer.run.copies
            for epoch in (3, 4):
                newer.until(epoch)
                copies.place.send(stage(copies.place, newer.run, *copies.extras(newer.run)))
            if number:
                fails(number, now.path)

    place = Drive(tmp_path)
    older = place.machine().until(2)
    place.keep(older)
    newer = place.machine()
    assert newer.resumed() == 2
    newer.log[1] = dataclasses.replace(newer.log[1], seconds=2.0)  # the same epoch is another file
    with FaultyDrive(place.folder.parent, before).installed(), pytest.raises(s8.RunFault, match="another machine"):
        place.keep(older.until(3))
    for name, content in newer.run.manifest().files.items():
        assert holds(s8.RunFolder(place.folder).find(name), content), name
    assert place.machine().resumed() == 4


def test_a_machine_takes_over_on_drive_also_before_the_first_save_is_there(tmp_path: Path) -> None:
    place = Drive(tmp_path)
    older, newer = place.machine(), place.machine()
    for machine in (older, newer):
        assert machine.resumed() is None
        machine.run.claim()
        machine.training = True  # has claimed
    with pytest.raises(s8.RunFault, match="another machine"):
        place.keep(older.until(1))
    place.keep(newer.until(1))
    assert place.machine().resumed() == 1


def test_who_takes_a_run_over_on_drive_says_so_and_who_goes_on_with_its_own_does_not(tmp_path: Path) -> None:
    place = Drive(tmp_path)
    first = place.machine().until(2)
    place.keep(first)
    for disk, says in (
        (first.path, False),
        (tmp_path / "new", True),
        (tmp_path / "new", False),
        (first.path, True),
    ):
        machine = Machine(disk, [Copies(DriveFolder(place.folder))])
        assert machine.resumed() == 2
        machine.run.claim()
        assert any("one that still trains it stops" in line for line in machine.lines) == says, disk


def test_a_manifest_deleted_between_a_save_and_its_copy_is_a_fault_and_not_bad_input(tmp_path: Path) -> None:
    place = Drive(tmp_path)
    machine = place.machine().until(2)
    place.keep(machine)
    run = machine.run
    text = (run.path / MANIFESTS[0]).read_bytes()
    with pytest.raises(s8.RunFault, match="is missing"), run.lock():
        (run.path / MANIFESTS[0]).unlink()
    with pytest.raises(s8.RunFault, match="is missing"):
        run.copy()
    (run.path / MANIFESTS[0]).write_bytes(text)
    assert run.sync()


def test_best_weights_that_never_reached_drive_come_back_from_an_older_checkpoint(tmp_path: Path) -> None:
    def before(call: Call) -> None:
        if call.name == "write" and "best" in call.path.parent.name:
            fails(errno.ENOTCONN, call.path)

    place = Drive(tmp_path)
    machine = place.machine().until(6)
    place.keep(machine)
    with FaultyDrive(place.folder.parent, before).installed():
        for epoch in (7, 8):  # the best one is 7
            place.keep(machine.until(epoch))
    new = place.machine()
    assert new.resumed() == 8
    assert new.run.checkpoint(7)


def test_the_older_machine_stops_though_its_last_write_comes_after_the_takeover(tmp_path: Path) -> None:
    place = Drive(tmp_path)
    older = place.machine().until(2)
    place.keep(older)
    late = [place.read(name) for name in MANIFESTS]
    newer = place.machine()
    assert newer.resumed() == 2
    newer.run.claim()
    newer.training = True  # has claimed
    for name, text in zip(MANIFESTS, late, strict=True):
        place.write(name, text)
    place.keep(newer.until(3))
    with pytest.raises(s8.RunFault, match="another machine"):
        place.keep(older.until(3))
    place.keep(newer.until(4))
    assert place.machine().resumed() == 4
