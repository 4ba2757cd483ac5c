"""Finds a verifier by name: a built-in (`math_answer`), an entry point in the group `onebase.verifiers` that
any installed package may declare, or a function in a file (`rewards/mine.py:score`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import threading
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from onebase.errors import UserError
from onebase.verifiers.base import Verifier

GROUP = "onebase.verifiers"
# One thread imports a verifier's file while the others wait: a half-imported module has no function yet.
# Re-entrant, because a file may load another verifier as it is imported.
_IMPORTING = threading.RLock()


def builtin_names() -> list[str]:
    """Names of the built-in verifiers: modules beside this one with a top-level `verify` (not imported)."""
    folder = Path(__file__).parent
    return sorted(p.stem for p in folder.glob("*.py") if "\ndef verify(" in p.read_text(encoding="utf-8"))


def plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def load(name: str) -> Verifier:
    """The function behind `name`.  Raises UserError when there is none."""
    if ".py:" in name:
        return _from_file(name)
    if name in builtin_names():
        return _callable(importlib.import_module(f"onebase.verifiers.{name}"), "verify", name)
    found = plugins()
    if name in found:
        try:
            function = found[name].load()
        except Exception as error:
            raise UserError(
                f"verifier {name!r}: entry point {found[name].value!r} cannot be loaded: {error}"
            ) from error
        if not callable(function):
            raise UserError(f"verifier {name!r}: entry point {found[name].value!r} is not a function")
        return function
    known = sorted({*builtin_names(), *found})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"verifier {name!r} is unknown{hint}\n  known: {', '.join(known)}\n"
        f"  or an entry point of the group {GROUP!r}, or a function in a file: path/to/file.py:function"
    )


def is_inline(name: str) -> bool:
    """True for built-ins that bound their own work (attribute INLINE) and so may run without a process."""
    if name not in builtin_names():
        return False
    return bool(getattr(importlib.import_module(f"onebase.verifiers.{name}"), "INLINE", False))


def _from_file(name: str) -> Verifier:
    file_part, _, function = name.rpartition(":")
    path = Path(file_part).expanduser()
    if not path.is_file():
        raise UserError(f"verifier {name!r}: there is no file {str(path)!r} (looked in {Path.cwd()})")
    # A digest in the module name keeps two files of the same stem apart and lets workers agree on it.
    module_name = f"onebase_verifier_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    with _IMPORTING:
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, path)
            assert spec is not None and spec.loader is not None, f"{path=}"
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                del sys.modules[module_name]
                raise UserError(
                    f"verifier {name!r}: {path} cannot be imported: {type(error).__name__}: {error}"
                ) from error
    return _callable(module, function, name)


def _callable(module: ModuleType, function: str, name: str) -> Verifier:
    found = getattr(module, function, None)
    if callable(found):
        return found
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(function, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"verifier {name!r}: {module.__file__} has no function {function!r}{hint}")
