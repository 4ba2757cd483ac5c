"""Test code as the verifier reads it: what its tests are, which names it wants from the solution.

A test is a statement, at the top level or in the body of `check(candidate)`, that holds an `assert` or calls
a function of the test code that does.  `instrument` rewrites each of them so that its outcome is reported
under a number; the verifier counts the same statements on its own side, so that a test which never reports is
a failure.  Where every test is `assert f(literals) == literal`, `direct` gives the calls and the expected
values, and no test code need run at all.

Only the data set's own test code is parsed here, never the solution.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from dataclasses import dataclass
from typing import Any

from onebase.verifiers.code_shapes import MARK

REPORT = "__onebase_report__"
_MARKED = re.compile(rf"{MARK}\(([\w.]+)\)")


class TestCodeError(ValueError):
    """Test code that cannot be understood: an error of the data, not of the solution."""

    __test__ = False


@dataclass(frozen=True, slots=True)
class Call:
    """`entry(*args, **kwargs)` shall be equal to (or, `same`, be) `expected`; `text` shows it to people."""

    entry: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: Any
    same: bool
    text: str


def parse(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
            compile(source, "tests.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestCodeError(f"the test code does not compile: {error}") from error
    return tree


def complete(tree: ast.Module, entry: str | None) -> None:
    """HumanEval's tests define `check` and leave the call to the harness: add it."""
    check = _check(tree)
    if check is None or any(_called(s) == "check" for s in tree.body):
        return
    if not entry:
        raise TestCodeError("the test code defines check(candidate) but the row has no entry_point")
    try:
        argument = ast.parse(entry, mode="eval").body
    except SyntaxError as error:
        raise TestCodeError(f"entry_point {entry!r} is not an expression") from error
    call = ast.Call(ast.Name("check", ast.Load()), [argument], [])
    tree.body.append(ast.copy_location(ast.Expr(call), tree.body[-1]))
    ast.fix_missing_locations(tree)


def instrument(tree: ast.Module) -> list[str]:
    """Wrap every test of `tree` in a report; the tests' texts, in the order of their numbers."""
    testers = _testers(tree)
    tests: list[str] = []
    check = _check(tree)
    calls = [s for s in tree.body if _called(s) == "check"]
    expand = check is not None and len(calls) == 1 and any(_is_test(s, testers) for s in check.body)
    body: list[ast.stmt] = []
    for statement in tree.body:
        if statement is check and expand:
            assert check is not None
            check.body = [_wrapped(s, tests) if _is_test(s, testers) else s for s in check.body]
            body.append(check)
        elif _is_test(statement, testers) and not (expand and statement in calls):
            body.append(_wrapped(statement, tests))
        else:
            body.append(statement)
    tree.body = body
    ast.fix_missing_locations(tree)
    if not tests:
        raise TestCodeError("the test code asserts nothing")
    return tests


def shadowed(tree: ast.Module, entry: str | None) -> set[str]:
    """Built-in names that stand for the solution's functions: that of the entry point, or, where the test
    code wants no other name, those that asserts call.  (Otherwise a solution could define `len`.)"""
    root = (entry or "").partition("(")[0].partition(".")[0]
    if root:
        return {root} & set(dir(builtins))
    if free_names(tree):
        return set()
    compared = [
        s.test.left for s in tree.body if isinstance(s, ast.Assert) and isinstance(s.test, ast.Compare)
    ]
    called = [side.func for side in compared if isinstance(side, ast.Call)]
    return {f.id for f in called if isinstance(f, ast.Name)} & set(dir(builtins))


def direct(tree: ast.Module, entry: str | None) -> list[Call] | None:
    """The calls, where the test code is nothing but `assert f(literals) == literal`, else None."""
    ours = shadowed(tree, entry)
    defined = {s.name for s in tree.body if isinstance(s, ast.FunctionDef)}
    check = _check(tree)
    calls: list[Call | None] = []
    for statement in tree.body:
        if statement is check:
            assert check is not None
            plain = len(check.args.args) == 1 and not check.decorator_list and not check.args.defaults
            passed = [
                s.value.args for s in tree.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)
            ]
            if not plain or len(passed) != 1 or len(passed[0]) != 1:
                return None
            candidate, given = check.args.args[0].arg, ast.unparse(passed[0][0])
            rest = [s for s in check.body if not _is_text(s)]
            calls += [_simple(s, {candidate: given}, defined, ours) for s in rest]
        elif isinstance(statement, ast.Assert):
            calls.append(_simple(statement, {}, defined | ({"check"} if check else set()), ours))
        elif _is_text(statement) or _called(statement) == "check" or _is_constant(statement):
            continue
        else:
            return None
    return None if None in calls or not calls else [c for c in calls if c is not None]


