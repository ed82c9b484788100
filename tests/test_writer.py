"""A save is written while training goes on, and is none the worse for it."""

from __future__ import annotations

import concurrent.futures
import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import s8lib as s8
from s8lib.run.checkpoint import Checkpoint
from s8lib.session import Writer
from tests.runs import assert_same_bits, outcome, small_model, train

SECOND = 2  # the epoch whose save is late


@pytest.fixture
def second_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something done before the save of the second epoch is written."""
    whole = Checkpoint.save

    def arrange(before: Callable[[], None]) -> None:
        def save(checkpoint: Checkpoint, path: Path) -> None:
            if checkpoint.epoch == SECOND:
                before()
            whole(checkpoint, path)

        monkeypatch.setattr(Checkpoint, "save", save)

    return arrange


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def when_evaluated(monkeypatch: pytest.MonkeyPatch, then: Callable[[int, Any], None]) -> None:
    """Call `then` with the number of each epoch and the model when it has been trained and is to be evaluated."""
    epochs = itertools.count(1)
    whole = s8.evaluate

    def evaluate(model: Any, *arguments: Any, **options: Any) -> Any:
        then(next(epochs), model)
        return whole(model, *arguments, **options)

    monkeypatch.setattr("s8lib.trainer.evaluate", evaluate)


def test_the_next_epoch_is_trained_while_a_save_is_written_and_the_save_is_of_its_own_epoch(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, second_save: Any
) -> None:
    trained, on_disk = threading.Event(), list[int]()

    def then(epoch: int, _: object) -> None:
        if epoch == SECOND + 1:
            on_disk.append(s8.RunFolder(tmp_path / "run").manifest().epoch)
            trained.set()

    second_save(lambda: trained.wait(60))
    when_evaluated(monkeypatch, then)
    train(tmp_path / "run", tiny)
    assert on_disk == [SECOND - 1], "trained on before the save was written"
    monkeypatch.undo()
    train(tmp_path / "whole", tiny)
    assert_same_bits(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    held = s8.RunFolder(tmp_path / "run").checkpoint(SECOND)
    same = s8.RunFolder(tmp_path / "whole").checkpoint(SECOND)
    assert held
    assert same
    assert all(tensor.equal(same.model[name]) for name, tensor in held.model.items())


def test_what_watches_is_shown_only_epochs_that_are_on_the_disk(tmp_path: Path, tiny: s8.Cifar100) -> None:
    seen = []
    train(tmp_path, tiny, watch=lambda log: seen.append((len(log), s8.RunFolder(tmp_path).manifest().epoch)))
    assert seen == [(epoch, epoch) for epoch in range(1, 7)]


def test_what_watches_changes_nothing_in_the_epoch_that_is_being_trained(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()

    def watch(log: s8.EpochLog) -> None:
        torch.rand(len(log))
        model.eval()

    def look(writer: Writer) -> None:  # the save has been made between the first two steps
        writer.finish()

    train(tmp_path / "alone", tiny, precision="fp32")
    monkeypatch.setattr(Writer, "look", look)
    train(tmp_path / "watched", tiny, model=model, precision="fp32", watch=watch)
    assert_same_bits(outcome(tmp_path / "watched"), outcome(tmp_path / "alone"))


def test_a_save_that_fails_ends_the_run_at_the_end_of_the_next_epoch(
    tmp_path: Path, tiny: s8.Cifar100, second_save: Any
) -> None:
    lines = list[str]()
    second_save(full)
    with pytest.raises(s8.RunFault, match=r"epoch 2 cannot be saved: .*the last good checkpoint is epoch 1"):
        train(tmp_path, tiny, lines=lines)
    assert [line for line in lines if line.startswith("epoch ")][-1].startswith("epoch   2/")
    assert not list(tmp_path.rglob("*.new"))


def test_a_run_does_not_end_before_its_last_save_has(tmp_path: Path, tiny: s8.Cifar100, second_save: Any) -> None:
    second_save(full)
    two = s8.Recipe(name="two", epochs=2, phase1_epochs=1, batch_size=50, warmup_epochs=1, cycle_epochs=1)
    with pytest.raises(s8.RunFault, match="epoch 2 cannot be saved"):
        train(tmp_path, tiny, recipe=two)


@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_waits_for_the_save_under_way_and_says_what_came_of_it(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, second_save: Any, fails: bool
) -> None:
    stopped, lines = threading.Event(), list[str]()

    def before() -> None:
        stopped.wait(60)
        if fails:
            full()

    def then(epoch: int, _: object) -> None:
        if epoch == SECOND + 1:
            stopped.set()
            raise KeyboardInterrupt

    second_save(before)
    when_evaluated(monkeypatch, then)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, lines=lines)
    assert f"stopped; the last good checkpoint is epoch {1 if fails else 2}" in lines[-1]
    assert any("epoch 2 cannot be saved" in line for line in lines) == fails


def test_ctrl_c_while_only_the_save_is_waited_for_says_what_came_of_it_too(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, second_save: Any
) -> None:
    evaluated, waiting, lines = threading.Event(), threading.Event(), list[str]()
    wait = concurrent.futures.wait

    def waited_for(saves: Any) -> object:
        if evaluated.is_set():
            waiting.set()
        return wait(saves)

    def before() -> None:
        waiting.wait(60)  # until the end of the third epoch waits for this save
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)
        full()

    second_save(before)
    monkeypatch.setattr("s8lib.session.concurrent.futures.wait", waited_for)
    when_evaluated(monkeypatch, lambda epoch, _: evaluated.set() if epoch == SECOND + 1 else None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, lines=lines)
    assert [line for line in lines if "epoch 2 cannot be saved" in line]
    assert "stopped; the last good checkpoint is epoch 1" in lines[-1]


def test_a_loss_that_is_not_finite_names_the_save_that_was_under_way(
    tmp_path: Path, tiny: s8.Cifar100, monkeypatch: pytest.MonkeyPatch, second_save: Any
) -> None:
    ruined = threading.Event()

    def then(epoch: int, model: s8.WideResNet) -> None:
        if epoch == SECOND + 1:
            threading.Timer(0.5, ruined.set).start()
            torch.nn.init.constant_(model.fc.bias, float("inf"))

    second_save(lambda: ruined.wait(60))
    when_evaluated(monkeypatch, then)
    with pytest.raises(s8.NonFiniteLoss, match="epoch 3 made the test loss infinite or NaN; .* is epoch 2 in"):
        train(tmp_path, tiny)
