"""Colab's machines, its Drive and secrets, and Kaggle's secrets; elsewhere the same calls stay on this machine."""

import importlib.util
import os
import re
import shutil
import subprocess
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, get_token

from s8lib.data.cifar100 import at_hand
from s8lib.data.synthetic import SYNTHETIC, holds_own_pictures
from s8lib.hub_client import HubError, ask, check_repo_id, owner_of, usable_token
from s8lib.machine.device import environment, pick_device, pick_precision
from s8lib.machine.progress import tell
from s8lib.publish.publisher import fetch_run
from s8lib.run.copies import Copies
from s8lib.run.drive import DriveFolder
from s8lib.run.folder import RunFolder
from s8lib.run.save import MANIFEST, RunError
from s8lib.validation import BadInput, one_line, user_path

CONTENT = Path("/content")  # on the machine's own disk: fast, and gone with the machine
MOUNT_TIMEOUT, FLUSH_TIMEOUT = 120, 600  # seconds
SECRET = "HF_TOKEN"


class ColabError(BadInput):
    """Colab refused something; the message says what to do."""


def checks(say: Callable[[str], None] = tell) -> None:
    """Say what training has to work with here: GPU, precision, memory, disk, versions and data, a line each."""
    device = pick_device()
    found = environment(device)
    advice = "; Runtime > Change runtime type > T4 GPU gives one" if in_colab() else ""
    of_gpu = f"{found['device_name']}, {found.get('device_memory_gib')} GiB"
    gpu = {"cuda": of_gpu, "cpu": f"none, training would be on the CPU{advice}"}
    say(f"GPU: {gpu.get(device.type, device.type)}")
    say(f"precision: {pick_precision(device)}")
    if hasattr(os, "sysconf"):  # not on Windows
        say(f"RAM: {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB")
    say(f"disk: {shutil.disk_usage('.').free / 2**30:.1f} GiB free")
    say(
        f"versions: Python {found['python']}, torch {found['torch']}, torchvision {version('torchvision')}, "
        f"huggingface_hub {version('huggingface_hub')}, s8lib {found['s8lib']}"
    )
    say(f"data: {_data_source()}")
    if token := hf_token(say):
        say(f"  {owner_of(token)}")


def in_colab() -> bool:
    """Whether this is a machine of Colab's."""
    # Kaggle's images are built on Colab's, and have its COLAB_RELEASE_TAG and its google.colab.
    tagged = "COLAB_RELEASE_TAG" in os.environ and "KAGGLE_KERNEL_RUN_TYPE" not in os.environ
    tagged = tagged or Path("/var/colab/hostname").exists()
    return tagged and all(importlib.util.find_spec(name) for name in ("google", "google.colab"))


def hf_token(say: Callable[[str], None] = tell) -> str | None:
    """The Hub's token: the secret HF_TOKEN of Colab or Kaggle, else $HF_TOKEN, else the file that a login left.

    One sentence tells where it comes from, or what is missing. The token itself is never shown.
    """
    token, reason, source = "", f"set {SECRET}, or log in with `hf auth login`", "Colab"
    if in_colab():
        token, reason = _secret()
    elif importlib.util.find_spec("kaggle_secrets"):
        (token, reason), source = _kaggle_secret(), "Kaggle"
    source = f"the {source} secret {SECRET}"
    if not token:
        source = f"the variable {SECRET}" if os.environ.get(SECRET) else "the token file of this machine"
        with warnings.catch_warnings(action="ignore"):  # on Colab, of the very refusal that is told here
            token = get_token() or ""
    say(f"Hugging Face token: from {source}" if token else f"Hugging Face token: none; {reason}")
    return token or None


def hub_repo(named: str, run: str, token: str | None = None, say: Callable[[str], None] = tell) -> str:
    """The repository `named`; if none is, "you/run" for the run `run`, and whose name it is a token tells.

    Raises:
        HubError: this is no name, or the Hub does not know the token.
        ConnectionError: the Hub cannot be reached.
    """
    if named.strip():
        return check_repo_id(named.strip())
    owner = ask(HfApi.whoami, 20.0, token=usable_token(token))["name"] if token else "you"
    name = re.sub(r"[^a-zA-Z0-9_]+", "-", run)[:90].strip("-") or "run"
    say(f"no repository is named: {owner}/{name}")
    return f"{owner}/{name}"


