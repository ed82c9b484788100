"""A run goes on from whatever it finds, or says in one sentence why it does not."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import s8lib as s8
from s8lib.machine.arithmetic import arithmetic, taken_up, tell_what_differs
from s8lib.report import make_card, overview
from s8lib.run.copies import stage
from s8lib.run.drive import DriveFolder
from s8lib.run.folder import how_to_go_on
from s8lib.run.save import FORMAT, LOG, NEW, Manifest, content_of, replacing
from tests.runs import RECIPE, Cut, assert_same_bits, outcome, recipe, small_model, train
from tests.saves import Machine, contents

SHORT = recipe(epochs=2, phase1_epochs=1)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> Path:
    """A run of two epochs of which one is done, in fp32 with one thread."""
    folder = tmp_path_factory.mktemp("begun")
    with one_thread(), pytest.raises(Cut):
        train(folder, tiny, cut_after=1, recipe=SHORT, precision="fp32")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with one_thread():
        train(folder, tiny, recipe=SHORT, precision="fp32")
    return folder


@pytest.fixture
def run(tmp_path: Path, begun: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def one_thread() -> Any:
    return threads(1)


class threads:
    """That many threads for torch, for a while."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def go_on(run: Path, data: s8.Cifar100, **options: Any) -> list[str]:
    """Go on with SHORT; what was said."""
    lines: list[str] = []
    train(run, data, recipe=SHORT, lines=lines, **options)
    return lines


# What the arithmetic depends on ----------------------------------------------------------------------------------


def test_threads_and_precision_of_the_save_are_taken_up(run: Path, finished: Path, tiny: s8.Cifar100) -> None:
    with threads(2):
        lines = go_on(run, tiny)
        assert torch.get_num_threads() == 2, "the caller's setting comes back"
    assert not [line for line in lines if line.startswith("NOTE")]
    assert_same_bits(outcome(run), outcome(finished))


@pytest.mark.parametrize(
    ("asked", "saved", "of", "chosen"),
    [
        ("auto", "fp32", "cpu", "fp32"),
        ("auto", "fp16", "cpu", "bf16"),
        ("bf16", "fp32", "cpu", "bf16"),
        ("auto", "fp32", "Tesla T4", "bf16"),
    ],
)
def test_the_saves_precision_is_taken_up_where_it_is_native_here_and_no_other_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, saved: str, of: str, chosen: str
) -> None:
    def pick(device: torch.device, precision: str = "auto") -> str:
        return "bf16" if precision == "auto" else precision

    monkeypatch.setattr("s8lib.machine.arithmetic.pick_precision", pick)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    with taken_up(torch.device("cpu"), asked, {"precision": saved, "device": of}) as precision:
        assert precision == chosen


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_than_last_bits_differ_where_ranks_mixed_each_its_own_images_or_were_more_or_fewer(
    ranks: int,
) -> None:
    own = {"dropout masks": "torch", "sync_batchnorm": False}
    here = arithmetic(torch.device("cpu"), "fp32", False, ranks, False, own)
    lines: list[str] = []
    tell_what_differs(here, here, lines.append)
    tell_what_differs({key: value for key, value in here.items() if key != "mixup partners"}, here, lines.append)
    words = "mixup partners \"of a rank's share\", now 'of the batch'"
    assert lines == [f"NOTE: weights will differ from an uninterrupted run's: {words}"] * (ranks - 1)
    lines.clear()
    tell_what_differs(here | {"ranks": 4}, here, lines.append)
    assert lines == [f"NOTE: weights will differ from an uninterrupted run's: ranks 4, now {ranks}"]


def test_what_is_not_taken_up_is_said_in_one_line(run: Path, tiny: s8.Cifar100) -> None:
    state = torch.load(run / "checkpoints" / "epoch_001.pt", weights_only=True)
    state["arithmetic"] |= {"instructions": "AVX2", "torch": "1.0", "threads": 999, "sync_batchnorm": True}
    state["arithmetic"] |= {"device": "mps", "compiled": True, "deterministic": False}
    replace_checkpoint(run, state)
    notes = [line for line in go_on(run, tiny, precision="bf16") if line.startswith("NOTE")]
    assert len(notes) == 1
    for words in (
        "precision 'fp32', now 'bf16'",
        "threads 999, now",
        "instructions 'AVX2', now",
        "torch '1.0', now",
        "sync_batchnorm True, now False",
        "device 'mps', now 'cpu'",
        "compiled True, now False",
        "deterministic False, now True",
    ):
        assert words in notes[0]


