"""The program of a solution that continues a prefix, such as HumanEval's prompt.

Runs in the solution's process: a stranger's text is parsed nowhere else.
"""

from __future__ import annotations

import ast


def assemble(code: str, prefix: str, entry: str | None) -> str:
    """The text to run.  With a prefix (a prompt that ends in an open function) the code may be its
    continuation, or a whole program that defines the entry point again."""
    if not prefix:
        return code
    name = (entry or "").partition("(")[0].partition(".")[0]
    if not defines(code, name):
        prefix = prefix.rstrip(" \t")
        return prefix + code if prefix.endswith("\n") else f"{prefix}\n{code}"
    for closed in (prefix, f"{prefix.rstrip()}\n    pass"):
        if parses(closed):
            return f"{closed.rstrip()}\n\n{code}"
    return code


def parses(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defines(code: str, name: str) -> bool:
    tree = parses(code)
    if tree is None or not name:
        return tree is not None and not name
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(s, named) and s.name == name for s in tree.body) or any(
        isinstance(t, ast.Name) and t.id == name
        for s in tree.body
        if isinstance(s, ast.Assign)
        for t in s.targets
    )
