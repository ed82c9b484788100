"""s8lib: train a WideResNet on CIFAR-100 and resume it exactly."""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# torch takes seconds to load, so a public name is imported when it is first used (PEP 562). Their one list is the
# stub beside this file, which type checkers and editors read too.
_HOMES = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 's8lib' has no attribute {name!r}")
    home = _HOMES[name]
    if home == "s8lib":
        return importlib.import_module(f"s8lib.{name}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
