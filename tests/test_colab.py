"""What the notebook asks of Colab, on a fake of it and elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import s8lib as s8
from s8lib import colab
from s8lib.machine.device import pick_device, pick_precision
from s8lib.run.copies import Copies
from s8lib.run.folder import RunFolder
from s8lib.run.hub import HubRepo
from tests.hub_endpoints import READ, WRITE
from tests.local_hub import serve
from tests.saves import Machine, contents

FAKE = Path(__file__).parent / "fake_colab"
TOKEN = "hf_PlantedTokenThatNobodyMaySee"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Colab's /content, in a fake Colab with an empty Drive."""
    folder, drive = tmp_path / "content", tmp_path / "cloud"
    folder.mkdir()
    drive.mkdir()
    monkeypatch.setattr(colab, "CONTENT", colab.CONTENT)  # the fake changes it
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setenv("FAKE_COLAB_CONTENT", str(folder))
    monkeypatch.setenv("FAKE_COLAB_DRIVE", str(drive))
    yield folder
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        del sys.modules[name]
    import google

    if hasattr(google, "colab"):
        del google.colab
    if list(google.__path__) == [str(FAKE / "google")]:  # without another package of this name it would stay found
        del sys.modules["google"]


def test_colab_is_told_from_other_machines_kaggle_included(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert colab.in_colab()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # whose images have all that Colab's have
    assert not colab.in_colab()
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    assert not colab.in_colab()


def test_a_variable_alone_does_not_make_a_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "left over")
    assert not colab.in_colab()


