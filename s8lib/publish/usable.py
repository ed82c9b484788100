"""What a repository holds beside a save so that people can use it: s8lib itself, and the files of transformers."""

import base64
import functools
import hashlib
import importlib.metadata
import io
import json
import zipfile
from pathlib import Path

from s8lib.data.augment import MEAN, SIDE, STD
from s8lib.models.networks import Network
from s8lib.run.folder import RunFolder
from s8lib.run.save import CONFIG

PACKAGE = Path(__file__).parents[1]
SOURCES = ("modeling_s8lib.py", "architectures.py")
LEFT_OUT = {"__pycache__", "results"}  # of the package: results are pictures of runs
WHEEL = "Wheel-Version: 1.0\nGenerator: s8lib\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def beside(run: RunFolder, transformers: bool = True) -> dict[str, bytes | str]:
    """The files by their names in a run's folder, of which `best/` is the root of a repository.

    Args:
        transformers: with those that transformers needs.
    Raises:
        RunError: the run holds no finished epoch, or is damaged.
    """
    network = Network.without_weights(str(run.best_weights()[1]))
    if not transformers:
        return {**wheel()}
    module, kind = SOURCES[0].removesuffix(".py"), type(network).__name__
    names = {"AutoConfig": f"{kind}Config", "AutoModelForImageClassification": f"{kind}ForImageClassification"}
    config = network.saved_config() | {
        "architectures": [names["AutoModelForImageClassification"]],
        "auto_map": {auto: f"{module}.{name}" for auto, name in names.items()},
    }
    preparation = {
        "auto_map": {"AutoImageProcessor": f"{module}.ImageProcessor"},
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": MEAN,
        "image_std": STD,
    }
    texts = {CONFIG: config, "preprocessor_config.json": preparation}
    sources = {name: (PACKAGE / "models" / name).read_text(encoding="utf-8") for name in SOURCES}
    return wheel() | sources | {name: json.dumps(values, indent=2) + "\n" for name, values in texts.items()}


@functools.cache
def wheel() -> dict[str, bytes]:
    """The s8lib that runs here as a wheel by its name, the same bytes each time; none if it is not installed.

    It is packed from the installed files, or those of a checkout, as there need not be a source tree.
    """
    try:
        installed = importlib.metadata.distribution("s8lib")
    except importlib.metadata.PackageNotFoundError:  # its requirements are not known: such a wheel would not run
        return {}
    stem, packed, record = f"s8lib-{installed.version}", io.BytesIO(), ""
    own = (path for path in sorted(PACKAGE.rglob("*")) if path.is_file())
    own = (path for path in own if not LEFT_OUT & {*path.relative_to(PACKAGE).parts})
    files = {f"s8lib/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in own}
    about = {"METADATA": installed.read_text("METADATA") or installed.read_text("PKG-INFO") or "", "WHEEL": WHEEL}
    about["entry_points.txt"] = installed.read_text("entry_points.txt") or ""
    files |= {f"{stem}.dist-info/{name}": text.encode() for name, text in about.items()}
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            record += f"{name},sha256={sha256},{len(content)}\n"
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        last = f"{stem}.dist-info/RECORD"
        archive.writestr(zipfile.ZipInfo(last), f"{record}{last},,\n", zipfile.ZIP_DEFLATED)
    return {f"{stem}-py3-none-any.whl": packed.getvalue()}
