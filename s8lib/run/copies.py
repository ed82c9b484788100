"""Keep a run's saves in another place, in the background: stage, send, see what came of it, try again, finish.

Training stages the files of a save, as links where it can, and goes on; a thread sends them. What is to be said is
said by the one who trains, between epochs: a thread's words would end up in whatever notebook cell is running.
"""

import dataclasses
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s8lib.machine.progress import byte_bar
from s8lib.run.folder import RunFolder
from s8lib.run.place import Place, Sending, bring
from s8lib.run.save import CARD, CONFIG, FULL, LOG, NEW, OUTGOING, WEIGHTS, RunError, RunFault, content_of, holds

TICK = 0.1  # seconds between two looks at a copy that is waited for
TOLD_EVERY = 30.0  # seconds, where no bar is seen
LOOK = 2.0  # seconds that a save may wait for a place to say whose it is
RETRIES = 4  # before a run that is on no disk here is refused: with a Hub that hangs they take five minutes
LONGEST_PAUSE = 900.0  # seconds; each failure doubles the pause before the next attempt


class Copies:
    """Keeps the saves of a run in `place`.

    Args:
        every: epochs between copies; the last save is always sent.
        wait: seconds without a byte moving, as far as `place` can tell, that `finish` may wait.
        pause: seconds before a failed copy is tried again; None for not before the next save.
    """

    def __init__(self, place: Place, every: int = 1, wait: float = 600.0, pause: float | None = None) -> None:
        self.place, self.every, self.wait, self.pause = place, every, wait, pause
        self._sent: tuple[Path, int] | None = None
        self._own = {""}  # training processes whose saves were on this disk before anything came from `place`
        self._due, self._failures, self._not_before = False, 0, 0.0
        self.problem: Exception | None = None

    def extras(self, run: RunFolder) -> tuple[Mapping[str, Path | str | bytes], str]:
        """What is sent beside the save, files or texts by their names, and what the copy is called."""
        return {path.name: path for path in run.small_files()}, f"epoch {run.manifest().epoch}"

    def fetch(self, run: RunFolder, newest: int, identity: Mapping[str, Any] | None) -> int:
        """`place.bring`; a place that cannot be read is said, unless a run would start over because of that."""
        place, pauses = self.place, [self.pause * 2**n for n in range(RETRIES)] if self.pause is not None else []
        if sending := self._under_way:
            sending.join(self.wait)
        self._own |= {run.writer, run.manifest().writer}
        while True:
            try:
                return bring(place, run, newest, identity)
            except OSError as error:
                shutil.rmtree(run.path / NEW, ignore_errors=True)  # what came before the place was gone
                self._failures += 1
                if error.errno in FULL:  # this disk: reading fills no place
                    raise RunError(f"{run.path}: no room for what comes from {place.title} ({error})") from error
                if newest:
                    run.say(f"{place.title}: cannot be read ({error}); going on from epoch {newest} in {run.path}")
                    return 0
                if not pauses:
                    raise RunError(
                        f"{place.address} cannot be read ({error}), and a run must not start over because of "
                        f"that: see that {place.title} can be read and repeat this or, if this run is new, train "
                        "without it and send it there later"
                    ) from error
                run.say(f"{place.title}: cannot be read ({error}); it is tried again in {pauses[0]:.0f} s")
            time.sleep(pauses.pop(0))

    def claim(self, run: RunFolder) -> None:
        """Tell the place that this process goes on with the run."""
        try:
            if self.place.claim(run.manifest()) not in self._own:
                run.say(f"{self.place.title}: the run is this machine's now; one that still trains it stops")
        except OSError as error:
            if not self._failures:  # else it has been said
                run.say(f"{self.place.title}: cannot be written to now ({error}); tried again with the next save")

    def after_save(self, run: RunFolder) -> None:
        """Tell how the copy under way has ended, if it has, and start the next one if it is due.

        Raises:
            RunFault: another training process has taken the run over there.
        """
        self._collect(run)
        self._due = self._due or run.manifest().epoch % self.every == 0
        sending = self._start(run)
        if sending and sending.looked.wait(LOOK) and isinstance(sending.problem, RunFault):
            sending.join()
            self._collect(run)

    def finish(self, run: RunFolder) -> bool:
        """Send the newest save, wait while its bytes move, and say what is there; whether that is everything."""
        epoch = run.manifest().epoch
        if not epoch:
            return True
        self._failures, self._not_before = 0, 0.0  # the last chance does not wait for a pause of before
        self._collect(run)
        if self.pause is None:
            self._sent, self._due = None, True  # other files may be newer; what is there is not sent again
        sending = self._under_way
        on_its_way = sending and (sending.run_path, sending.manifest.epoch)
        self._due = self._due or (run.path, epoch) not in (self._sent, on_its_way)
        done = False
        try:
            self._wait_while_it_moves(run, f"epoch {epoch} to {self.place.title}")
            done = self._sent == (run.path, epoch)
        finally:  # also after Ctrl-C, which ends the waiting
            if sending := self._under_way:
                sending.stop.set()
                sending.join(LOOK)
                if not sending.is_alive():
                    self._forget(sending)
            if said := self.place.summary() if done else self.place.missing(run.path, epoch):
                run.say(said)
        return done

    def _wait_while_it_moves(self, run: RunFolder, what: str) -> None:
        moved, moved_at, told, told_of = 0, time.monotonic(), time.monotonic(), 0
        with byte_bar(what) as bar:
            while True:
                self._start(run)
                now, sending = time.monotonic(), self._under_way
                if sending and sending.moved != moved:
                    moved, moved_at = sending.moved, now
                end = moved_at + self.wait
                if now > end or (not sending and (not self._due or self._not_before > end)):
                    return
                bar.total = sending.bytes if sending else bar.total
                bar.update(moved - bar.n)
                if bar.disable and now > told + TOLD_EVERY:
                    rate = f"{max(moved - told_of, 0) / 1e6 / (now - told):.2g} MB/s"
                    still = f"nothing has moved for {now - moved_at:.0f} s, and it gives up after {self.wait:.0f}"
                    of = f"{moved / 1e6:.1f} of {(bar.total or 0) / 1e6:.1f} MB"
                    run.say(f"{what}: {of}, {rate if moved > told_of else still}")
                    told, told_of = now, moved
                sending.join(TICK) if sending else time.sleep(TICK)
                self._collect(run, last=True)

    @property
    def _under_way(self) -> Sending | None:
        return _SENDING.get(self.place.address)

    def _start(self, run: RunFolder) -> Sending | None:
        """Start sending the newest save, if it is due and nothing is under way."""
        if not self._due or self._under_way or time.monotonic() < self._not_before:
            return None
        self._due = False
        try:
            sending = stage(self.place, run, *self.extras(run))
        except (OSError, ValueError) as error:  # a full disk, a damaged file, a card that fails
            self._failed(run, run.manifest().epoch, error)
            return None
        _SENDING[self.place.address] = sending
        sending.start()
        return sending

    def _collect(self, run: RunFolder, last: bool = False) -> None:
        """See whether the copy under way has ended, and how."""
        sending = self._under_way
        if not sending or sending.is_alive():
            return
        self._forget(sending)
        epoch, problem = sending.manifest.epoch, sending.problem
        if isinstance(problem, RunFault) and sending.manifest.writer == run.writer:  # not a thread left by another
            raise problem
        if problem:
            self._failed(run, epoch, problem, last)
            return
        if said := sending.said or (f"{self.place.title}: works again" if self._failures else ""):
            run.say(said)
        self._sent, self._failures, self.problem = (sending.run_path, epoch), 0, None

    def _forget(self, sending: Sending) -> None:
        del _SENDING[self.place.address]
        shutil.rmtree(sending.folder, ignore_errors=True)

    def _failed(self, run: RunFolder, epoch: int, problem: Exception, last: bool = False) -> None:
        self.problem = problem
        self._failures += 1
        if self.pause is None or not isinstance(problem, OSError):  # somebody has to change something first
            newest = run.manifest().epoch
            then = "" if last else f"; it is tried again with epoch {newest - newest % self.every + self.every}"
        else:
            self._due = True
            pause = min(self.pause * 2 ** (self._failures - 1), LONGEST_PAUSE)
            self._not_before = time.monotonic() + pause
            then = f"; it is tried again in {pause:.0f} s or later"
        run.say(f"{self.place.title}: epoch {epoch} was not sent ({problem}){then}")