def test_checks_say_one_line_each_and_no_path(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S8_DATA", raising=False)
    s8.colab.checks(lines.append)
    assert [line.split(":")[0] for line in lines] == [
        "GPU",
        "precision",
        "RAM",
        "disk",
        "versions",
        "data",
        "Hugging Face token",
    ]
    precision = pick_precision(pick_device())
    assert lines[1] == f"precision: {precision}"
    assert f"torch {torch.__version__}" in lines[4]
    assert f"s8lib {s8.__version__}" in lines[4]
    assert not any("\n" in line or str(Path.home()) in line or os.getcwd() in line for line in lines)


def test_checks_know_where_the_data_will_come_from(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def data() -> str:
        s8.colab.checks(lines.append)
        return lines[-2]

    monkeypatch.delenv("S8_DATA", raising=False)
    monkeypatch.setenv("S8_CACHE", str(tmp_path / "cache"))
    assert "to be downloaded" in data()
    for name in ("train", "test", "meta"):
        path = tmp_path / "cache" / "cifar-100-python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert "from the cache" in data()
    monkeypatch.setenv("S8_DATA", str(tmp_path / "cache"))
    assert "from the folder that S8_DATA names" in data()
    monkeypatch.setenv("S8_DATA", str(tmp_path / "nothing"))
    assert "missing" in data()
    monkeypatch.setenv("S8_DATA", "synthetic")
    assert "synthetic stand-in" in data()
    assert not any(str(tmp_path) in line for line in lines)


def test_mounting_gives_the_folder_on_drive_and_again_the_same(
    content: Path, capsys: pytest.CaptureFixture
) -> None:
    kept = s8.colab.mount_drive("deep/s8lib")
    assert kept == content / "drive" / "MyDrive" / "deep" / "s8lib"
    assert kept.is_dir()
    (kept / "file").touch()
    assert s8.colab.mount_drive("deep/s8lib") == kept
    assert "already mounted" in capsys.readouterr().out
    assert (kept / "file").exists()


def test_nothing_is_made_under_the_mountpoint_before_it_is_mounted(
    content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing in ("refused", "failed", "timeout", "unsupported"):
        monkeypatch.setenv("FAKE_COLAB_MOUNT", failing)
        with pytest.raises(colab.ColabError, match="run this cell again and allow the access") as refusal:
            s8.colab.mount_drive(keep="drive")
        assert "\n" not in str(refusal.value)
        assert refusal.value._render_traceback_() == [f"ColabError: {refusal.value}"], "no traceback in the cell"
        assert not list(content.iterdir())
    monkeypatch.delenv("FAKE_COLAB_MOUNT")
    assert s8.colab.mount_drive().is_dir()


def test_files_in_the_way_of_the_mount_are_named_with_what_to_do(content: Path) -> None:
    (content / "drive" / "MyDrive" / "s8lib").mkdir(parents=True)  # a notebook that wrote before it mounted
    with pytest.raises(colab.ColabError, match="written to this machine before Drive was mounted: move them away"):
        s8.colab.mount_drive(keep="drive")
    shutil.move(content / "drive", content / "drive-before")
    assert s8.colab.mount_drive().is_dir()


@pytest.mark.parametrize("folder", ["/content/drive/MyDrive/s8lib", "../s8lib"])
def test_a_folder_outside_my_drive_is_refused(content: Path, folder: str) -> None:
    with pytest.raises(colab.ColabError, match="not the name of a folder in My Drive"):
        s8.colab.mount_drive(folder)


@pytest.mark.parametrize(("folder", "keep"), [("", "auto"), (" ", "here"), ("runs", "nowhere")])
@pytest.mark.parametrize("on_colab", [True, False])
def test_no_folder_and_no_place_are_refused_before_files_are_scattered(
    request: pytest.FixtureRequest, folder: str, keep: str, on_colab: bool
) -> None:
    if on_colab:
        request.getfixturevalue("content")
    with pytest.raises(colab.ColabError, match="name a folder such as s8lib-runs, and say auto, drive or here"):
        s8.colab.mount_drive(folder, keep)


def test_a_folder_that_cannot_be_made_on_drive_is_refused(content: Path, tmp_path: Path) -> None:
    (tmp_path / "cloud" / "s8lib").write_text("a file of that name")
    with pytest.raises(colab.ColabError, match="cannot be used .*s8lib"):
        s8.colab.mount_drive(keep="drive")


@pytest.mark.parametrize("failing", ["refused", "unsupported", "here"])
def test_without_a_drive_a_run_stays_on_this_machine_which_is_said_and_is_not_given_back(
    content: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setenv("FAKE_COLAB_MOUNT", failing)
    import google.colab  # noqa: F401  (the fake moves /content)

    kept = s8.colab.mount_drive("s8lib-runs", "here" if failing == "here" else "auto", lines.append)
    assert lines[-1] == "runs are kept on this machine only: when Colab takes it back, they are gone"
    assert ("Google Drive cannot be used" in lines[0]) == (failing != "here")
    run = s8.colab.run_folder(kept, "quick", lines.append)
    assert (run.path, run.copies) == (content / "runs" / "quick", [])
    with run.lock():
        Machine(run.path, lines=lines).save(1)
    assert s8.find_run("", kept).path == run.path
    s8.colab.finish(run, disconnect=True, say=lines.append)
    assert lines[-2].startswith(f"{run.path} is on no Drive, and Colab takes this machine back")
    assert "this machine is kept" in lines[-1]
    assert not (content / "unassigned").exists()


def test_a_run_goes_on_when_drive_is_granted_only_later_and_when_it_is_given_up(
    content: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import google.colab  # noqa: F401  (the fake moves /content)

    for epoch, keep in enumerate(("auto", "auto", "here", "drive"), 1):
        monkeypatch.setenv("FAKE_COLAB_MOUNT", "refused" if epoch == 1 else "")
        run = s8.colab.run_folder(s8.colab.mount_drive("s8lib-runs", keep, lines.append), "quick", lines.append)
        with run.lock():
            assert run.fetch() == epoch - 1
            machine = Machine(run.path, run.copies, lines=lines)
            machine.save(*range(1, epoch + 1))
        there = RunFolder(tmp_path / "cloud" / "s8lib-runs" / "quick").manifest().epoch
        assert there == (0, 2, 2, 4)[epoch - 1]


def test_a_run_that_only_the_hub_has_keeps_the_machine_and_nobody_speaks_of_a_drive(
    content: Path, lines: list[str]
) -> None:
    class OnTheHub(Copies):
        def finish(self, run: RunFolder) -> bool:
            return True

    run = s8.colab.run_folder(s8.colab.mount_drive(keep="here"), "quick", lines.append)
    with run.lock():
        Machine(run.path, lines=lines).save(1)
    run.copies.append(OnTheHub(HubRepo("you/quick", WRITE)))
    s8.colab.finish(run, disconnect=True, say=lines.append)
    assert lines[-2].startswith(f"{run.path} is on no Drive")
    assert "this machine is kept" in lines[-1], "the pictures are on its disk only"
    assert not (content / "unassigned").exists()


def test_elsewhere_runs_are_kept_in_a_local_folder(lines: list[str]) -> None:
    assert s8.colab.mount_drive("runs", say=lines.append) == Path("runs")
    assert lines == ["not on Colab: runs are kept on this machine, in the folder runs"]
    run = s8.colab.run_folder("runs", "quick", lines.append)
    assert run.path == Path("runs", "quick")
    assert run.copies == []


def test_elsewhere_drive_cannot_be_insisted_on_and_kaggle_is_said_to_forget(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(colab.ColabError, match="no Google Drive to keep runs on, as this is not Colab"):
        s8.colab.mount_drive("runs", "drive", lines.append)
    assert lines == []
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert s8.colab.mount_drive("runs", say=lines.append) == Path("runs")
    assert lines[-1].startswith("Kaggle empties it after a session")


def test_on_colab_a_run_trains_on_the_machine_and_is_kept_on_drive(
    content: Path, tmp_path: Path, lines: list[str]
) -> None:
    kept = s8.colab.mount_drive()
    run = s8.colab.run_folder(kept, "quick", lines.append)
    assert run.path == content / "runs" / "quick"
    with run.lock():
        assert run.resume() is None
        Machine(run.path, run.copies, lines=lines).save(1)
    shutil.rmtree(run.path)
    assert RunFolder(tmp_path / "cloud" / "s8lib" / "quick").manifest().epoch == 1
    again = s8.colab.run_folder(kept, "quick", lines.append)
    with again.lock():
        found = again.resume()
    assert found
    assert found.epoch == 1


def test_whoever_looks_at_a_run_on_drive_changes_nothing_there(
    content: Path, tmp_path: Path, lines: list[str]
) -> None:
    kept = s8.colab.mount_drive()
    run = s8.colab.run_folder(kept, "quick", lines.append)
    with run.lock():
        Machine(run.path, run.copies, lines=lines).save(1)
    shutil.rmtree(run.path)
    there = tmp_path / "cloud" / "s8lib" / "quick"
    (there / "checkpoints" / "epoch_002.pt").write_bytes(b"which the machine that trains has just written")
    before = contents(there)
    assert s8.colab.find_run("", kept, lines.append).manifest().epoch == 1
    assert contents(there) == before


def test_finishing_copies_what_is_new_unmounts_and_gives_the_machine_back(
    content: Path, tmp_path: Path, lines: list[str]
) -> None:
    run = s8.colab.run_folder(s8.colab.mount_drive(), "quick", lines.append)
    with run.lock():
        Machine(run.path, run.copies, lines=lines).save(1)
    run.write_json("report.json", {"top1": 80})
    s8.colab.finish(run, disconnect=True, say=lines.append)
    assert (tmp_path / "cloud" / "s8lib" / "quick" / "report.json").is_file()
    assert not list((content / "drive").iterdir())
    assert (content / "unassigned").exists()
    assert "everything is written" in lines[-1]


@pytest.mark.parametrize("flush", ["failed", "hanging"])
def test_a_machine_whose_drive_was_not_written_out_is_kept(
    content: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, flush: str
) -> None:
    monkeypatch.setenv("FAKE_COLAB_FLUSH", flush)
    monkeypatch.setattr(colab, "FLUSH_TIMEOUT", 0.2)
    s8.colab.mount_drive()
    s8.colab.finish(disconnect=True, say=lines.append)
    assert (
        "not everything is written after 0.2 s" if flush == "hanging" else "flush_and_unmount failed"
    ) in lines[0]
    assert "this machine is kept" in lines[-1]
    assert not (content / "unassigned").exists()


def test_a_drive_that_is_gone_is_not_said_to_be_written(content: Path, lines: list[str]) -> None:
    s8.colab.finish(disconnect=True, say=lines.append)
    assert lines[0] == "Google Drive: it is not mounted: run the Drive cell again, then this one"
    assert not (content / "unassigned").exists()


def test_a_machine_with_the_only_copy_of_a_run_is_kept(content: Path, tmp_path: Path, lines: list[str]) -> None:
    run = s8.colab.run_folder(s8.colab.mount_drive(), "quick", lines.append)
    with run.lock():
        Machine(run.path, run.copies, lines=lines).save(1)
        run.sync()
        shutil.rmtree(tmp_path / "cloud" / "s8lib")
    s8.colab.finish(run, disconnect=True, say=lines.append)
    assert "this machine is kept" in lines[-1]
    assert not (content / "unassigned").exists()


def test_a_machine_that_is_not_taken_back_is_told(
    content: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s8.colab.mount_drive()
    monkeypatch.delenv("FAKE_COLAB_CONTENT")
    s8.colab.finish(disconnect=True, say=lines.append)
    assert "Disconnect and delete runtime does it" in lines[-1]


def test_elsewhere_there_is_nothing_to_finish(lines: list[str]) -> None:
    s8.colab.finish(disconnect=True, say=lines.append)
    assert lines == ["not on Colab: nothing to unmount"]


@pytest.mark.parametrize(
    ("secret", "advice"),
    [
        (None, "add a Colab secret named HF_TOKEN"),
        ("denied:", "give this notebook access to it"),
        ("timeout:", "timed out"),
        ("", "is empty"),
    ],
)
def test_without_the_secret_the_token_is_looked_for_elsewhere_and_missed_with_advice(
    content: Path,
    tmp_path: Path,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    secret: str | None,
    advice: str,
) -> None:
    if secret is not None:
        monkeypatch.setenv("FAKE_COLAB_SECRET", secret)
    assert s8.colab.hf_token(lines.append) is None
    assert advice in lines[-1]
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert s8.colab.hf_token(lines.append) == TOKEN
    assert lines[-1].endswith("from the token file of this machine")
    monkeypatch.setenv("HF_TOKEN", TOKEN[::-1])
    assert s8.colab.hf_token(lines.append) == TOKEN[::-1]
    assert lines[-1].endswith("from the variable HF_TOKEN")
    assert not any(TOKEN in line or TOKEN[::-1] in line for line in lines)


def test_colabs_secret_comes_first(content: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_COLAB_SECRET", TOKEN + "\n")
    monkeypatch.setenv("HF_TOKEN", "another")
    assert s8.colab.hf_token(lines.append) == TOKEN
    assert lines == ["Hugging Face token: from the Colab secret HF_TOKEN"]


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (WRITE, "'s; it can publish"),
        (READ, "'s; it can only read: publishing needs"),
        ("hf_unknown", "this token is not valid"),
    ],
)
def test_checks_tell_whose_token_it_is_and_whether_it_may_write(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    with serve() as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", token)
        s8.colab.checks(lines.append)
    assert said in lines[-1]
    assert token not in "".join(lines)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("raise BackendError('Unexpected response from the service.')", "attach it to this notebook"),
        ("raise ConnectionError('Connection error.')", "is this notebook's internet on?"),
        (f"return {{'HF_TOKEN': {TOKEN!r}}}[label]", "from the Kaggle secret HF_TOKEN"),
    ],
)
def test_kaggles_secret_is_taken_or_missed_with_advice(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, answer: str, said: str
) -> None:
    errors = "class CredentialError(Exception): pass\nclass BackendError(Exception): pass\n"
    client = f"class UserSecretsClient:\n    def get_secret(self, label):\n        {answer}\n"
    (tmp_path / "kaggle_secrets.py").write_text(errors + client)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = s8.colab.hf_token(lines.append)
    del sys.modules["kaggle_secrets"]
    assert found == (TOKEN if "return" in answer else None)
    assert said in lines[-1]


def test_elsewhere_a_missing_token_is_told(lines: list[str]) -> None:
    assert s8.colab.hf_token(lines.append) is None
    assert lines == ["Hugging Face token: none; set HF_TOKEN, or log in with `hf auth login`"]


def test_in_a_process_of_its_own_the_fake_shares_google_and_no_output_shows_the_token(tmp_path: Path) -> None:
    """As a notebook's kernel gets it: through PYTHONPATH, beside other packages of the namespace `google`."""
    (tmp_path / "elsewhere" / "google" / "protobuf").mkdir(parents=True)
    (tmp_path / "elsewhere" / "google" / "protobuf" / "__init__.py").touch()
    for name in ("content", "cloud"):
        (tmp_path / name).mkdir()
    program = """
import threading
import s8lib as s8, google.protobuf
from tests.saves import Machine
s8.colab.checks()
kept = s8.colab.mount_drive()
assert s8.colab.hf_token()
run = s8.colab.run_folder(kept, "quick")
machine = Machine(run.path, run.copies)
machine.run.say = print
with run.lock():
    for epoch in (1, 2, 3):
        machine.save(epoch)
        [thread.join() for thread in threading.enumerate() if thread.name == "copy to Google Drive"]
s8.colab.finish(run, disconnect=True)
"""
    paths = [FAKE, Path(s8.__file__).parents[1], tmp_path / "elsewhere"]
    done = subprocess.run(
        # But not what one library thinks of another, as matplotlib 3.9 and today's pyparsing do.
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "COLAB_RELEASE_TAG": "release-colab",
            "FAKE_COLAB_CONTENT": str(tmp_path / "content"),
            "FAKE_COLAB_DRIVE": str(tmp_path / "cloud"),
            "FAKE_COLAB_SECRET": TOKEN,
            "FAKE_DRIVE": '{"errno": 107, "after_checkpoints": 1, "copies": 1}',
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert TOKEN not in done.stdout
    assert re.findall(r"Google Drive: epoch (\d) was not sent", done.stdout) == ["2"]
    assert RunFolder(tmp_path / "cloud" / "s8lib" / "quick").manifest().epoch == 3
    assert (tmp_path / "content" / "unassigned").exists()