def replace_checkpoint(run: Path, state: object) -> None:
    """Put `state`, bytes or what torch.save takes, in the place of epoch 1's, and let the manifest name it."""
    path = run / "checkpoints" / "epoch_001.pt"
    path.write_bytes(state) if isinstance(state, bytes) else torch.save(state, path)
    folder = s8.RunFolder(run)
    manifest = folder.manifest()
    folder.install(
        dataclasses.replace(manifest, files=manifest.files | {"checkpoints/epoch_001.pt": content_of(path)})
    )


# Checkpoints of strangers ----------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("/tmp/s8lib-a-pickle-has-run",)


def pickled(what: object) -> bytes:
    out = io.BytesIO()
    torch.save(what, out)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("readme.txt", "nothing")
    return out.getvalue()


def changed(**parts: Any) -> Callable[[dict[str, Any]], object]:
    """The real checkpoint with other parts; None leaves one out."""
    return lambda state: {key: value for key, value in (state | parts).items() if value is not ...}


def with_weights(state: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return state | {"model": {name: change(value) for name, value in state["model"].items()}}


def with_momentum(optimizer: dict[str, Any]) -> dict[str, Any]:
    return optimizer | {"state": {k: {"momentum_buffer": torch.zeros(3)} for k in optimizer["state"]}}


def two_epochs(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"epoch": epoch} for epoch in (1, 2) for row in log]


def of_another_run(identity: dict[str, Any]) -> dict[str, Any]:
    return identity | {"recipe": identity["recipe"] | {"lr_peak": 0.123}}


STRANGERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "empty file": lambda state: b"",
    "text": lambda state: b"hello",
    "a text that begins as a pickle may": lambda state: b"X12",
    "bare pickle": lambda state: pickle.dumps({"model": 1}),
    "malicious pickle": lambda state: pickle.dumps(Malicious()),
    "malicious in torch's zip": lambda state: pickled({"model": Malicious()}),
    "no zip": lambda state: b"PK\3\4" + bytes(100),
    "another zip": lambda state: zipped(),
    "half of it": lambda state: pickled(state)[:1000],
    "empty dictionary": lambda state: {},
    "list": lambda state: [1, 2],
    "number": lambda state: 5,
    "tensor": lambda state: torch.zeros(3),
    "keys that are numbers": lambda state: {1: 2},
    "no model": changed(model=...),
    "no optimizer": changed(optimizer=...),
    "no log": changed(log=...),
    "no identity": changed(identity=...),
    "null identity": changed(identity=None),
    "identity without parts": changed(identity={"recipe": 3}),
    "null model": changed(model=None),
    "model of numbers": changed(model={"conv1.weight": 1}),
    "no weights": changed(model={}),
    "null optimizer": changed(optimizer=None),
    "momentum of another shape": lambda state: state | {"optimizer": with_momentum(state["optimizer"])},
    "optimizer of another shape": changed(optimizer={"state": {}, "param_groups": []}),
    "arithmetic of lists": changed(arithmetic={"precision": []}),
    "null log": changed(log=None),
    "empty log": changed(log=[]),
    "log of numbers": changed(log=[1]),
    "unknown column": lambda state: state | {"log": [row | {"new": 1} for row in state["log"]]},
    "a column less": lambda state: state | {"log": [{"epoch": 1}]},
    "a text for a number": lambda state: state | {"log": [row | {"test_acc": "high"} for row in state["log"]]},
    "a log of another epoch": lambda state: state | {"log": [row | {"epoch": 7} for row in state["log"]]},
    "a log of two epochs, as the first's": lambda state: state | {"log": two_epochs(state["log"])},
    "another run": lambda state: state | {"identity": of_another_run(state["identity"])},
    "null scaler": changed(scaler=None),
    "unknown part": changed(more=1),
    "other shapes": lambda state: with_weights(state, lambda value: value[..., :1] if value.ndim else value),
    "another network": lambda state: state | {"model": {f"x.{k}": v for k, v in state["model"].items()}},
    "weights that are no numbers": lambda state: with_weights(state, lambda value: value.float() * float("nan")),
}  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_strangers_checkpoint_is_refused_in_one_sentence_and_no_pickle_runs(
    run: Path, tiny: s8.Cifar100, stranger: str
) -> None:
    state = torch.load(run / "checkpoints" / "epoch_001.pt", weights_only=True)
    replace_checkpoint(run, STRANGERS[stranger](state))
    before, model = contents(run), small_model()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(s8.RunError) as raised:
        go_on(run, tiny, model=model)
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert contents(run) == before
    assert not Path("/tmp/s8lib-a-pickle-has-run").exists()


