"""A published run: the publisher, other formats, the demo."""

import importlib.util

EXTRAS = {"the demo": ("gradio",), "exporting to ONNX": ("onnx", "onnxscript", "onnxruntime")}


def need(what: str) -> None:
    """Raise ImportError, with what to install, unless the packages of that extra are here."""
    for package in EXTRAS[what]:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{what} needs {package}: pip install {' '.join(EXTRAS[what])}")
