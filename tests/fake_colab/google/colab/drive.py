import os
import time
from pathlib import Path

import faulty_drive
import pexpect
from google.colab import _message

__all__ = ["flush_and_unmount", "mount"]

NAMES = ("MyDrive", "My Drive")  # two names of one folder

_mounted = None


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    global _mounted
    if os.environ.get("FAKE_COLAB_FLUSH") == "failed":
        raise ValueError("flush_and_unmount failed")
    if os.environ.get("FAKE_COLAB_FLUSH") == "hanging":
        time.sleep(3600)
    if _mounted is None:
        print("Drive not mounted, so nothing to flush and unmount.")
        return
    faulty_drive.uninstall()
    for name in NAMES:
        (_mounted / name).unlink()
    _mounted = None


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    failing = os.environ.get("FAKE_COLAB_MOUNT")
    if failing == "unsupported":
        raise NotImplementedError("Mounting drive is unsupported in this environment. Use PyDrive2 instead.")
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    if failing == "refused":
        raise _message.MessageError("Error: credential propagation was unsuccessful")
    if not force_remount and os.path.isdir(os.path.join(mountpoint, "My Drive")):
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, "
            f'call drive.mount("{mountpoint}", force_remount=True).'
        )
        _begin(mountpoint)
        return
    if os.path.islink(mountpoint):
        raise ValueError("Mountpoint must not be a symlink")
    if os.path.isdir(mountpoint) and os.listdir(mountpoint):
        raise ValueError("Mountpoint must not already contain files")
    if not os.path.isdir(mountpoint) and os.path.exists(mountpoint):
        raise ValueError("Mountpoint must either be a directory or not exist")
    if not os.path.exists(os.path.dirname(os.path.normpath(mountpoint))):
        raise ValueError("Mountpoint must be in a directory that exists")
    if failing == "failed":
        raise ValueError("mount failed")
    if failing == "timeout":
        raise pexpect.TIMEOUT("Timeout exceeded.\n<pexpect.popen_spawn.PopenSpawn object>\nsearcher: ...")
    Path(mountpoint).mkdir(exist_ok=True)
    for name in NAMES:
        Path(mountpoint, name).symlink_to(os.environ["FAKE_COLAB_DRIVE"], target_is_directory=True)
    _begin(mountpoint)
    print(f"Mounted at {mountpoint}")


def _begin(mountpoint):
    global _mounted
    _mounted = Path(mountpoint)
    if faults := faulty_drive.from_environment(_mounted / "MyDrive"):
        faults.install()
