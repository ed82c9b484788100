"""The notebooks as they are stored, and the training notebook on a Colab that loses its machine."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbval.plugin import get_sanitize_patterns

import s8lib as s8
from tests.runs import assert_same_bits, outcome

ROOT = Path(s8.__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in ROOT.glob("*.ipynb"))
MODEL, EPOCHS = "wrn-10-1", 4
RUN = f"quick-{EPOCHS}ep-{MODEL}-synthetic-seed0"


def outputs(notebook: nbformat.NotebookNode) -> str:
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_complete_and_hold_nothing_of_the_machine_they_were_made_on(name: str) -> None:
    notebook = nbformat.read(ROOT / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = re.sub(r'"image/(png|jpeg)": "[^"]*"|base64,[^"\\]*', "", outputs(notebook))
    unwanted = r"hf_\w{8}|/tmp|/home|/root|/work|/content|Traceback|Warning|\\r|object at 0x"
    assert not re.search(unwanted, text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_on_colab_with_a_gpu_and_a_table_of_contents(name: str) -> None:
    metadata = nbformat.read(ROOT / name, as_version=4).metadata
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"]["toc_visible"]


def test_of_a_compared_output_only_what_differs_between_runs_is_passed_over() -> None:
    patterns = get_sanitize_patterns((ROOT / "tests" / "nbval.cfg").read_text())
    assert len(patterns) == 3, "nbval passes silently over a section that it cannot read"

    def compared(text: str) -> str:
        for pattern, replacement in patterns:
            text = re.sub(pattern, replacement, text)
        return text

    row = (
        "    6*     1  0.051599        0      0  light"
        + "  2.8305  39.68     2.7043  33.40    67.40     1,855    3.3"
    )
    assert compared(row) == "    6     1  0.051599        0      0  light MEASURED"
    assert compared("  epoch_005.pt        5.7 MB") == "  epoch_005.ptSIZE"
    assert compared("Params size (MB): 2.68") == "Params size (MB): 2.68"


class FakeColab:
    """A fake Colab: the machine goes with `lose_machine`, its Drive stays."""

    def __init__(self, folder: Path) -> None:
        self.content, self.drive = folder / "content", folder / "My Drive"
        self.content.mkdir(parents=True)
        self.drive.mkdir()
        self.kept = self.drive / "s8lib-runs" / RUN

    def lose_machine(self) -> None:
        shutil.rmtree(self.content)
        self.content.mkdir()

    def run_all(self, die_in_epoch: int | None = None, faults: dict[str, int] | None = None) -> str:
        """Run the notebook from the top, through training, in a new kernel; what it printed.

        In epoch `die_in_epoch` the kernel gets SIGKILL, once the epoch before is logged and its copy has ended.
        """
        notebook = nbformat.read(ROOT / "session_8.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        (training,) = (number for number, cell in enumerate(cells) if "s8.train(" in cell.source)
        notebook.cells = cells[: training + 1]
        for cell in notebook.cells:
            cell.outputs = []
            cell.source = cell.source.replace("EPOCHS = 0", f"EPOCHS = {EPOCHS}").replace(
                '"default"', f'"{MODEL}"', 1
            )
        if die_in_epoch:
            cells[training].source = DYING.format(epoch=die_in_epoch) + cells[training].source.replace(
                "watch=s8.report.LiveCurves(recipe)", "watch=die"
            )
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "fake_colab"), str(ROOT)]),
            "COLAB_RELEASE_TAG": "release",
            "FAKE_COLAB_CONTENT": str(self.content),
            "FAKE_COLAB_DRIVE": str(self.drive),
            "FAKE_DRIVE": json.dumps(faults or {}),
            "S8_DATA": "synthetic",
        }
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": self.content}})
        if die_in_epoch:
            with pytest.raises(DeadKernelError):
                client.execute(env=environment)
        else:
            client.execute(env=environment)
        return outputs(notebook)


DYING = """
import os, signal

def die(log):
    if len(log) == {epoch} - 1:
        run.mirror.wait(run)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.05)

"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a machine that was not lost."""
    colab = FakeColab(tmp_path_factory.mktemp("uninterrupted"))
    colab.run_all()
    return colab.content / "runs" / RUN


def assert_same_end(run: Path, other: Path) -> None:
    ends = [outcome(folder) for folder in (run, other)]
    for end in ends:
        end["kept"] = None  # the checkpoints of before are not those of the same epochs
        end["best"] = {name: end["best"][name] for name in ("epoch", "sha256")}
    assert_same_bits(*ends)


def epochs_kept(colab: FakeColab) -> list[int]:
    return [entry["epoch"] for entry in s8.RunFolder(colab.kept).manifest()["checkpoints"].values()]


def test_run_all_after_the_kernel_was_killed_and_its_machine_lost_ends_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Path
) -> None:
    colab = FakeColab(tmp_path)
    colab.run_all(die_in_epoch=3)
    assert epochs_kept(colab) == [1, 2]
    colab.lose_machine()
    said = colab.run_all()
    assert "epoch 2 is brought here" in said
    assert "epoch   3/4" in said
    assert "epoch   2/4" not in said
    assert_same_end(colab.content / "runs" / RUN, uninterrupted)
    assert epochs_kept(colab) == [1, 2, 3, 4]
    assert_same_end(colab.kept, uninterrupted)


def test_run_all_goes_on_from_what_a_drive_kept_that_failed_half_way_and_came_back(
    tmp_path: Path, uninterrupted: Path
) -> None:
    colab = FakeColab(tmp_path)
    colab.run_all(die_in_epoch=3, faults={"errno": errno.ENOTCONN, "after_checkpoints": 1, "copies": 1})
    assert epochs_kept(colab) == [1], "the copy of epoch 2 failed"
    colab.lose_machine()
    said = colab.run_all(faults={"errno": errno.ENOTCONN, "after_checkpoints": 0, "copies": 1})
    assert said.count("Google Drive: epoch 2 was not copied") == 1
    assert "Google Drive: works again" in said
    assert_same_end(colab.content / "runs" / RUN, uninterrupted)
    assert max(epochs_kept(colab)) == EPOCHS


def test_run_all_passes_over_a_truncated_checkpoint_on_the_drive(tmp_path: Path, uninterrupted: Path) -> None:
    colab = FakeColab(tmp_path)
    colab.run_all(die_in_epoch=3)
    os.truncate(colab.kept / "checkpoints" / "epoch_002.pt", 1000)
    colab.lose_machine()
    said = colab.run_all()
    assert "epoch_002.pt is damaged there: passed over" in said
    assert "epoch   2/4" in said
    assert_same_end(colab.content / "runs" / RUN, uninterrupted)


def test_a_full_drive_stops_no_training_and_keeps_the_newest_checkpoint_it_has_room_for(
    tmp_path: Path, uninterrupted: Path
) -> None:
    colab = FakeColab(tmp_path)
    size = sum(file.stat().st_size for file in uninterrupted.rglob("*") if file.is_file())
    room = {"quota": size * 2 // 3}
    colab.run_all(die_in_epoch=3, faults=room)
    assert epochs_kept(colab)
    colab.lose_machine()
    said = colab.run_all(faults=room)
    assert "finished: final epoch 4" in said
    assert_same_end(colab.content / "runs" / RUN, uninterrupted)
