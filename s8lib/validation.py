"""The door: what comes from outside is checked here, by pydantic, and refused in one sentence for people."""

import contextlib
import os
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError


class BadInput(ValueError):
    """Something that was given to the library cannot be used; the message says what, why and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in the place of a traceback: the sentence alone."""
        return [f"{type(self).__name__}: {self}"]


@contextlib.contextmanager
def refusing(error: type[Exception], where: object = "", known: Iterable[str] = ()) -> Iterator[None]:
    """Turn pydantic's error into `error`, whose one sentence names field and value: `epochs = 0: must be ...`.

    Args:
        where: what the field is part of, such as a file.
        known: the fields there are, for someone who named another.
    """
    try:
        yield
    except ValidationError as refusal:
        raise error((f"{where}: " if where else "") + _sentence(refusal, known)) from None


def check(kind: Any, values: Any, error: type[Exception], where: object = "") -> Any:
    """`values` as a `kind`, nothing converted: any type that pydantic knows, with `Annotated` bounds.

    Args:
        kind: a dataclass, a TypedDict, `dict[str, int]`, ...
        values: Python's, or the bytes of JSON, in which a list stands for a tuple.
    Raises:
        error: as `refusing` words it.
    """
    with refusing(error, where, getattr(kind, "__dataclass_fields__", ())):
        adapter = TypeAdapter(kind)
        if isinstance(values, bytes):
            return adapter.validate_json(values, strict=True)
        return adapter.validate_python(values, strict=True)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Every path that a user gives goes through here: `~` is the home folder, as in a shell."""
    return Path(os.path.expanduser(path))  # which, unlike Path's, takes any name


def read_json(kind: Any, path: str | Path, error: type[Exception]) -> Any:
    """The JSON file `path` as a `kind`; raises `error`, which names the file, if it cannot be read or is none."""
    try:
        content = user_path(path).read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a path with a NUL
        raise error(f"cannot read {path}: {getattr(problem, 'strerror', None) or problem}") from problem
    return check(kind, content, error, path)


def one_line(error: BaseException) -> str:
    """What is at the root of `error`: libraries wrap "Connection refused" in paragraphs of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def short(value: object) -> str:
    """`value` as code, in some 40 characters."""
    huge = isinstance(value, int) and value.bit_length() > 1000  # Python refuses to print more than 4300 digits
    return "a huge number" if huge else reprlib.repr(value)


def _sentence(refusal: ValidationError, known: Iterable[str]) -> str:
    first = refusal.errors()[0]
    place = list(first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        return f"there is no field {place[-1]!r}" + (f"; the fields are {', '.join(known)}" if known else "")
    if place and first["type"] == "missing" and isinstance(place[-1], str):
        return f"{_dotted(place)} is missing"
    if place and isinstance(place[-1], int):
        place.pop()  # in a pair the value shows which of the two it is
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "missing":
        message = "has too few values"
    return f"{_dotted(place)} = {short(first['input'])}: {message}" if place else message


def _dotted(place: list[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
