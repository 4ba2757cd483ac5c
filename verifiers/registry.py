"""Finds a verifier by name: a built-in (`math_answer`), an entry point in the group `onebase.verifiers` that
any installed package may declare, or a function in a file (`rewards/mine.py:score`).

A file is read once per process: workers are handed the text that their parent read (`source_of`), so a file
that is edited while a run goes on changes nothing in it, and other machines need no copy.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from onebase.errors import UserError
from onebase.verifiers.base import Limits, Verdict, Verifier, failed

GROUP = "onebase.verifiers"
# One thread imports a verifier's file while the others wait: a half-imported module has no function yet.
# Re-entrant, because a file may load another verifier as it is imported.
_IMPORTING = threading.RLock()
_read: dict[Path, str] = {}  # files of this process's verifiers, as they were when first asked for
_loaded: dict[str, Verifier] = {}  # entry points: to look through all installed packages takes milliseconds


class Source(NamedTuple):
    """A verifier's file as it travels to workers."""

    path: str
    text: str


def builtin_names() -> list[str]:
    """Names of the built-in verifiers: modules beside this one with a top-level `verify` (not imported)."""
    return list(_builtin_names())


@cache
def _builtin_names() -> tuple[str, ...]:
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(p.stem for p in files if "\ndef verify(" in p.read_text(encoding="utf-8")))


def plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def load(name: str, source: Source | None = None) -> Verifier:
    """The function behind `name`.  Raises UserError when there is none.  `source`: the text of its file,
    where another process has read it."""
    if ".py:" in name:
        return _from_file(name, source)
    if name in _builtin_names():
        return _callable(importlib.import_module(f"onebase.verifiers.{name}"), "verify", name)
    if name in _loaded:
        return _loaded[name]
    found = plugins()
    if name in found:
        _loaded[name] = _from_entry_point(name)
        return _loaded[name]
    known = sorted({*_builtin_names(), *found})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"verifier {name!r} is unknown{hint}\n  known: {', '.join(known)}\n"
        f"  or an entry point of the group {GROUP!r}, or a function in a file: path/to/file.py:function"
    )


def load_gold(name: str, source: Source | None = None) -> Verifier | None:
    """A verifier of the row's own answer: an error where it cannot be understood.  None: nothing to ask.

    It is the module's `gold_problem`, else `verify` with the answer as the completion."""
    function = load(name, source)
    module = module_of(function)
    if not hasattr(module, "gold_problem"):
        return lambda answer, **row: function(**(row | {"answer": answer, "completion": answer}))
    asked: Callable[..., str | None] | None = getattr(module, "gold_problem", None)
    if asked is None:
        return None

    def gold(answer: str, **row: Any) -> Verdict:
        problem = asked(answer, **row)
        return Verdict(1.0, "understood") if problem is None else failed(f"gold: {problem}")

    return gold


def load_batch(name: str) -> Callable[[Sequence[dict[str, Any]]], list[Verdict]] | None:
    """A built-in's `verify_batch(rows)`, which judges in this process and bounds its own work: it asks a
    server many questions at a time, or runs a model on a batch."""
    if name not in _builtin_names():
        return None
    return getattr(module_of(load(name)), "verify_batch", None)


def limits(name: str) -> Limits:
    """What the verifier's module asks for; only a built-in is believed that it bounds its own work."""
    asked = Limits.of(module_of(load(name)))
    if asked.inline and name not in _builtin_names():
        return Limits(False, asked.wall_seconds, asked.memory_mb, asked.workers, asked.start_seconds)
    return asked


def is_inline(name: str) -> bool:
    """True for built-ins that bound their own work (attribute INLINE) and so may run without a process."""
    return name in _builtin_names() and limits(name).inline


def module_of(function: Verifier) -> ModuleType | None:
    return sys.modules.get(str(getattr(function, "__module__", None)))


def source_of(name: str) -> Source | None:
    """The file of a `path.py:function` verifier, as this process first read it; None for all others."""
    if ".py:" not in name:
        return None
    path = Path(name.rpartition(":")[0]).expanduser()
    if not path.is_file() and path.resolve() not in _read:
        raise UserError(f"verifier {name!r}: there is no file {str(path)!r} (looked in {Path.cwd()})")
    path = path.resolve()
    with _IMPORTING:
        if path not in _read:
            try:
                _read[path] = importlib.util.decode_source(path.read_bytes())
            except (OSError, SyntaxError, UnicodeDecodeError) as error:
                raise UserError(f"verifier {name!r}: {path} cannot be read: {error}") from error
        return Source(str(path), _read[path])


def digest(name: str) -> str:
    """Changes when the verifier's code does: its file, or all of the built-ins'."""
    source = source_of(name)
    file = Path(getattr(module_of(load(name)), "__file__", None) or "")
    if source is not None:
        text = source.text
    elif name in _builtin_names():
        text = "".join(p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parent.glob("*.py")))
    else:
        text = file.read_text(encoding="utf-8") if file.suffix == ".py" and file.is_file() else ""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _from_file(name: str, source: Source | None) -> Verifier:
    found = source or source_of(name)
    assert found is not None, f"{name=}"
    # A digest in the module name keeps two files of the same stem apart, and two versions of one file.
    key = hashlib.sha256("\0".join(found).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    module_name = f"onebase_verifier_{key}"
    with _IMPORTING:
        module = sys.modules.get(module_name)
        if module is None:
            module = ModuleType(module_name)
            module.__file__ = found.path
            sys.modules[module_name] = module
            # so that tracebacks show lines although the file may be elsewhere or changed
            linecache.cache[found.path] = (len(found.text), None, found.text.splitlines(True), found.path)
            try:
                exec(compile(found.text, found.path, "exec", dont_inherit=True), vars(module))
            except (Exception, SystemExit) as error:
                del sys.modules[module_name]
                raise UserError(
                    f"verifier {name!r}: {found.path} cannot be imported: {type(error).__name__}: {error}"
                ) from error
    return _callable(module, name.rpartition(":")[2], name)


def _from_entry_point(name: str) -> Verifier:
    points = list(entry_points(group=GROUP, name=name))
    owners = [f"{point.value} of {_package(point)}" for point in points]
    if len(points) > 1:
        raise UserError(
            f"verifier {name!r} is declared by several installed packages: {', '.join(owners)}\n"
            "  uninstall all but one, or name the function by its file: path/to/file.py:function"
        )
    try:
        with _IMPORTING:
            function = points[0].load()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"verifier {name!r}: entry point {owners[0]} cannot be loaded: {type(error).__name__}: {error}\n"
            f"  `pip install` what it lacks, or `pip uninstall {_package(points[0]).partition(' ')[0]}`"
        ) from error
    if not callable(function):
        raise UserError(f"verifier {name!r}: entry point {owners[0]} is not a function")
    return _takes_rows(function, name)


def _package(point: EntryPoint) -> str:
    """Name and version of the distribution that declares an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"


def _callable(module: ModuleType, function: str, name: str) -> Verifier:
    found = getattr(module, function, None)
    if callable(found):
        return _takes_rows(found, name)
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(function, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"verifier {name!r}: {module.__file__} has no function {function!r}{hint}")


def _takes_rows(function: Verifier, name: str) -> Verifier:
    """A verifier without `**row` would fail on every row that has one field more than it names."""
    try:
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # no signature to be had: an extension's function
        return function
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise UserError(
            f"verifier {name!r}: its signature {inspect.signature(function)} has no **row\n"
            "  it is called with every field of the data row: def verify(completion, answer, **row)"
        )
    return function