def _secret() -> tuple[str, str]:
    """Colab's secret, or "" and what to do about it."""
    from google.colab import errors, userdata

    try:
        return userdata.get(SECRET).strip(), f"the Colab secret {SECRET} is empty"
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return "", f"add a Colab secret named {SECRET}, or give this notebook access to it (the key on the left)"
    except errors.Error as error:  # TimeoutException: the notebook is not open in a browser
        return "", f"Colab did not hand out the secret {SECRET} ({one_line(error)})"


def _kaggle_secret() -> tuple[str, str]:
    """Kaggle's secret, or "" and what to do about it."""
    from kaggle_secrets import BackendError, CredentialError, UserSecretsClient

    try:
        return UserSecretsClient().get_secret(SECRET).strip(), f"the Kaggle secret {SECRET} is empty"
    except (BackendError, CredentialError):
        return "", f"add a secret named {SECRET} (Add-ons > Secrets) and attach it to this notebook"
    except ConnectionError as error:
        return "", f"Kaggle did not hand it out ({one_line(error)}): is this notebook's internet on?"


def mount_drive(folder: str = "s8lib", keep: str = "auto", say: Callable[[str], None] = tell) -> Path:
    """The folder that keeps runs: on Colab `folder` of My Drive, mounted at /content/drive; elsewhere a local one.

    Args:
        keep: "drive"; "here", on Colab in /content/runs; or "auto", which is Drive if that can be mounted.
    Raises:
        ColabError: if Drive has to be mounted and cannot, or for a name that is none.
    """
    if not folder.strip() or keep not in ("auto", "drive", "here"):
        raise ColabError(f"{folder!r}, {keep!r}: name a folder such as s8lib-runs, and say auto, drive or here")
    if not in_colab():
        if keep == "drive":
            raise ColabError("there is no Google Drive to keep runs on, as this is not Colab: say auto or here")
        say(f"not on Colab: runs are kept on this machine, in the folder {folder}")
        if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
            say("Kaggle empties it after a session, unless Persistence keeps files; a saved version keeps its own")
        return user_path(folder)
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ColabError(f"{folder!r} is not the name of a folder in My Drive: use one such as s8lib")
    if keep != "here":
        try:
            return _mounted(folder)
        except ColabError as error:
            if keep == "drive":
                raise
            say(str(error))
    say("runs are kept on this machine only: when Colab takes it back, they are gone")
    return CONTENT / "runs"  # where those on Drive are worked on too: a Drive that comes later gets them


def _mounted(folder: str) -> Path:
    import pexpect  # type: ignore[import-untyped]
    from google.colab import drive, errors

    mountpoint = CONTENT / "drive"
    kept = mountpoint / "MyDrive" / folder
    try:
        drive.mount(str(mountpoint), force_remount=False, timeout_ms=1000 * MOUNT_TIMEOUT, readonly=False)
        if not (mountpoint / "MyDrive").is_dir():
            raise ValueError("there is no MyDrive in it")
        kept.mkdir(parents=True, exist_ok=True)
    # ValueError: most of its refusals. errors.Error: access was not granted. NotImplementedError: no such service
    # here. ExceptionPexpect: the Drive program does not answer. OSError: the folder cannot be made.
    except (ValueError, errors.Error, NotImplementedError, pexpect.ExceptionPexpect, OSError) as error:
        advice = "run this cell again and allow the access that Colab asks for"
        if "already contain files" in str(error):
            advice = (
                f"{mountpoint} holds files that were written to this machine before Drive was mounted: move them "
                f"away (!mv {mountpoint} {mountpoint}-before) and run this cell again"
            )
        raise ColabError(f"Google Drive cannot be used ({one_line(error)}): {advice}") from error
    return kept


def run_folder(kept: str | Path, name: str, say: Callable[[str], None] = tell) -> RunFolder:
    """The run `name`, kept in the folder that `mount_drive` gave; one on Drive is worked on here meanwhile.

    Raises:
        RunError: if `kept` is on a Drive that is not there any more.
    """
    here = runs_here(kept)
    copies = [] if here == Path(kept) else [Copies(DriveFolder(Path(kept) / name))]
    return RunFolder(here / name, say, copies)


def runs_here(kept: str | Path) -> Path:
    """Where the runs of the folder `kept` are worked on: on this machine's disk, if that is on Drive."""
    on_drive = in_colab() and Path(kept).is_relative_to(CONTENT / "drive")
    return CONTENT / "runs" if on_drive else Path(kept)


