"""The epoch log is the specification's table, in a checkpoint to the last bit and in a file that people read."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import s8lib as s8
from s8lib.run.checkpoint import Checkpoint

HEADER = (
    "epoch,phase,lr,dropout,mixup_alpha,augmentation,train_loss,train_acc,"
    "test_loss,test_acc,test_top5,best_acc,images_per_s,seconds"
)
COLUMNS = HEADER.split(",")


def row(epoch: int, test_acc: float, **fields: Any) -> s8.Epoch:
    values = {
        "epoch": epoch,
        "phase": 1,
        "lr": 0.1 / 3,
        "dropout": 0.3,
        "mixup_alpha": 0.2,
        "augmentation": "full",
        "train_loss": 2 / 3,
        "train_acc": 200 / 3,
        "test_loss": 4 / 3,
        "test_acc": test_acc,
        "test_top5": 280 / 3,
        "best_acc": test_acc,
        "images_per_s": 10_000 / 7,
        "seconds": 100 / 7,
    }
    return s8.Epoch(**values | fields)


@pytest.fixture
def log() -> s8.EpochLog:
    return s8.EpochLog([row(1, 50 / 3), row(2, 70 + 1 / 3), row(3, 60.0), row(4, 70 + 1 / 3), row(5, 200 / 3)])


@pytest.fixture
def held_out() -> s8.EpochLog:
    """The test set prefers epoch 2, the held-out images epoch 3."""
    return s8.EpochLog(
        [row(1, 10.0, holdout_acc=11.0), row(2, 70.0, holdout_acc=60.0), row(3, 65.0, holdout_acc=62.0)]
    )


def test_the_columns_are_the_specifications_in_their_order(log: s8.EpochLog, tmp_path: Path) -> None:
    assert log.to_csv().splitlines()[0] == HEADER
    assert s8.EpochLog().to_csv() == HEADER + "\n"
    (tmp_path / "epoch_log.csv").write_text(log.to_csv())
    with open(tmp_path / "epoch_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(columns) for columns in rows] == [COLUMNS] * 5
    assert [line["epoch"] for line in rows] == ["1", "2", "3", "4", "5"]


def test_holdout_is_one_more_column_where_images_are_held_out(held_out: s8.EpochLog) -> None:
    assert held_out.to_csv().splitlines()[0].split(",") == [*COLUMNS, "holdout_acc"]
    assert [line.rsplit(",", 1)[1] for line in held_out.to_csv().splitlines()[1:]] == ["11", "60", "62"]


@pytest.mark.parametrize("name", ["log", "held_out"])
def test_a_checkpoint_holds_the_log_to_the_last_bit(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    log: s8.EpochLog = request.getfixturevalue(name)
    Checkpoint({}, {}, {}, {}, log).save(tmp_path / "epoch.pt")
    assert Checkpoint.load(tmp_path / "epoch.pt").log == log


@pytest.mark.parametrize("name", ["log", "held_out"])
def test_the_file_is_read_back_as_it_was_written(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    log: s8.EpochLog = request.getfixturevalue(name)
    file = tmp_path / "epoch_log.csv"
    file.write_text(log.to_csv())
    read = s8.EpochLog.read(file)
    assert read.to_csv() == log.to_csv()
    assert read.best.epoch == log.best.epoch
    for there, here in zip(read, log, strict=True):
        for field in dataclasses.fields(s8.Epoch):
            wrote, found = getattr(here, field.name), getattr(there, field.name)
            assert type(found) is type(wrote), field.name
            assert found == (pytest.approx(wrote, rel=1e-3) if isinstance(wrote, float) else wrote), field.name


def test_the_smallest_rate_of_a_recipe_survives_the_file(tmp_path: Path) -> None:
    file = tmp_path / "epoch_log.csv"
    file.write_text(s8.EpochLog([row(100, 80.0, lr=1.0000254e-5)]).to_csv())
    assert s8.EpochLog.read(file)[0].lr == pytest.approx(1.0000254e-5, rel=1e-5)


def test_the_file_of_a_run_without_an_epoch_yet_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "epoch_log.csv").write_text(s8.EpochLog().to_csv())
    assert s8.EpochLog.read(tmp_path / "epoch_log.csv") == []


def test_best_is_the_first_of_the_highest(log: s8.EpochLog) -> None:
    assert log.best.epoch == 2
    log.append(row(6, 70.4))
    assert log.best.epoch == 6


def test_held_out_images_choose_the_best_where_there_are_any(held_out: s8.EpochLog) -> None:
    assert held_out.best.epoch == 3


def test_an_empty_log_has_no_best() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        _ = s8.EpochLog().best


def test_it_is_a_sequence_of_rows(log: s8.EpochLog) -> None:
    assert len(log) == 5
    assert [entry.epoch for entry in log] == [1, 2, 3, 4, 5]
    assert (log[0].epoch, log[-1].epoch) == (1, 5)


def test_the_summary_shows_final_and_best_and_admits_that_the_test_set_chose(log: s8.EpochLog) -> None:
    summary = log.summary()
    assert "final epoch 5: 66.67%" in summary
    assert "best epoch 2: 70.33%, chosen on the test set itself, which flatters it" in summary
    assert "1.2 min" in summary


def test_the_summary_of_a_long_run_is_a_line_that_a_notebook_does_not_wrap(log: s8.EpochLog) -> None:
    log.append(dataclasses.replace(row(100, 100.0), seconds=60_000.0))
    assert len(f"finished: {log.summary()}") <= 135


def test_the_summary_says_when_held_out_images_chose(held_out: s8.EpochLog) -> None:
    summary = held_out.summary()
    assert "final epoch 3: 65.00%" in summary
    assert "best epoch 3: 65.00%, chosen on held-out training images" in summary
    assert "the test set itself" not in summary


def test_the_line_of_an_epoch_shows_it_and_the_best_so_far(log: s8.EpochLog) -> None:
    line = log.line(100)
    assert line.startswith("epoch   5/100  lr 0.0333")
    for part in ("train 0.667  66.67%", "test  1.333  66.67%", "best  70.33% @2"):
        assert part in line


def test_the_lines_of_epochs_stand_in_columns_and_fit_a_notebook() -> None:
    start, end = row(1, 1.0, train_acc=1.0, test_loss=11.32), row(100, 100.0, train_acc=100.0)
    lines = [s8.EpochLog(rows).line(100) + "  2 h 20 min left, until 10:24" for rows in ([start], [start, end])]
    assert {len(line) for line in lines} == {115}
    for word in (" lr ", "%  test", "%  best", "% @", " left"):
        assert lines[0].index(word) == lines[1].index(word), word


@pytest.mark.parametrize(
    "content",
    [
        "name,age\nAda,36\n",
        HEADER + "\n1,1,0.1\n",
        HEADER + "\n" + ",".join(["many"] * 14) + "\n",
        ",".join(COLUMNS[:-1]) + "\n1,1,0.1,0.3,0.2,full,1,1,1,1,1,1,1\n",
        HEADER + "\n1,1,0.1,0.3,0.2,full,1,1,1,1,1,1,1,1,extra\n",
    ],
    ids=["foreign", "cut off", "not numbers", "a column missing", "a value too many"],
)
def test_a_file_that_is_no_epoch_log_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match="is not an epoch log") as caught:
        s8.EpochLog.read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"name,age\n", b"\xff\xd8\xff\xe0 a picture\n"])
def test_an_empty_or_binary_file_is_no_epoch_log_either(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not an epoch log") as caught:
        s8.EpochLog.read(file)
    assert str(file) in str(caught.value)
