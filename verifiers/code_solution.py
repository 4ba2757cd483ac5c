"""The solution's process: loads the code and answers questions about it, one at a time.

Runs inside the sandbox, in one interpreter with the solution, so nothing here is secret or trusted: the
solution may read and replace all of it.  What matters is what is absent: expected values, the tests, and any
way to speak to somebody other than the verifier, who takes every answer as a stranger's claim.

Frames on the channel: 4 bytes of length, 8 bytes of nonce, then the body (`code_wire`).  An answer carries
the nonce of its question.  Questions are `[op, target, …]`:
    load                    run the code
    names [name, …]         what the code defines of these
    public                  the names that a star import would take
    entry text              the value of an expression in the code's namespace
    ask text fresh args kwargs
                            call what the expression says (evaluated anew if `fresh`); the plain result
    do function args kwargs one of OPERATIONS on objects of this process; arguments that were changed in
                            place, and what was printed, come back too
Answers: `["ok", result, changed or null, printed]`, `["raise", class, message, args, exception, printed]`, or
`["back", id, args, kwargs]`: a function of the test process is called, and its own answer is awaited.
"""

from __future__ import annotations

import array
import asyncio
import bisect
import builtins
import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import heapq
import importlib
import inspect
import io
import itertools
import json
import math
import operator
import os
import random
import re
import signal
import statistics
import string
import struct
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from onebase.verifiers.code_assemble import assemble
from onebase.verifiers.code_shapes import shape_of
from onebase.verifiers.code_unwire import Decoder, numpy_array
from onebase.verifiers.code_wire import FRAME_BYTES, Encoder, Node, WireError

# Imported here so that it is warm in every run: what solutions commonly import.
WARM = (array, asyncio, bisect, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools,
        heapq, itertools, math, random, re, statistics, string, typing)  # fmt: skip
ENTRY = "onebase.verifiers.code_solution:main"
HEAD = struct.Struct("<I8s")
PRINTED = 1 << 18  # characters of output that travel with one answer
MESSAGE = 2000


def main(payload: bytes, channel: int | None) -> None:
    """`payload`: JSON with the code and what goes with it, see `code_host.solution_source`."""
    assert channel is not None
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):  # what the solution prints is no evidence here, and need not be read
        os.dup2(null, fd)
    Server(channel, json.loads(payload)).serve()


def getter(target: Any, name: str) -> Any:
    return getattr(target, name)


def call(target: Any, /, *args: Any, **kwargs: Any) -> Any:
    return target(*args, **kwargs)


def state(target: Any) -> Any:
    """The attributes of an object, for a comparison by attributes."""
    found = dict(getattr(target, "__dict__", {}))
    for cls in type(target).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if hasattr(target, name) and name not in ("__dict__", "__weakref__"):
                found[name] = getattr(target, name)
    return found


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def advance(iterator: Any, count: int) -> list[Any]:
    """Up to `count` next items and whether that is the end.  An exception after some items waits for the next
    call."""
    if id(iterator) in POSTPONED:
        raise POSTPONED.pop(id(iterator))
    items: list[Any] = []
    try:
        while len(items) < count:
            items.append(next(iterator))
    except StopIteration:
        return [items, True]
    except BaseException as error:
        if not items:
            raise
        POSTPONED[id(iterator)] = error
    return [items, False]


POSTPONED: dict[int, BaseException] = {}


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": call, "get": getter, "set": setattr, "del": delattr, "state": state, "run": run,
    "iter": iter, "advance": advance, "len": len, "bool": bool, "str": str, "repr": repr, "format": format,
    "int": int, "float": float, "complex": complex, "round": round, "hash": hash, "dir": dir,
    "isinstance": isinstance, "issubclass": issubclass, "reversed": reversed,
    **{name: getattr(operator, name) for name in (
        "getitem", "setitem", "delitem", "contains", "index", "add", "sub", "mul", "matmul", "truediv",
        "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor", "iadd", "isub", "imul",
        "itruediv", "ior", "iand",
        "neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne")},
}  # fmt: skip