def free_names(source: str | ast.Module) -> list[str]:
    """Names that the test code uses and neither it nor Python defines."""
    text = source if isinstance(source, str) else ast.unparse(source)
    top = symtable.symtable(text, "tests.py", "exec")
    bound = {
        s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()
    }
    used: set[str] = set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                used.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                bound.add(symbol.get_name())
    return sorted(used - bound - set(dir(builtins)) - {REPORT, MARK, "__file__", "__name__", "__builtins__"})


def imported(tree: ast.Module, module: str) -> list[str]:
    """Names that the test code takes from the solution's module, by import or as attributes of it."""
    found: set[str] = set()
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            found |= {alias.name for alias in node.names if alias.name != "*"}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name for alias in node.names if alias.name == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(node.attr)
    return sorted(found)


def mentioned(tree: ast.Module) -> set[str]:
    """Every name and attribute in the test code."""
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def _check(tree: ast.Module) -> ast.FunctionDef | None:
    found = [s for s in tree.body if isinstance(s, ast.FunctionDef) and s.name == "check" and s.args.args]
    return found[0] if len(found) == 1 else None


def _called(statement: ast.stmt) -> str | None:
    """The function's name where the statement is one call of a plain name."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else None


def _testers(tree: ast.Module) -> set[str]:
    """Functions of the test code that assert or raise, or call one that does."""
    functions = {s.name: s for s in tree.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)}
    found = {
        name
        for name, f in functions.items()
        if any(isinstance(n, ast.Assert | ast.Raise) for n in ast.walk(f))
    }
    while True:
        more = {
            name for name, f in functions.items()
            if name not in found and any(isinstance(n, ast.Name) and n.id in found for n in ast.walk(f))
        }  # fmt: skip
        if not more:
            return found
        found |= more


def _is_test(statement: ast.stmt, testers: set[str]) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in testers:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return False


def _wrapped(statement: ast.stmt, tests: list[str]) -> ast.Try:
    number = len(tests)
    text = _MARKED.sub(r"\1", " ".join(ast.unparse(statement).split()))
    tests.append(text[:200])

    def report(argument: ast.expr) -> ast.stmt:
        call = ast.Call(ast.Name(REPORT, ast.Load()), [ast.Constant(number), argument], [])
        return ast.copy_location(ast.Expr(call), statement)

    error = "__onebase_error__"
    handler = ast.ExceptHandler(
        ast.Name("BaseException", ast.Load()), error, [report(ast.Name(error, ast.Load()))]
    )
    wrapped = ast.Try([statement], [handler], [report(ast.Constant(None))], [])
    return ast.copy_location(wrapped, statement)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _is_constant(statement: ast.stmt) -> bool:
    """`METADATA = {…}`: an assignment of a literal, which no simple test reads."""
    return isinstance(statement, ast.Assign) and _literal(statement.value) is not None


def _literal(node: ast.expr) -> tuple[Any] | None:
    try:
        return (ast.literal_eval(node),)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _simple(statement: ast.stmt, names: dict[str, str], defined: set[str], ours: set[str]) -> Call | None:
    """`assert f(literals) == literal` (or `is` True, False, None; or turned round) as a Call."""
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return None
    test = statement.test
    if len(test.ops) != 1:
        return None
    left, right, op = test.left, test.comparators[0], test.ops[0]
    if isinstance(right, ast.Call) and not isinstance(left, ast.Call):
        left, right = right, left
    expected = _literal(right)
    if expected is None or not isinstance(left, ast.Call) or not isinstance(left.func, ast.Name):
        return None
    same = isinstance(op, ast.Is) and any(expected[0] is x for x in (True, False, None))
    name = left.func.id
    theirs = name in defined or (name not in names and name not in ours and hasattr(builtins, name))
    if theirs or not (same or isinstance(op, ast.Eq)):
        return None
    args = [_literal(a) for a in left.args]
    kwargs = {k.arg: _literal(k.value) for k in left.keywords}
    if None in args or None in kwargs or None in kwargs.values():
        return None
    return Call(
        names.get(name, name),
        tuple(a[0] for a in args if a is not None),
        {str(k): v[0] for k, v in kwargs.items() if v is not None},
        expected[0],
        same,
        " ".join(ast.unparse(left).split())[:200],
    )
