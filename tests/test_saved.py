"""A run that was trained before is found by what people know of it, and measured on what it was trained on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

import s8lib as s8
from s8lib.data.cifar100 import CIFAR100_FINGERPRINT
from tests.hub_endpoints import WRITE, Commit, File, Repo
from tests.hub_runs import NAME
from tests.local_hub import LocalHub
from tests.runs import recipe, train
from tests.saves import Machine


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `older` and `newer`, by when they were last saved."""
    kept = tmp_path_factory.mktemp("kept")
    for seconds, name in enumerate(("newer", "older")):
        Machine(kept / name).until(2)
        saved = (kept / name / "manifest.json").stat().st_mtime
        os.utime(kept / name / "manifest.json", (saved - 60 * seconds,) * 2)
    return kept


def test_a_run_is_found_as_the_newest_by_its_name_or_by_its_folder(kept: Path, tmp_path: Path) -> None:
    assert s8.find_run("", kept).path == kept / "newer"
    assert s8.find_run(" older ", kept).path == kept / "older"
    assert s8.find_run(str(kept / "older"), tmp_path).path == kept / "older"
    assert list(tmp_path.iterdir()) == []


def test_a_runs_folder_is_no_mirror_of_itself_on_colab(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s8lib.colab.in_colab", lambda: True)
    run = s8.find_run(str(kept / "older"), kept)
    assert (run.path, run.copies) == (kept / "older", [])


def test_what_is_no_run_is_said_in_a_sentence(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(s8.RunError, match="holds no run: train one first, with session_8.ipynb"):
        s8.find_run("", tmp_path)
    with pytest.raises(s8.RunError, match="'oldest' is no run in .*, no run's folder and no USER/NAME on the Hub"):
        s8.find_run("oldest", kept)
    s8.RunFolder(tmp_path / "begun").path.mkdir()
    s8.RunFolder(tmp_path / "begun").write_json("manifest.json", {"checkpoints": {}, "best": None})
    with pytest.raises(s8.RunError, match="begun holds no finished epoch: train there first"):
        s8.find_run("begun", tmp_path)


def test_a_run_is_found_on_the_hub_and_fetched_once(hub: LocalHub, kept: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    s8.HubPublisher(NAME, token=WRITE, say=lines.append).publish(s8.RunFolder(kept / "newer"))
    lines.clear()
    for _ in range(2):
        run = s8.find_run(NAME, tmp_path, lines.append)
        assert (run.path, run.manifest().epoch, run.best_weights()[0]) == (tmp_path / "tester--net", 2, 2)
    card = Commit("only a card", {"README.md": File(b"# Nothing", lfs=False)}, "")
    hub.endpoints.repos["tester/card-only"] = Repo(commits=[card])
    with pytest.raises(s8.HubError, match="^tester/card-only on the Hub holds no run of s8lib: name another repo"):
        s8.find_run("tester/card-only", tmp_path, lines.append)
    assert len(lines) == 2
    assert f"epoch 2 is brought to {tmp_path / 'tester--net'} from https://huggingface.co/{NAME}" in lines[0]
    assert lines[1].endswith("tester--net holds epoch 2 already: remove that folder to fetch anew")
    assert WRITE not in str(lines)


@pytest.fixture
def trained(tmp_path: Path, tiny: s8.Cifar100) -> s8.RunFolder:
    train(tmp_path / "run", tiny, recipe=recipe(epochs=1, phase1_epochs=0, warmup_epochs=0))
    return s8.RunFolder(tmp_path / "run")


def test_a_run_on_data_of_its_own_is_not_measured_on_other_data(trained: s8.RunFolder) -> None:
    with pytest.raises(s8.RunError, match="trained on synthetic, seed 0, not on .*: name its own data with"):
        s8.data_of(trained)


def test_a_run_on_cifar100_is_measured_on_cifar100(trained: s8.RunFolder, real: s8.Cifar100) -> None:
    manifest = trained.manifest()
    identity = (manifest.identity or {}) | {"data": {"sha256": CIFAR100_FINGERPRINT, "holdout": 0}}
    trained.install(dataclasses.replace(manifest, identity=identity))
    assert s8.data_of(trained).fingerprint() == real.fingerprint()