def stage(place: Place, run: RunFolder, extras: Mapping[str, Path | str | bytes], message: str) -> Sending:
    """Put the newest save of `run`, and `extras` beside or for its files, where training changes nothing."""
    manifest, folder = run.manifest(), run.path / OUTGOING / uuid.uuid4().hex
    intact = all(holds(run.find(name), content) for name, content in manifest.best().items())
    best = manifest.best() if intact else {}
    saved = {manifest.checkpoints[manifest.epoch], *best} - extras.keys()
    # The rows that were saved, whatever has become of the file; and a config that format 1 did not name.
    sources: dict[str, Path | str | bytes] = {LOG: run.log().to_csv()}
    if best:
        sources[CONFIG] = run.find(WEIGHTS).with_name("config.json")
    sources.update({name: run.find(name) for name in saved})
    sources.update(extras)
    try:
        for name, source in [*sources.items()]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(source, Path):
                target.write_bytes(source.encode() if isinstance(source, str) else source)
            elif name in saved:
                _link(source, target)
            else:
                try:
                    shutil.copyfile(source, target)
                except PermissionError as error:  # it only informs
                    run.say(f"{place.title}: {source} cannot be read ({error.strerror}): left out")
                    del sources[name]
        files = {name: content_of(folder / name) for name in sources.keys() - saved - {CARD}}
        files |= {name: manifest.files[name] for name in saved}
        manifest = dataclasses.replace(manifest, files=files, best_epoch=manifest.best_epoch if best else None)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Sending(place, run.path, folder, manifest, message)


def _link(source: Path, target: Path) -> None:
    """Give `source`, which is replaced or removed but never written again, a second name."""
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copyfile(source, target)


# By address: a copy outlives the notebook cell, and the Copies, that began it.
_SENDING: dict[str, Sending] = {}
