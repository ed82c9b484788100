"""What is where on the Hub: `main` for people, `resume` for going on, repositories of before, exports."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import s8lib as s8
from s8lib.publish.publisher import fetch_run
from s8lib.report.card import Export
from s8lib.run.save import Manifest
from tests.hub_endpoints import WRITE, Commit, File, Repo
from tests.hub_runs import GIT, NAME, USABLE, check_consistent, until
from tests.local_hub import LocalHub
from tests.runs import RECIPE
from tests.saves import Machine


def publishing(path: Path, **options: Any) -> Machine:
    """A run that is published with every `sync`."""
    machine = Machine(path)
    publisher = s8.HubPublisher(NAME, token=WRITE, every=1000, wait=60, say=machine.lines.append, **options)
    machine.run.copies.append(publisher)
    return machine


def test_commit_after_commit_the_checkpoint_moves_to_a_branch_that_keeps_one_and_the_weights_move_once(
    hub: LocalHub, tmp_path: Path
) -> None:
    machine = publishing(tmp_path / "run")
    for epoch in (3, 5, 7):  # 3 and 7 have new best weights
        machine.until(epoch).run.sync()
        check_consistent(hub.resume(NAME), epoch, tmp_path, resume=True)
        assert hub.resume(NAME).files.keys() >= GIT
    for commit, epoch in zip(hub.commits(NAME), (3, 5, 7), strict=True):
        check_consistent(commit, epoch, tmp_path)
        assert commit.files.keys() >= GIT
    assert hub.requests.count("lfs_put") == 3 + 2  # three checkpoints, two best weights
    fresh = publishing(tmp_path / "fresh")
    assert (fresh.resumed(), fresh.best()) == (7, 7)
    assert {*hub.endpoints.fetched} - {"README.md"} == hub.resume(NAME).files.keys() - GIT


def as_before(hub: LocalHub) -> None:
    """Make of the repository what the version before would have left: all of it on main."""
    repo = hub.endpoints.repos[NAME]
    (resume,) = repo.branches.pop("resume")
    listed = [Manifest.unseal(commit.files["manifest.json"].content) for commit in (repo.head, resume)]
    manifest = dataclasses.replace(listed[1], files=listed[0].files | listed[1].files).seal()
    files = {**repo.head.files, **resume.files, "manifest.json": File(manifest, lfs=False)}
    files["notes.txt"] = File(b"of its owner", lfs=False)
    repo.commits.append(Commit("of before", files, repo.head.oid))


def test_a_repository_of_before_is_gone_on_from_and_moves_over_with_the_next_commit(
    hub: LocalHub, tmp_path: Path
) -> None:
    publishing(tmp_path / "before").until(5).run.sync()
    as_before(hub)
    old = hub.commits(NAME)[-1]
    machine = publishing(tmp_path / "run")
    assert (machine.resumed(), machine.best()) == (5, 3)
    assert not {"graph.jpg", *USABLE} & {*hub.endpoints.fetched}, "more than a resume needs"
    machine.until(7).run.sync()
    main = hub.commits(NAME)[-1]
    assert main.files["notes.txt"].content == b"of its owner"
    ours = {name: file for name, file in main.files.items() if name != "notes.txt"}
    check_consistent(dataclasses.replace(main, files=ours), 7, tmp_path)
    check_consistent(hub.resume(NAME), 7, tmp_path, resume=True)
    for revision, epoch in ((old.oid, 5), ("resume", 7), (None, 7)):
        run = s8.RunFolder(tmp_path / f"from {revision}")
        assert fetch_run(NAME, run, revision=revision)
        assert run.manifest().epoch == epoch
    with pytest.raises(
        s8.RunError, match="weights are there, of epoch 7, but no manifest that names a checkpoint"
    ):
        fetch_run(NAME, s8.RunFolder(tmp_path / "main"), revision="main")


def test_a_break_between_the_two_commits_costs_no_epoch_and_the_rest_is_sent_without_the_bytes(
    hub: LocalHub, tmp_path: Path
) -> None:
    machine = publishing(tmp_path / "run")
    machine.until(3).run.sync()
    hub.fail("commit", 403, skip=1)
    machine.until(7).run.sync()
    assert machine.lines[-1].startswith("epoch 7 is NOT on the Hub; of epoch 7, ")
    assert ", and its checkpoint is there, on the branch resume; send it with: s8lib" in machine.lines[-1]
    check_consistent(hub.commits(NAME)[-1], 3, tmp_path)
    moved = hub.requests.count("lfs_put")
    new = publishing(tmp_path / "new")
    assert (new.resumed(), new.best()) == (7, 7)
    new.run.sync()
    check_consistent(hub.commits(NAME)[-1], 7, tmp_path)
    assert hub.requests.count("lfs_put") == moved


def test_a_history_that_cannot_be_squashed_costs_room_and_not_the_save(hub: LocalHub, tmp_path: Path) -> None:
    machine = publishing(tmp_path / "run")
    machine.until(3).run.sync()
    hub.fail("squash", 500)
    machine.until(5).run.sync()
    assert "; checkpoints of before still take room there (the Hub answered 500" in machine.lines[-1]
    check_consistent(hub.commits(NAME)[-1], 5, tmp_path)
    machine.until(7).run.sync()
    check_consistent(hub.resume(NAME), 7, tmp_path, resume=True)


def test_where_one_branch_holds_another_run_no_epoch_is_trained_until_someone_says_overwrite(
    hub: LocalHub, tmp_path: Path
) -> None:
    publishing(tmp_path / "old").until(7).run.sync()
    other = dataclasses.replace(RECIPE, seed=9)
    machine = publishing(tmp_path / "run", overwrite=True)
    machine = Machine(tmp_path / "run", machine.run.copies, recipe=other).until(3)
    hub.fail("commit", 403, skip=1)
    machine.run.sync()  # broke off between the two
    new = Machine(tmp_path / "new", publishing(tmp_path / "x").run.copies, recipe=other)
    assert new.resumed() == 3
    with pytest.raises(s8.RunError, match="holds another run: recipe seed is 3 there and 9 here"):
        new.until(4)
    new = Machine(tmp_path / "newer", publishing(tmp_path / "y", overwrite=True).run.copies, recipe=other)
    assert new.resumed() == 3
    new.run.sync()
    check_consistent(hub.commits(NAME)[-1], 3, tmp_path)


def test_a_branch_of_that_name_that_is_not_ours_is_left_alone(hub: LocalHub, tmp_path: Path) -> None:
    machine = publishing(tmp_path / "run").until(3)
    repo = hub.endpoints.repos[NAME] = Repo()
    repo.branches["resume"] = [Commit("theirs", {"thesis.pdf": File(b"theirs", False)}, "")]
    (publisher,) = machine.run.copies
    with pytest.raises(s8.RunError, match=r"holds files that are no run of s8lib's, such as thesis\.pdf"):
        publisher.claim(machine.run)
    machine.run.sync()
    assert [commit.title for commit in repo.branches["resume"]] == ["theirs"]
    assert hub.commits(NAME) == []


def exports(folder: Path, *names: str) -> list[Export]:
    for name in names:
        (folder / name).write_text(f"{name} in {folder.name}")
    kinds = {"model.onnx": "ONNX", "model.pt2": "torch.export"}
    return [Export(folder / name, kinds[name], {"torch": "2"}, "torch 2", 0.0) for name in names]


def test_exports_stay_while_the_weights_they_are_of_are_the_best_whoever_publishes(
    hub: LocalHub, tmp_path: Path
) -> None:
    machine = publishing(tmp_path / "run").until(3)
    (publisher,) = machine.run.copies
    publisher.publish(machine.run, exports(tmp_path, "model.onnx", "model.pt2"))
    elsewhere = publishing(tmp_path / "elsewhere")
    assert elsewhere.resumed() == 3
    assert not (elsewhere.path / "model.onnx").exists(), "more than a resume needs"
    elsewhere.run.copies[0].publish(elsewhere.run)
    elsewhere.run.copies[0].publish(elsewhere.run, exports(elsewhere.path, "model.onnx"))
    elsewhere.until(5).run.sync()
    elsewhere.until(7).run.sync()
    first, *same, another = hub.commits(NAME)
    for commit in (first, *same):
        card = commit.files["README.md"].content.decode()
        listed = json.loads(commit.files["manifest.json"].content)["files"]
        for name in ("model.onnx", "model.pt2"):
            assert f"`{name}` is " in card
            assert name in commit.files.keys() & listed.keys()
    assert [commit.files["model.onnx"].content.decode() for commit in (first, *same)] == [
        *["model.onnx in " + tmp_path.name] * (len(same) - 1),
        *["model.onnx in elsewhere"] * 2,
    ]
    check_consistent(another, 7, tmp_path)
    assert "model.onnx" not in another.files["README.md"].content.decode()


@pytest.mark.usefixtures("processes")
def test_at_4_megabits_a_second_finish_waits_while_bytes_move_and_tells_how_many(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s8lib.run.copies.TOLD_EVERY", 1.0)
    started = time.monotonic()
    machine = publishing(tmp_path / "run")
    wait = max(12.0, 4 * (time.monotonic() - started))  # four questions to the Hub, and less than all of it takes
    machine.run.copies[0].wait = wait
    monkeypatch.setattr("s8lib.run.hub.STILL_LIMIT", 0.65 * wait)  # less than an upload takes
    machine.model = torch.nn.Linear(1, 750_000)  # checkpoint and best weights of 6 MB each, which move at once
    hub.rate = 6_000_000 / (0.7 * wait)  # what lies in the sockets' buffers has moved, and is to be taken in time
    machine.until(1).run.sync()
    assert machine.lines[-1].startswith("epoch 1 is on the Hub"), machine.lines
    assert machine.problems() == []
    told = r"epoch 1 to tester/net on the Hub: [\d.]+ of 12\.\d MB, [\d.]+ MB/s"
    assert sum(1 for line in machine.lines if re.fullmatch(told, line)) > 2


@pytest.mark.usefixtures("processes")
def test_a_hub_that_hangs_in_mid_file_costs_neither_the_commit_nor_training(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s8lib.run.copies.TOLD_EVERY", 1.0)
    started = time.monotonic()
    machine = publishing(tmp_path / "run")
    limit = max(12.0, 4 * (time.monotonic() - started))
    monkeypatch.setattr("s8lib.run.hub.STILL_LIMIT", limit)
    machine.run.copies[0].every = 3
    hub.fail("lfs_put", "stall", times=2)  # of checkpoint and weights
    machine.until(3)
    until(hub.hanging.is_set, 60)
    machine.until(5)  # training goes on
    assert hub.hanging.is_set()
    assert hub.commits(NAME) == []
    machine.run.sync()
    assert any("nothing has moved for" in line for line in machine.lines)
    assert f"epoch 3 was not sent (no answer from the Hub in {limit:.0f} s)" in " ".join(machine.lines)
    check_consistent(hub.commits(NAME)[0], 5, tmp_path)


@pytest.mark.usefixtures("processes")
def test_over_xet_bytes_are_seen_to_move_and_both_branches_name_what_was_uploaded(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In hf_xet's store on this disk: its protocol towards a server, throttling and retries are tested nowhere."""
    hub.endpoints.xet = tmp_path / "xet"
    hub.endpoints.xet.mkdir()
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    machine = publishing(tmp_path / "run")
    machine.model = torch.nn.Linear(1, 1_500_000)
    machine.until(3).run.sync()
    assert machine.lines[-1].startswith("epoch 3 is on the Hub"), machine.lines
    assert "lfs_put" not in hub.requests
    files, (publisher,) = machine.run.manifest().files, machine.run.copies
    weights, checkpoint = files["best/model.safetensors"], files["checkpoints/epoch_003.pt"]
    assert hub.commits(NAME)[0].files["model.safetensors"].oid == weights.sha256
    assert hub.resume(NAME).files["checkpoints/epoch_003.pt"].oid == checkpoint.sha256
    assert any(path.is_file() for path in hub.endpoints.xet.rglob("*"))
    told = publisher.place.missing(machine.path, 3)
    assert re.search(r"; of epoch 3, (?!0\.0 )[\d.]+ of [\d.]+ MB went out", told)
