# @title Install { display-mode: "form" }
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, version
from pathlib import Path
from urllib.parse import unquote
from urllib.request import urlopen

ADDRESS = ""  # @param {type:"string"}
EXTRAS = ""


def project():
    """Where this project is: ADDRESS, a checkout at hand, or what this notebook was opened from on Colab."""
    drive, inputs = Path("/content/drive/MyDrive"), Path("/kaggle/input")
    on_drive = [*drive.glob("*"), *drive.glob("Colab Notebooks/*")]  # no deeper: a large Drive is slow
    depths = ["*/" * depth for depth in range(1, 5)]  # NAME of before, datasets/OWNER/NAME, and in an archive
    attached = [file.parents[1] for depth in depths for file in inputs.glob(f"{depth}s8lib/hub_client.py")]
    for folder in (Path(os.path.expanduser(ADDRESS)), Path(), Path(".."), *on_drive, *attached):
        if (folder / "s8lib" / "hub_client.py").exists():
            copy = tempfile.mkdtemp()  # to build in: the folder may be read-only
            rest = shutil.ignore_patterns(".*", "*runs", "build")
            shutil.copytree(folder, copy, ignore=rest, dirs_exist_ok=True)
            return Path(copy).as_uri()
    if "COLAB_JUPYTER_IP" in os.environ:
        here, opened = os.environ["COLAB_JUPYTER_IP"] + ":" + os.environ.get("KMP_TARGET_PORT", "9000"), ""
        with contextlib.suppress(OSError):  # then ADDRESS has to do
            opened = unquote(urlopen(f"http://{here}/api/sessions", timeout=20).read().decode())
        if "github.com/" not in opened and not ADDRESS:  # a copy on Drive, whose first cell has the badge
            from google.colab import _message

            with contextlib.suppress(_message.MessageError):
                opened = json.dumps(_message.blocking_request("get_ipynb", timeout_sec=20))
        if found := re.search(r'github(?:\.com)?/([\w.-]+/[\w.-]+)/blob/([^"\s]+)/[^/"\s]+\.ipynb', opened):
            return f"https://github.com/{found[1]}/archive/{found[2]}.zip"
    if "COLAB_JUPYTER_IP" in os.environ and not drive.exists() and ADDRESS[:14] in ("", "/content/drive"):
        from google.colab import drive as google_drive

        with contextlib.suppress(Exception):  # not allowed, not possible here, ...: then ADDRESS has to do
            google_drive.mount("/content/drive")
        if drive.exists():
            return project()
    if "://" not in ADDRESS:
        raise ValueError("say in ADDRESS where your copy of s8lib is: git+https://..., or a folder")
    return ADDRESS


# A folder that something was built in has an egg-info, which is no installation: only that has a RECORD.
installed = [found for found in distributions(name="s8lib") if found.read_text("RECORD")]
if not installed or (EXTRAS and not [*distributions(name="onnxscript")]):  # the other notebook asks for no extras
    # What is here stays: PyTorch was built for these GPUs, and TensorFlow and others take no newer protobuf.
    here = [name for name in ("torch", "torchvision", "numpy", "protobuf") if [*distributions(name=name)]]
    asked = [f"{name}=={version(name)}" for name in here]
    asked.append(f"s8lib{EXTRAS}" if installed else f"s8lib{EXTRAS} @ {project()}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *asked], check=True)
    importlib.invalidate_caches()
