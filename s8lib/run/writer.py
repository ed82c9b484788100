"""Saving while training goes on: one thread writes a save, and at most one save is on its way to the disk."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable

from s8lib.run.checkpoint import Checkpoint
from s8lib.run.folder import RunFolder, Write, how_to_go_on


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes the saves of `run`, of which a kill then costs the one under way. Leaving it waits for that one.

    Args:
        run: where to; None saves nothing.
        then: called by the one who trains when a save is on the disk.
    """

    def __init__(self, run: RunFolder | None = None, then: Callable[[], object] = lambda: None) -> None:
        self.run, self.then = run, then
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "save")
        self._save: concurrent.futures.Future[None] | None = None

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        if self.run and self._save and (problem := self._save.exception()):  # another one is on its way up
            self.run.say(str(problem))

    def begin(self, checkpoint: Checkpoint, save_best: Write | None) -> None:
        """Begin to write what training will not change; see `RunFolder.save`."""
        self.finish()
        if self.run:
            self._save = self._thread.submit(self.run.save, checkpoint, save_best)

    def look(self) -> None:
        """If the save under way is on the disk, let the copies and `then` have it."""
        if self._save and self._save.done() and not self._save.exception():
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, and do as `look`.

        Raises:
            RunFault: it could not be made, or another process has taken the run over.
        """
        if self.run and self._save:
            save, self._save = self._save, None
            save.result()
            self.run.copy()
            self.then()

    def how_to_go_on(self) -> str:
        """What `folder.how_to_go_on` says once the save under way has ended, however it has."""
        concurrent.futures.wait([self._save] if self._save else [])
        return how_to_go_on(self.run)
