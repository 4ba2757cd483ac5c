"""The entry `onebase.verifiers.sandbox_script:main`: runs a Python source text as a script would be run, in
the warm interpreter.  Always preloaded.
"""

from __future__ import annotations

import atexit
import sys
import threading
from types import ModuleType

ENTRY = "onebase.verifiers.sandbox_script:main"


def main(payload: bytes, channel: int | None) -> None:
    """Execute the source as `__main__` with the run's folder as its import path.  Exceptions and SystemExit
    go to the caller, which reports them as the interpreter does; threads and atexit functions are waited for
    as at the end of a script."""
    module = ModuleType("__main__")
    names = module.__dict__
    names["__file__"] = "main.py"
    names["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv[:] = ["main.py"]
    if sys.path[0]:
        sys.path.insert(0, "")
    try:
        exec(compile(payload, "main.py", "exec", dont_inherit=True), names)
    finally:
        if len(threading._active) > 1:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
