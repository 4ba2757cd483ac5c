"""What `reasoning_gym` runs inside the sandbox: problems are made and the package scores answers.

Nine of the package's data sets evaluate the answer's text as Python.  The sandbox keeps such a text from
doing harm; that it does not write its own score is seen to here.  What the package or sympy compiles while it
scores may hold numbers, texts, lists, names and calls of elementary functions, and nothing that reaches
further: no attribute, function, comprehension or name with underscores, no tower of powers.  Anything else
is refused before it runs.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any

# Before numpy comes in: a process with threads cannot be forked.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

import reasoning_gym  # noqa: E402

EVALUATING = ("reasoning_gym", "sympy.parsing")
NODES = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Name, ast.Load, ast.Call,
    ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator, ast.Compare, ast.cmpop,
)  # fmt: skip
CALLS = frozenset(
    "Symbol Integer Float Rational Abs abs int float sqrt cbrt root exp log ln sin cos tan cot sec csc asin "
    "acos atan acot asec acsc sinh cosh tanh coth asinh acosh atanh Min Max".split()
)
LARGEST_POWER = 100


class Refused(BaseException):
    """Not an Exception: the package catches those."""


def make(payload: bytes, channel: int | None) -> None:
    """Prints a line of JSON for each index: question, gold, and the whole entry, pickled, for `score`.

    Here and not in the caller: some data sets depend on the seed of str hashes, which is fixed here."""
    out, sys.stdout = sys.stdout, io.StringIO()  # some data sets print
    job = json.loads(payload)
    dataset = open_dataset(job)
    for index in job["indices"]:
        entry = dataset[index]
        packed = base64.b64encode(pickle.dumps(entry)).decode("ascii")
        told = {"question": entry["question"], "gold": entry["answer"], "entry": packed}
        print(json.dumps(told), file=out, flush=True)


def open_dataset(job: dict[str, Any]) -> Any:
    return reasoning_gym.create_dataset(job["dataset"], seed=job["seed"], size=job["size"], **job["config"])


def score(payload: bytes, channel: int | None) -> None:
    """Prints a line when it begins, and one of JSON: the score, or why there is none."""
    out, sys.stdout = sys.stdout, io.StringIO()
    job = json.loads(payload)
    dataset, entry = open_dataset(job), pickle.loads(base64.b64decode(job["entry"]))
    known = set(texts_of(entry))
    print("{}", file=out, flush=True)
    sys.addaudithook(lambda event, arguments: watch(event, arguments, known))
    try:
        told: dict[str, Any] = {"score": float(dataset.score_answer(job["answer"], entry))}
    except Refused as refused:
        told = {"refused": str(refused)}
    except Exception as error:  # the package's own code, on any text a model may write
        told = {"raised": f"{type(error).__name__}: {str(error)[:200]}"}
    print(json.dumps(told), file=out, flush=True)


def texts_of(value: Any) -> Iterator[str]:
    """Every text of the problem: what the package evaluates of its own."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from texts_of(part)


def watch(event: str, arguments: tuple[Any, ...], known: set[str]) -> None:
    """The audit hook: sees every text that is compiled, before it is."""
    if event != "compile" or not isinstance(arguments[0], str | bytes):
        return
    caller = sys._getframe(2).f_globals.get("__name__", "")  # past this function and the hook itself
    source = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode("utf-8", "replace")
    if caller.startswith(EVALUATING) and source.strip() not in known and (fault := fault_of(source)):
        raise Refused(fault)


def fault_of(source: str) -> str:
    """Why a text may not be evaluated, or nothing.  Text that does not parse raises nothing here: it will
    raise where it is compiled."""
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            return f"{type(node).__name__} in the answer"
        if isinstance(node, ast.Name) and "__" in node.id:
            return f"the name {node.id[:40]}"
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in CALLS):
            return "a call of " + (node.func.id[:40] if isinstance(node.func, ast.Name) else "an expression")
        if isinstance(node, ast.BinOp) and (fault := _heavy(node)):
            return fault
    return ""


def _heavy(node: ast.BinOp) -> str:
    if isinstance(node.op, ast.LShift):
        return "a shift"
    if isinstance(node.op, ast.Mult):
        for side in (node.left, node.right):
            if isinstance(side, ast.List | ast.Tuple) or (
                isinstance(side, ast.Constant) and isinstance(side.value, str | bytes)
            ):
                return "a text or list times a number"
    if isinstance(node.op, ast.Pow):
        for part in ast.walk(node.right):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow):
                return "a power in an exponent"
            if isinstance(part, ast.Constant) and isinstance(part.value, int | float):
                if not abs(part.value) <= LARGEST_POWER:
                    return f"an exponent above {LARGEST_POWER}"
    return ""
