"""Training on all GPUs of a notebook: `train` runs in ranks of their own, and what they say and reach comes back.

torch wants a process for each GPU, and a notebook is one. A temporary folder brings the ranks what `train` was
given; what only rank 0 needs, such as the Hub's token, comes by stdin alone. When stdin closes, whoever asked has
been interrupted or is gone, and they end.
"""

import base64
import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s8lib.machine.device import DeviceError
from s8lib.machine.progress import IN_NOTEBOOK, in_notebook, tell
from s8lib.recipe import Recipe
from s8lib.run.checkpoint import EpochLog
from s8lib.run.folder import RunFolder, how_to_go_on
from s8lib.run.save import RunFault, replacing
from s8lib.session import telling_how_to_go_on
from s8lib.validation import BadInput

RANKS = "S8_RANKS"  # how many to start, whatever GPUs there are
WATCH = "\x1e"  # begins a line that holds the epoch log for `watch`
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def ranks_to_start(recipe: Recipe, device: str | torch.device | None, say: Callable[[str], None]) -> int:
    """In a notebook one for each GPU, or as many as $S8_RANKS says; 0 where this process trains alone."""
    named = os.environ.get(RANKS)
    device = device or os.environ.get("S8_DEVICE") or None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or not (named or in_notebook()):
        return 0  # this is a rank, or a program, which torchrun can start
    if named and not named.isdecimal():
        raise DeviceError(f"{RANKS} = {named!r}: must be the number of ranks to train on, such as 2")
    able = torch.distributed.is_available() and torch.distributed.is_nccl_available()  # not on Windows
    all_gpus = torch.cuda.device_count() if able and (device is None or str(device) == "cuda") else 1
    ranks = int(named) if named else all_gpus
    if ranks > 1 and recipe.batch_size % ranks:
        say(f"batch_size = {recipe.batch_size}: cannot be shared evenly among {ranks} GPUs, so one trains alone")
        return 0
    return ranks if ranks > 1 else 0


def train_on(ranks: int, train: Callable[..., EpochLog], given: dict[str, Any]) -> EpochLog:
    """What `train` returns, raises and does to the model, `given` these arguments."""
    say, watch, run, model = given.pop("say"), given["watch"], given["run"], given["model"]
    run = RunFolder(run, say) if isinstance(run, str | Path) else run
    environment = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks)), **os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    environment |= {IN_NOTEBOOK: "1"} if in_notebook() else {}

    say(f"starting {ranks} ranks, which share every batch")
    with tempfile.TemporaryDirectory(prefix="s8lib-ranks-") as name, telling_how_to_go_on(run, say):
        folder = Path(name)
        for_first = {"run": run and RunFolder(run.path, copies=run.copies), "hub": given["hub"]}
        for_first["watch"] = watch and _show
        own_gpu = given["device"] and str(given["device"]).partition(":")[0]  # for each rank its own
        given |= {"run": run and RunFolder(run.path), "hub": None, "watch": None, "device": own_gpu}
        torch.save({"train": train, **given}, folder / "given")
        with (
            open(folder / "stderr", "wb") as stderr,
            subprocess.Popen(
                [*LAUNCHER, f"--nproc-per-node={ranks}", "-m", "s8lib.launch", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for this process, which stops them all at once
                env=environment,
            ) as launched,
        ):
            assert launched.stdin
            assert launched.stdout
            lines = io.TextIOWrapper(launched.stdout, "utf-8", "replace", newline="")
            try:
                with contextlib.suppress(BrokenPipeError):  # it could not start: stderr says why
                    launched.stdin.write(pickle.dumps(for_first))
                    launched.stdin.flush()
                for line in lines:
                    _, shown, log = line.rpartition(WATCH)
                    if shown:
                        watch(pickle.loads(base64.b64decode(log)))
                    elif line.endswith("\r"):  # a progress bar
                        print(line, end="", flush=True)
                    else:
                        say(line.rstrip("\n"))
            finally:
                launched.stdin.close()
                lines.read()  # until the last of them has ended

        problems = [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("problem*[0-9]"))]
        if problems:  # what a rank did not foresee may only be that another one has gone
            raise min(problems, key=lambda problem: hasattr(problem, "__notes__"))
        if not (folder / "end").exists():
            fault = RunFault(f"a rank was stopped from outside, for want of memory perhaps; {how_to_go_on(run)}")
            fault.add_note((folder / "stderr").read_text(errors="replace")[-3000:])
            raise fault
        log, weights = torch.load(folder / "end", map_location="cpu", weights_only=False)
    model.name_classes(given["data"].classes)
    model.load_state_dict(weights)
    return log


def _show(log: EpochLog) -> None:
    tell(WATCH + base64.b64encode(pickle.dumps(log)).decode())


def _end_with_stdin(torchrun: int) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(torchrun, signal.SIGINT)  # it passes it on to every rank and waits for them


def main(folder: Path, rank: int) -> int:
    """One rank; its exit code, with which torchrun stops the others."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun's word when another rank has failed
    given: dict[str, Any] = {}
    try:
        given |= torch.load(folder / "given", map_location="cpu", mmap=True, weights_only=False)
        if rank == 0:
            given |= pickle.load(sys.stdin.buffer)
            threading.Thread(target=_end_with_stdin, args=[os.getppid()], daemon=True).start()
        log = given.pop("train")(**given)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - it is raised again where `train` was called
        problem: Exception = error
        if not isinstance(error, BadInput | RunFault | OSError | ImportError):
            problem = RunFault(f"rank {rank}: {type(error).__name__}: {error}; {how_to_go_on(given.get('run'))}")
            problem.add_note(traceback.format_exc())
        with replacing(folder / f"problem{rank}") as partial:
            partial.write_bytes(pickle.dumps(problem))
        return 1
    if rank == 0:
        torch.save((log, given["model"].state_dict()), folder / "end")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(os.environ["RANK"])))