class Server:
    def __init__(self, channel: int, source: dict[str, Any]) -> None:
        self.channel, self.source = channel, source
        self.nonce = b""
        self.module = types.ModuleType(source["module"])
        self.namespace = self.module.__dict__
        self.handles: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}
        self.last_number = 0
        self.named = False
        self.entries: dict[str, Any] = {}
        self.records = set(source["records"])
        self.changed: list[Any] | None = None

    # -- frames ------------------------------------------------------------------------------------------

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.channel, size)
            if not part:
                os._exit(0)  # the verifier has no more questions
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def receive(self) -> tuple[bytes, bytes]:
        size, nonce = HEAD.unpack(self.read(HEAD.size))
        return nonce, self.read(size)

    def send(self, body: bytes) -> None:
        data = memoryview(HEAD.pack(len(body), self.nonce) + body)
        while data:
            data = data[os.write(self.channel, data) :]

    def answer(self, *values: Any) -> None:
        body = Encoder(self.describe).frame(values)
        if len(body) > FRAME_BYTES:
            raise WireError(f"a result of {len(body)} bytes; the limit is {FRAME_BYTES}")
        self.send(body)

    def decoder(self) -> Decoder:
        return Decoder(
            leaves={
                "A": numpy_array,
                "h": lambda meta, _: self.handles[meta[0]],
                "x": lambda meta, _: self.handles[meta[0]],
                "K": lambda meta, _: self.namespace[meta],
                "g": stdlib,
                "E": lambda meta, args: stdlib(meta, [])(*args),
                "I": lambda meta, items: iter(items),
                "y": self.callback,
            },
            shells={"R": (self.new_record, fill_record)},
        )

    # -- the loop ----------------------------------------------------------------------------------------

    def serve(self) -> None:
        while True:
            self.one_question()

    def one_question(self) -> Any:
        """Serve one frame; the values of a frame that is the answer to a call back are returned instead."""
        self.nonce, data = self.receive()
        decoder, printed = self.decoder(), io.StringIO()
        try:
            values = decoder.frame(data)
        except WireError as error:  # an object of a process that has died
            self.raised(error, printed)
            return None
        if values[0] == "back":
            return values
        signal.setitimer(signal.ITIMER_PROF, self.source["cpu_seconds"])
        try:
            result = self.do(data, decoder, values, printed) if values[0] == "do" else self.plain(*values)
        except BaseException as error:
            self.raised(error, printed)
            return None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            changed = self.changed if values[0] == "do" else None
            self.answer("ok", result, changed, printed.getvalue()[:PRINTED])
            if values[0] == "names" and not self.named:
                # The test's first question.  A process that takes over from one that died gives these names
                # the same numbers, and none of the numbers that the other gave later.
                self.named, self.last_number = True, self.source["start"] << 32
        except (Exception, RecursionError) as error:  # a value that cannot travel
            self.answer("raise", RuntimeError, f"{type(error).__name__}: {error}"[:MESSAGE], [], None, "")
        return None

    def plain(
        self, op: str, target: Any = None, fresh: bool = False, args: Any = (), kwargs: Any = None
    ) -> Any:
        if op == "load":
            return self.load()
        if op == "names":
            return [[name, self.namespace[name]] for name in target if name in self.namespace]
        if op == "public":
            names = [name for name in self.namespace if not name.startswith("_")]
            return list(self.namespace.get("__all__", names))
        if op == "entry":
            return self.entry(target)
        assert op == "ask", op
        if fresh or target not in self.entries:
            self.entries[target] = self.entry(target)
        return self.entries[target](*args, **(kwargs or {}))

    def do(self, data: bytes, decoder: Decoder, values: list[Any], printed: io.StringIO) -> Any:
        """One of OPERATIONS.  Arguments are encoded before and after, to see whether they were changed."""
        _, name, args, kwargs = values
        mutables = decoder.mutables()[2:]  # without `args` and `kwargs` themselves
        before = Encoder(self.describe).frame([args, kwargs]) if mutables else b""
        old, sys.stdout = sys.stdout, printed
        try:
            result = OPERATIONS[name](*args, **kwargs)
        finally:
            sys.stdout = old
        kept = any(type(thing).__name__ in self.records for thing in mutables)  # whose identity matters
        same = not mutables or not kept and Encoder(self.describe).frame([args, kwargs]) == before
        self.changed = None if same else mutables
        return result

    def raised(self, error: BaseException, printed: io.StringIO) -> None:
        try:
            message = str(error)[:MESSAGE]
        except BaseException:
            message = ""
        try:
            plain = list(BaseException.args.__get__(error))  # type: ignore[attr-defined]
            self.answer("raise", type(error), message, plain, error, printed.getvalue()[:PRINTED])
        except Exception:
            self.answer("raise", RuntimeError, f"{type(error).__name__}: {message}"[:MESSAGE], [], None, "")

    # -- the code ----------------------------------------------------------------------------------------

    def load(self) -> None:
        sys.modules[self.source["module"]] = self.module
        if self.source["prelude"]:
            exec(compile(self.source["prelude"], "prelude.py", "exec"), self.namespace)
        text = assemble(self.source["code"], self.source["prefix"], self.source["entry"])
        exec(compile(text, "solution.py", "exec", dont_inherit=True), self.namespace)
        if self.source["interactive"]:
            builtins.input = self.input

    def input(self, prompt: object = "") -> str:
        """What the test process has as `input`, which a test may have replaced."""
        return self.call_back(0, (str(prompt),), {})

    def entry(self, text: str) -> Any:
        """`f`, or a method of the class Solution where there is no such function, or any expression."""
        solution = self.namespace.get("Solution")
        if text.isidentifier() and text not in self.namespace and hasattr(solution, text):
            return getattr(solution(), text)  # type: ignore[misc]
        if text.isidentifier() and text not in self.namespace:  # not a built-in function of that name
            raise NameError(f"name {text!r} is not defined")
        return eval(compile(text, "entry", "eval"), self.namespace)

    # -- objects that do not travel ------------------------------------------------------------------------

    def number(self, thing: Any) -> int:
        number = self.numbers.get(id(thing))
        if number is None:
            number = self.last_number = self.numbers[id(thing)] = self.last_number + 1
            self.handles[number] = thing  # kept, so that the id stays taken
        return number

    def describe(self, thing: Any) -> Node:
        kind = type(thing)
        if issubclass(kind, type):
            return self.describe_class(thing)
        if kind.__name__ in self.records:
            return Node("R", kind.__name__, itertools.chain.from_iterable(vars(thing).items()), mutable=True)
        if kind is Member:  # without its class, which is being described
            return Node("h", [self.number(thing.thing), "object", type(thing.thing).__name__])
        if isinstance(thing, Callback):
            return Node("y", thing.number)
        nature = (
            "coroutine" if inspect.iscoroutine(thing)
            else "iterator" if hasattr(kind, "__next__")
            else "function" if callable(thing)
            else "object"
        )  # fmt: skip
        children = [kind] if nature == "object" else []
        return Node("h", [self.number(thing), nature, kind.__name__], children)

    def describe_class(self, thing: type) -> Node:
        if thing.__module__ == "builtins" and getattr(builtins, thing.__name__, None) is thing:
            return Node("g", ["builtins", thing.__name__])
        if thing.__name__ in self.records:
            return Node("K", thing.__name__)
        number = self.number(thing)
        if issubclass(thing, BaseException):
            return Node("x", [number, thing.__name__], thing.__bases__)
        try:
            kind, names, values = shape_of(thing) or (None, None, [])
        except Exception:  # a class that does not let itself be looked at
            kind, names, values = None, None, []
        if kind == "enum":
            values = [v if isinstance(v, int | str | float | bytes | tuple) else Member(v) for v in values]
        return Node("x", [number, thing.__name__, kind, names], values)

    def new_record(self, name: Any) -> Any:
        self.records.add(name)
        cls = self.namespace.get(name)
        if not isinstance(cls, type):
            cls = self.namespace.setdefault(name, type(name, (), {}))
        return object.__new__(cls)

    def callback(self, meta: Any, _: list[Any]) -> Callback:
        return Callback(self, meta)

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the test process; questions that it asks meanwhile are answered."""
        self.answer("back", number, list(args), kwargs)
        while (answer := self.one_question()) is None:
            pass
        _, fine, result = answer
        if fine:
            return result
        name, message = result
        kind = getattr(builtins, name, RuntimeError)
        raise (
            kind(message) if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(message)
        )


class Member:
    """A member of an enumeration, as part of the description of its class."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


class Callback:
    """A function of the test process, callable here."""

    def __init__(self, server: Server, number: int) -> None:
        self.server, self.number = server, number

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.server.call_back(self.number, args, kwargs)


def fill_record(thing: Any, meta: Any, children: list[Any]) -> None:
    for name, value in zip(children[::2], children[1::2], strict=True):
        object.__setattr__(thing, name, value)


def stdlib(meta: Any, _: list[Any]) -> Any:
    """A function or class of the standard library, by name; the verifier's own side sends these."""
    module, name = meta
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))