def find_run(which: str = "", kept: str | Path = "s8lib-runs", say: Callable[[str], None] = tell) -> RunFolder:
    """A run on this machine's disk, brought there from Google Drive or the Hub if that is where it is.

    Args:
        which: a run's name in `kept`, else a run's folder, else "user/name" on the Hub;
            "" is the newest in `kept`.
        kept: where runs are kept, as `mount_drive` gave it.
    Raises:
        RunError: there is no such run, it holds no finished epoch, or it cannot be read.
        HubError: the Hub has no such repository, or it holds no run.
        ConnectionError: the Hub cannot be reached.
    """
    kept = user_path(kept)
    which = which.strip() or _newest(kept)
    if Path(which).name == which and (kept / which / MANIFEST).exists():
        run = run_folder(kept, which, say)
        if run.copies:
            with RunFolder(run.path, say).lock():  # without copies, as whoever trains now writes them
                run.fetch()  # what Drive holds and this machine does not
    elif (user_path(which) / MANIFEST).exists():
        run = RunFolder(which, say)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", which):
        run = RunFolder(runs_here(kept) / which.replace("/", "--"), say)
        if not fetch_run(which, run):
            if not run.manifest().epoch:
                raise HubError(f"{which} on the Hub holds no run of s8lib: name another repository")
            say(f"{run.path} holds epoch {run.manifest().epoch} already: remove that folder to fetch anew")
    else:
        raise RunError(f"{which!r} is no run in {kept}, no run's folder and no USER/NAME on the Hub")
    run.log()  # raises if there is none
    return run


def _newest(kept: Path) -> str:
    try:
        manifests = sorted(kept.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    except OSError as error:  # a Drive that is gone
        raise RunError(f"{kept} cannot be read ({error.strerror}): mount Google Drive again") from error
    if not manifests:
        raise RunError(
            f"{kept} holds no run: train one first, with session_8.ipynb or `s8lib train`, or name a run's folder "
            "or a repository of the Hub"
        )
    return manifests[-1].parent.name


def finish(run: RunFolder | None = None, disconnect: bool = False, say: Callable[[str], None] = tell) -> None:
    """Bring `run` and whatever else is still on its way to Drive there, and unmount it.

    Args:
        disconnect: also give the machine back, unless something is on its disk only.
    """
    on_drive = run is None or any(isinstance(copies.place, DriveFolder) for copies in run.copies)
    safe = (run is None or run.sync()) and on_drive  # the Hub does not get everything
    if not in_colab():
        say("not on Colab: nothing to unmount")
        return
    from google.colab import errors, runtime

    mounted = os.path.isdir(CONTENT / "drive" / "MyDrive")  # else `flush_and_unmount` says that all is well
    problem = _flush_and_unmount() if mounted else "it is not mounted: run the Drive cell again, then this one"
    if run and not on_drive:
        say(f"{run.path} is on no Drive, and Colab takes this machine back: download what you want to keep")
    else:
        say(f"Google Drive: {problem}" if problem else "Google Drive: everything is written, and it is unmounted")
    if disconnect and (problem or not safe):
        say("this machine is kept, since not everything is known to be elsewhere: run this cell again")
    elif disconnect:
        try:
            runtime.unassign()
        except (errors.Error, OSError) as error:
            say(f"it is not given back ({one_line(error)}): Runtime > Disconnect and delete runtime does it")


def _flush_and_unmount() -> str:
    """Wait until Drive has everything, but not forever; what went wrong, or ""."""
    from google.colab import drive

    problem = f"still not everything is written after {FLUSH_TIMEOUT} s"

    def flush() -> None:
        nonlocal problem
        try:
            drive.flush_and_unmount(timeout_ms=1000 * FLUSH_TIMEOUT)
            problem = ""
        except (ValueError, NotImplementedError, OSError, subprocess.SubprocessError) as error:
            problem = f"cannot be unmounted ({one_line(error)})"

    # A thread, because it passes the timeout on to the Drive program and then waits for that without any.
    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(FLUSH_TIMEOUT)
    return problem


def _data_source() -> str:
    """Where `load_cifar100` would look, in words: the folder's name is nobody else's business."""
    named = os.environ.get("S8_DATA")
    if named == SYNTHETIC:
        return "the synthetic stand-in, as S8_DATA says"
    if named and holds_own_pictures(named):
        return "pictures of your own, in the folder that S8_DATA names"
    if at_hand():
        return f"CIFAR-100 from {'the folder that S8_DATA names' if named else 'the cache of this machine'}"
    return "missing: S8_DATA names a folder without CIFAR-100" if named else "CIFAR-100, to be downloaded (150 MB)"
