"""What a run promises, wherever its saves are kept: on this disk, on Google Drive, on the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import s8lib as s8
from s8lib.run.save import FORMAT, Manifest, RunFault
from tests.local_hub import client_of, serve
from tests.places import Disk, Drive, Hub
from tests.runs import RECIPE, recipe
from tests.saves import Machine


@pytest.fixture(params=["disk", "drive", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param != "hub":
        yield {"disk": Disk, "drive": Drive}[request.param](tmp_path)
        return
    with serve() as hub, client_of(hub, tmp_path / "home"):
        yield Hub(tmp_path, hub)


def test_the_newest_save_comes_back_with_its_best_weights_and_its_log(place: Disk) -> None:
    first = place.machine().until(7)
    place.keep(first)
    second = place.machine()
    assert (second.resumed(), second.best()) == (7, 7)
    assert list(second.run.log()) == list(first.run.log())
    assert second.run.recipe() == RECIPE
    assert second.run.sessions() == [{"device": "none"}]
    second.until(9)
    place.keep(second)
    third = place.machine()
    assert (third.resumed(), third.best()) == (9, 7)


def test_five_checkpoints_stay_where_there_is_room_for_more_than_one(place: Disk) -> None:
    machine = place.machine()
    for epoch in range(1, 9):
        machine.until(epoch)
        if epoch in (7, 8) or type(place) is not Hub:
            place.keep(machine)
    kept = range(4, 9) if type(place) is not Hub else [8]
    assert place.checkpoints() == [f"checkpoints/epoch_{epoch:03d}.pt" for epoch in kept]


DAMAGES = {
    "cut": lambda content: content[:100],
    "changed": lambda content: content[:-9] + b"#" + content[-8:],
    "gone": lambda content: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_nothing_starts_over(place: Disk, damage: str) -> None:
    machine = place.machine()
    for epoch in (1, 2, 3):
        machine.until(epoch)
        if epoch == 3 or type(place) is not Hub:
            place.keep(machine)
    for epoch in (3, 2, 1)[: len(place.checkpoints())]:
        name = f"checkpoints/epoch_{epoch:03d}.pt"
        place.write(name, DAMAGES[damage](place.read(name)))
        new = place.machine()
        if epoch == 1 or type(place) is Hub:
            with pytest.raises(s8.RunError, match=r"none of the checkpoints .* is intact"):
                new.resumed()
        else:
            assert new.resumed() == epoch - 1
            assert any(name.rpartition("/")[2] in line and "passed over" in line for line in new.lines)


def set_back(manifest: Manifest) -> bytes:
    return Manifest(sequence=1).seal()


BAD_MANIFESTS = {
    "set back to its first state": (set_back, "names no checkpoint|no manifest that names"),
    "set back by the version before": (
        lambda m: json.dumps({"checkpoints": {}, "best": None, "identity": None}).encode(),
        "names no checkpoint|no manifest that names",
    ),
    "another schema": (
        lambda m: b'{"version": 7, "items": []}',
        "no manifest of a run|no manifest that names",
    ),
    "of a later version": (
        lambda m: m.seal().replace(f'"format": {FORMAT}'.encode(), f'"format": {FORMAT + 1}'.encode()),
        "saved by a later version of s8lib .*: update s8lib",
    ),
    "cut": (lambda m: m.seal()[:-10], "cannot be read|no manifest that names|no run of s8lib"),
    "a byte changed": (
        lambda m: m.seal().replace(b'"best_epoch": 2', b'"best_epoch": 1'),
        "a part of it is missing or changed|no manifest that names",
    ),
    "an entry 5": (
        lambda m: json.dumps({"checkpoints": {"epoch_001.pt": 5}, "best": None}).encode(),
        "no manifest of a run|no manifest that names",
    ),
    "deeply nested": (
        lambda m: b'{"checkpoints": ' + b"[" * 100_000,
        "cannot be read|names|no run of s8lib",
    ),
    "leading out": (
        lambda m: json.dumps(
            {"checkpoints": {"../../x.pt": {"epoch": 1, "bytes": 1, "sha256": "0" * 64}}, "best": None}
        ).encode(),
        r"\.\./\.\./x\.pt|no manifest that names",
    ),
    "gone": (lambda m: None, "is missing, but|no manifest that names|no run of s8lib"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_manifest_that_tells_nothing_beside_checkpoints_is_an_error_and_never_a_fresh_start(
    place: Disk, case: str
) -> None:
    machine = place.machine().until(2)
    place.keep(machine)
    change, words = BAD_MANIFESTS[case]
    for name in place.manifests():
        place.write(name, change(machine.run.manifest()))
    before = place.checkpoints()
    with pytest.raises(s8.RunError, match=words) as raised:
        place.machine().resumed()
    assert "\n" not in str(raised.value)
    assert place.checkpoints() == before


def test_another_run_is_refused_and_both_stay_as_they_are(place: Disk) -> None:
    place.keep(place.machine().until(2))
    other = place.machine(recipe(lr_peak=0.2))
    with pytest.raises(s8.RunError, match="lr_peak is 0.1 there and 0.2 here"):
        other.resumed()
    assert place.machine().resumed() == 2


def test_runs_that_differ_in_name_only_are_one_run(place: Disk) -> None:
    place.keep(place.machine().until(2))
    assert place.machine(recipe(name="other")).resumed() == 2


def test_where_a_newcomer_takes_over_the_older_process_stops_at_its_next_save(place: Disk) -> None:
    if type(place) is Hub:
        pytest.skip("a commit's parent protects a repository: see test_hub.py")
    older = place.machine().until(2)
    place.keep(older)
    newer = place.machine()
    assert newer.resumed() == 2
    newer.run.claim()
    before = {name: place.read(name) for name in place.checkpoints()}
    with pytest.raises(RunFault, match=r"goes? on with the run|gone on with the run") as raised:
        older.until(3)
    assert "\n" not in str(raised.value)
    assert {name: place.read(name) for name in before} == before
    newer.until(4)
    place.keep(newer)
    assert place.machine().resumed() == 4


# Two places at once, as on Colab ---------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Drive, Hub]]:
    (tmp_path / "other").mkdir()
    with serve() as hub, client_of(hub, tmp_path / "home"):
        yield Drive(tmp_path), Hub(tmp_path / "other", hub)


def machine_with(places: tuple[Drive, Hub]) -> Machine:
    machine, other = (place.machine() for place in places)
    machine.run.copies += other.run.copies
    return machine


@pytest.mark.parametrize("newer", [0, 1], ids=["drive", "hub"])
def test_of_two_places_the_one_with_the_newer_save_is_gone_on_from(both: tuple[Drive, Hub], newer: int) -> None:
    for place, epochs in ((both[newer], 5), (both[1 - newer], 3)):
        place.keep(place.machine().until(epochs))
    assert machine_with(both).resumed() == 5


def cut_all(drive: Drive) -> None:
    for name in drive.checkpoints():
        drive.write(name, drive.read(name)[:100])


def break_down(drive: Drive) -> None:
    shutil.rmtree(drive.folder)
    drive.folder.write_text("no folder")


@pytest.mark.parametrize(("harm", "word"), [(cut_all, "passed over"), (break_down, "cannot be read")])
def test_what_one_place_cannot_give_comes_from_the_other(
    both: tuple[Drive, Hub], harm: Callable[[Drive], None], word: str
) -> None:
    machine_with(both).until(3).run.sync()
    harm(both[0])
    machine = machine_with(both)
    assert machine.resumed() == 3
    assert any(line.startswith("Google Drive: ") and word in line for line in machine.lines)


def test_a_place_that_fails_at_the_end_keeps_nothing_from_the_other(both: tuple[Drive, Hub]) -> None:
    machine = machine_with(both).until(2)
    machine.run.sync()
    break_down(both[0])
    machine.until(3)
    assert not machine.run.sync()
    assert both[1].checkpoints() == ["checkpoints/epoch_003.pt"]