# Files that a run can do without ---------------------------------------------------------------------------------

HALF = [b"", b"null", b"[1, 2]", b'{"a": ', b"\xff\xfe", b"[" * 100_000]


def test_what_lies_in_the_place_of_a_file_that_informs_stays_and_stops_nothing(
    run: Path, finished: Path, tiny: s8.Cifar100
) -> None:
    for name in ("environment.json", "recipe.json"):
        (run / name).unlink()
        (run / name / "mine").mkdir(parents=True)
    said = go_on(run, tiny)
    assert len([line for line in said if "cannot be replaced" in line]) == 2
    assert {path.parent.name for path in run.glob("*/mine")} == {"environment.json", "recipe.json"}
    assert_same_bits(outcome(run), outcome(finished))


@pytest.mark.parametrize("content", HALF)
def test_files_that_inform_never_stop_a_run(run: Path, finished: Path, tiny: s8.Cifar100, content: bytes) -> None:
    for name in ("environment.json", "recipe.json", "report.json"):
        (run / name).write_bytes(content)
    go_on(run, tiny)
    assert_same_bits(outcome(run), outcome(finished))
    assert s8.RunFolder(run).recipe().seed == SHORT.seed
    assert s8.RunFolder(run).sessions()[-1]["from_epoch"] == 2


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "header or first byte only": lambda path: path.write_bytes(path.read_bytes().splitlines()[0] + b"\n"),
    "a row or line less": lambda path: path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:-1])),
    "as a spreadsheet saves it": lambda path: path.write_bytes(path.read_bytes().replace(b",", b";")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [LOG, "best/config.json", "best/model.safetensors"])
