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
    go to the caller, which reports them as the interpreter does; threads and atexit functions are waited
    for as at the end of a script."""
    module = ModuleType("__main__")
    module.__dict__["__file__"] = "main.py"
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = ["main.py"]
    sys.path.insert(0, "")
    try:
        exec(compile(payload, "main.py", "exec", dont_inherit=True), module.__dict__)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