def test_a_finished_run_whose_files_are_damaged_is_healed_from_its_newest_checkpoint(
    tmp_path: Path, finished: Path, tiny: s8.Cifar100, name: str, damage: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    whole = s8.RunFolder(finished)
    DAMAGES[damage](run / name)
    if name == LOG:
        (run / NEW / "checkpoints").mkdir(parents=True)  # where a kill before it was moved leaves it
        (run / "checkpoints" / "epoch_002.pt").rename(run / NEW / "checkpoints" / "epoch_002.pt")
        assert [row.epoch for row in s8.RunFolder(run).log()] == [1, 2], "readers need no healing"
    assert "this run is finished" in go_on(run, tiny)[-1]
    assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert s8.RunFolder(run).best_weights()[0] == whole.best_weights()[0]
    s8.load_model(run / "best")


def test_a_log_that_another_program_holds_open_ends_nothing(
    run: Path, finished: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def held_open(source: Any, target: Any) -> None:
        if Path(target).name == LOG:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", held_open)
        lines = go_on(run, tiny)
    assert [LOG in line and "held open" in line for line in lines].count(True) >= 1
    assert [row.epoch for row in s8.RunFolder(run).log()] == [1, 2]
    assert "this run is finished" in go_on(run, tiny)[-1]
    assert_same_bits(outcome(run), outcome(finished))
    assert [row.epoch for row in s8.EpochLog.read(run / LOG)] == [1, 2]


def test_a_checkpoint_that_was_passed_over_is_not_the_last_good_one_and_the_epoch_after_it_is_not_the_first(
    tmp_path: Path,
) -> None:
    Machine(tmp_path / "run").until(3)
    os.truncate(tmp_path / "run" / "checkpoints" / "epoch_003.pt", 1000)
    again = Machine(tmp_path / "run")
    assert again.resumed() == 2
    again.run.begin_session(RECIPE, {})
    assert "the last good checkpoint is epoch 2 in" in how_to_go_on(again.run)
    assert again.run.sessions()[-1]["from_epoch"] == 3


def test_a_row_of_an_epoch_that_was_never_saved_is_seen_by_no_reader(tmp_path: Path, finished: Path) -> None:
    def said(run: s8.RunFolder) -> list[str]:
        """By all that tell of a run: the overview, the report, the card, and what is sent to other places."""
        written = s8.report.write(run, film=False)["report.json"].read_text()
        sending = stage(DriveFolder(tmp_path / "drive"), run, {}, "")
        return [str(overview(run)), written, make_card(run, "a/b").text, (sending.folder / LOG).read_text()]

    without, longer = (s8.RunFolder(shutil.copytree(finished, tmp_path / name / "run")) for name in ("a", "b"))
    row = dataclasses.replace(longer.log()[-1], epoch=3, test_acc=99.0)
    (longer.path / LOG).write_text(s8.EpochLog([*longer.log(), row]).to_csv())
    (without.path / LOG).unlink()
    assert said(longer) == said(without)


# The disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small filesystem to fill")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_with_its_room_and_the_last_good_checkpoint(small_disk: Path) -> None:
    machine = Machine(small_disk / "run").until(2)
    before = contents(machine.path)
    (small_disk / "holiday.mp4").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(s8.RunFault) as raised:
        machine.until(3)
    assert "epoch 3 cannot be saved: the disk is full (" in str(raised.value)
    assert "the last good checkpoint is epoch 2" in str(raised.value)
    assert contents(machine.path) == before, "nothing half-written stays"
    (small_disk / "holiday.mp4").write_bytes(bytes(os.stat(small_disk / "holiday.mp4").st_size + 8192))
    with pytest.raises(s8.RunFault, match="this start cannot be saved: the disk is full .* epoch 2"):
        s8.RunFolder(small_disk / "run").begin_session(RECIPE, {"device": "x" * 9000})
    (small_disk / "holiday.mp4").unlink()
    again = Machine(small_disk / "run")
    assert again.resumed() == 2
    assert again.until(4).resumed() == 4


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(s8.RunError, match="its file system has no locks"), s8.RunFolder(tmp_path / "run").lock():
        pass


def test_a_read_only_folder_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(s8.RunError, match="Read-only file system"), s8.RunFolder(small_disk / "run").lock():
        pass


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    run = s8.RunFolder(tmp_path / "run")
    with (
        run.lock(),
        pytest.raises(s8.RunError, match="another process is training"),
        s8.RunFolder(run.path).lock(),
    ):
        pass


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(s8.RunError, match="file"), s8.RunFolder(tmp_path / "file" / "run").lock():
        pass


# What a kill leaves ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing of the interrupted code but `finally` runs after it."""


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink", "mkdir"])
def test_a_kill_before_any_file_operation_loses_at_most_the_save_it_hit_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, number, before = getattr(os, call), 0, Machine(tmp_path / "before").until(7)
    seen = set()
    while True:
        calls, number = 0, number + 1
        machine = Machine(shutil.copytree(before.path, tmp_path / f"{number}"))
        assert machine.resumed() == 7

        def die(*arguments: Any, last: int = number, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, die)
            try:
                machine.save(8, best_at=(8,))
                ended = True
            except Killed:
                ended = False
        after = Machine(machine.path)
        epoch = after.resumed()
        seen.add(epoch)
        assert epoch == 8 if ended else epoch in (7, 8)
        assert after.best() == epoch, "best is the one that the save of that epoch names"
        kept = sorted(after.run.manifest().checkpoints)
        assert kept == list(range(epoch - 4, epoch + 1))
        found = {path.relative_to(after.path).as_posix() for path in after.path.rglob("*") if path.is_file()}
        assert found == {*after.run.manifest().files, "manifest.json", "recipe.json", "environment.json"}
        assert sorted(after.save(epoch + 1).run.manifest().checkpoints) == list(range(epoch - 3, epoch + 2))
        if ended:
            break
    assert 8 in seen


def test_strangers_beside_the_checkpoints_take_no_place_and_are_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "run").until(2)
    strangers = ["epoch_999.pt", "model.pt", "epoch_003.pt.partial"]
    for name in strangers:
        (machine.run.checkpoints / name).write_bytes(b"mine")
    again = Machine(machine.path)
    assert again.resumed() == 2
    assert any("epoch_999.pt is no part of the run's saves: left alone" in line for line in again.lines)
    again.until(9)
    assert sorted(again.run.manifest().checkpoints) == [5, 6, 7, 8, 9]
    assert all((machine.run.checkpoints / name).read_bytes() == b"mine" for name in strangers)


def test_what_was_staged_for_a_copy_is_removed_when_the_run_goes_on_without_one(
    run: Path, tiny: s8.Cifar100
) -> None:
    for name in (".hub/outgoing/model.safetensors", ".outgoing/3f/checkpoints/epoch_001.pt"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_bytes(b"staged")
    go_on(run, tiny)
    assert not (run / ".hub").exists()
    assert not (run / ".outgoing").exists()


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_manifest_that_changes_in_mid_run_is_a_fault_and_not_bad_input(tmp_path: Path, what: str) -> None:
    machine = Machine(tmp_path / "run").until(2)
    path = machine.path / "manifest.json"
    path.unlink() if what == "deleted" else path.write_bytes(Manifest(writer="another").seal())
    with pytest.raises(s8.RunFault, match="epoch 3"):
        machine.until(3)


# What a network or a caller brings -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.Sequential(model)])
def test_a_wrapped_network_is_refused_before_anything_is_written(
    tmp_path: Path, tiny: s8.Cifar100, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    with pytest.raises(s8.ModelError, match="takes one of the library's networks itself"):
        train(tmp_path / "run", tiny, model=wrap(small_model()))
    assert not (tmp_path / "run").exists()


def test_a_first_epoch_that_is_cut_short_leaves_the_weights_of_the_start(
    tmp_path: Path, tiny: s8.Cifar100, finished: Path
) -> None:
    model, steps = small_model(), 0
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupt(module: nn.Module, _: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(interrupt)
    with one_thread(), pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, model=model, recipe=SHORT, precision="fp32")
    hook.remove()
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    with one_thread():
        train(tmp_path, tiny, model=model, recipe=SHORT, precision="fp32")
    assert_same_bits(outcome(tmp_path), outcome(finished))


def test_callers_settings_of_gradients_and_types_change_nothing(
    tmp_path: Path, tiny: s8.Cifar100, finished: Path
) -> None:
    model = small_model()
    torch.set_default_dtype(torch.float64)
    try:
        with one_thread(), torch.no_grad(), torch.inference_mode():
            train(tmp_path, tiny, model=model, recipe=SHORT, precision="fp32")
        with pytest.raises(s8.ModelError, match="not in float32"):
            train(tmp_path / "other", tiny, model=small_model(), recipe=SHORT, precision="fp32")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(outcome(tmp_path), outcome(finished))


# Numbers -------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_told_by_single_images_even_of_many(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "run").until(1)
    n = 1_000_003
    shares = [100 * hits / n for hits in (500_000, 500_001)]
    rows = [dataclasses.replace(machine.log[0], epoch=1 + i, test_acc=share) for i, share in enumerate(shares)]
    (tmp_path / LOG).write_text(s8.EpochLog(rows).to_csv())
    assert s8.EpochLog.read(tmp_path / LOG).best.epoch == 2


def test_the_manifest_carries_its_format_and_every_file_of_the_save(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "run").until(3)
    text = json.loads((machine.path / "manifest.json").read_text())
    assert text["format"] == FORMAT
    assert [*text["files"]] == sorted(text["files"]), "the same save is the same text, and no commit on the Hub"
    assert set(text["files"]) == {
        *(f"checkpoints/epoch_{n:03d}.pt" for n in (1, 2, 3)), "best/config.json", "best/model.safetensors", LOG
    }  # fmt: skip
    for name, entry in text["files"].items():
        assert content_of(machine.path / name) == s8.RunFolder(machine.path).manifest().files[name]
        assert entry["bytes"] == (machine.path / name).stat().st_size


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with contextlib.suppress(Killed), replacing(path) as partial:
        partial.write_text("half of the n")
        raise Killed
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
