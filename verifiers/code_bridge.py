"""The test process's end of the talk with the solution's process.

Values go out as `code_wire` frames through the verifier, who passes them on; what comes back is built here as
plain values, as stand-ins (`code_remote`), and as exceptions.  An exception arrives as the built-in class of
that name or as a class made here for the solution's own.  Those that would end an iteration, a generator,
the process or the run (StopIteration, SystemExit, …) arrive as SolutionRaised, unless the test code names
them: a solution must not end a test by raising.
"""

from __future__ import annotations

import builtins
import itertools
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from onebase.verifiers.code_remote import NATURES, Remote, RemoteClass, by_name, remote_class
from onebase.verifiers.code_shapes import is_class_name, read_shape
from onebase.verifiers.code_unwire import Decoder, numpy_array
from onebase.verifiers.code_wire import Encoder, Node, WireError

HEAD = struct.Struct("<I1s")
DRAINED = 100_000  # items of an iterator that is passed to the solution
QUIET = ("get", "eq", "ne", "lt", "le", "gt", "ge", "isinstance", "issubclass", "len", "bool", "str", "repr",
         "format", "hash", "dir", "state")  # fmt: skip
ENDINGS = ("StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt",
           "BaseException", "BaseExceptionGroup")  # fmt: skip


class SolutionRaised(Exception):
    """The solution raised something that may not travel as it is."""


class SolutionGone(BaseException):
    """The solution's process has ended.  Not an Exception: tests that expect one must not be content."""


class Bridge:
    """Asks the solution's process, through the verifier."""

    def __init__(
        self, read: Callable[[int], bytes], write: Callable[[bytes], None], spec: dict[str, Any]
    ) -> None:
        self.read, self.write, self.spec = read, write, spec
        self.things: dict[int, Remote] = {}
        self.classes: dict[int, Any] = {}
        self.named_classes: dict[int, Any] = {}
        self.functions: list[Any] = [lambda *args: builtins.input(*args)]  # 0: `input`, as the test has it
        self.record_classes: dict[str, type] = {}
        self.answers = 0
        self.touched: set[int] = set()  # objects on which the solution has been asked to do something
        self.quiet = False
        self.ahead: dict[int, Any] = {}
        self.failed_callback: str | None = None
        self.last: Any = None
        self.notes: list[str] = []

    # -- frames ------------------------------------------------------------------------------------------

    def frame(self, kind: bytes, body: bytes) -> None:
        self.write(HEAD.pack(len(body), kind) + body)

    def exchange(self, body: bytes, originals: list[Any]) -> list[Any]:
        """Send a question, serve what the solution calls back meanwhile, hand over the answer."""
        self.frame(b"Q", body)
        while True:
            size, kind = HEAD.unpack(self.read(HEAD.size))
            data = self.read(size)
            if kind == b"X":
                raise SolutionGone(data.decode("utf-8", "replace"))
            self.answers += 1
            answer = self.decoder().frame(data, originals)
            if not answer or answer[0] != "back":
                return answer
            self.called_back(answer)

    def called_back(self, answer: list[Any]) -> None:
        _, number, args, kwargs = answer
        if type(number) is not int or not 0 <= number < len(self.functions):
            raise WireError("a call of no function")
        try:
            result, fine = self.functions[number](*args, **kwargs), True
        except SolutionGone:
            raise
        except BaseException as error:
            if isinstance(error, AssertionError) and self.failed_callback is None:
                # The solution may swallow it; the test has failed all the same.
                self.failed_callback = f"in a function that the solution called: {error}"
            result, fine = [type(error).__name__, str(error)[:2000]], False
        self.frame(b"Q", Encoder(self.describe).frame(["back", fine, result]))

    def decoder(self) -> Decoder:
        return Decoder(
            leaves={"A": numpy_array, "h": self.thing, "x": self.class_, "g": builtin, "K": self.record_class,
                    "y": lambda meta, _: self.functions[meta]},
            shells={"R": (self.new_record, fill_record)},
        )  # fmt: skip

    def ask(self, *question: Any, originals: int | None = None) -> Any:
        """The result; raises what the solution raised."""
        encoder = Encoder(self.describe)
        body = encoder.frame(question)
        sent = [] if originals is None else encoder.mutables[originals:]
        try:
            answer = self.exchange(body, sent)
            if answer[0] == "ok":
                _, result, _, printed = answer
                error = None
            else:
                _, kind, message, args, thing, printed = answer
                error = self.exception(kind, message, args, thing)
        except (WireError, ValueError, TypeError, IndexError, AttributeError) as problem:
            raise SolutionRaised(f"an answer out of form: {problem}") from None
        if isinstance(printed, str) and printed:
            sys.stdout.write(printed)
        if error is not None:
            raise error
        if question[0] == "do":
            self.last = result
        return result

    def do(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        self.quiet = name in QUIET
        found = self.ask("do", name, list(args), kwargs, originals=2)
        if name == "get" and isinstance(found, Remote) and isinstance(args[0], Remote):
            self.touched.add(args[0]._onebase_id)  # a method, say, which may do anything
        return found

    # -- what is sent --------------------------------------------------------------------------------------

    def describe(self, thing: Any) -> Node:
        if isinstance(thing, Remote):
            number = thing._onebase_id
            if not self.quiet:
                self.touched.add(number)
            return Node("h", [number])
        kind = type(thing)
        if isinstance(thing, type):
            for number, known in self.classes.items():
                if known is thing:
                    return Node("x", [number])
            if self.record_classes.get(thing.__name__) is thing:
                return Node("K", thing.__name__)
        if (named := by_name(thing)) is not None:
            return Node("g", named)
        if isinstance(thing, BaseException) and by_name(kind) is not None:
            return Node("E", by_name(kind), thing.args)
        if callable(thing):
            self.functions.append(thing)
            return Node("y", len(self.functions) - 1)
        if isinstance(thing, Iterator):
            return Node("I", None, itertools.islice(thing, DRAINED))
        if hasattr(thing, "__dict__"):
            self.record_classes.setdefault(kind.__name__, kind)
            return Node("R", kind.__name__, itertools.chain.from_iterable(vars(thing).items()), mutable=True)
        raise TypeError(f"a {kind.__name__} cannot be passed to the solution")

    # -- what arrives --------------------------------------------------------------------------------------

    def thing(self, meta: Any, children: list[Any]) -> Any:
        number, nature, name = meta
        if type(number) is not int or type(nature) is not str or type(name) is not str:
            raise WireError("not an object")
        if number not in self.things:
            kind = NATURES.get(nature, Remote)
            # A type of its own, so that `type(x).__name__` reads as it does in the solution.
            named = type(name[:100] or "Object", (kind,), {"__slots__": ()})
            self.things[number] = named(self, number, children[0] if children else None)
        found = self.things[number]
        if children and found._onebase_class is None:
            object.__setattr__(found, "_onebase_class", children[0])
        return found._onebase_coroutine() if nature == "coroutine" else found

    def class_(self, meta: Any, children: list[Any]) -> Any:
        number, name = meta[:2]
        if type(number) is not int or type(name) is not str:
            raise WireError("not a class")
        if number not in self.classes:
            bases = tuple(b for b in children if isinstance(b, type) and issubclass(b, BaseException))
            if bases:
                self.classes[number] = exception_class(name, bases)
            else:
                self.classes[number] = remote_class(self, number, name, read_shape(meta, children))
        return self.classes[number]

    def reached_as(self, name: str, found: Any) -> Any:
        """A class counts as a class only under a name that the test writes as one."""
        if not isinstance(found, RemoteClass) or not is_class_name(name):
            return found
        key = found._onebase_id
        if key not in self.named_classes:
            self.named_classes[key] = found._onebase_as(2)
        return self.named_classes[key]

    def new_record(self, name: Any) -> Any:
        if name not in self.record_classes:
            raise WireError(f"no record {str(name)[:50]!r}")
        return object.__new__(self.record_classes[name])

    def record_class(self, name: Any, _: list[Any]) -> type:
        return self.record_classes[name]

    def exception(self, kind: Any, message: Any, args: Any, thing: Any) -> BaseException:
        if not isinstance(kind, type) or not issubclass(kind, BaseException) or type(message) is not str:
            raise WireError("not an exception")
        endings = [getattr(builtins, name) for name in ENDINGS if hasattr(builtins, name)]
        named = any(base.__name__ in self.spec["mentioned"] for base in kind.__mro__ if base in endings[:5])
        if not named and (not issubclass(kind, Exception) or any(issubclass(kind, e) for e in endings[:2])):
            return SolutionRaised(f"{kind.__name__}: {message}")
        args = args if isinstance(args, list) else []
        try:
            error = kind(*args)
        except Exception:
            error = kind.__new__(kind)
            error.args = (message,)
        if getattr(kind, "_onebase_own", False):
            error._onebase_message, error._onebase_thing = message, thing  # type: ignore[attr-defined]
        return error

    def names(self, wanted: list[str]) -> dict[str, Any]:
        found = self.ask("names", wanted)
        return {name: self.reached_as(name, value) for name, value in found if name in wanted}

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def builtin(meta: Any, _: list[Any]) -> Any:
    """Only types: a function named by the other side is not called here."""
    module, name = meta
    found = getattr(builtins, name, None) if module == "builtins" else None
    if not isinstance(found, type):
        raise WireError(f"not a built-in type: {str(name)[:50]!r}")
    return found


def fill_record(thing: Any, meta: Any, children: list[Any]) -> None:
    if len(children) % 2 or any(type(name) is not str for name in children[::2]):
        raise WireError("not a record")
    thing.__dict__.clear()
    thing.__dict__.update(zip(children[::2], children[1::2], strict=True))


def exception_class(name: str, bases: tuple[type[BaseException], ...]) -> type[BaseException]:
    def text(self: Any) -> str:
        return self.__dict__.get("_onebase_message", "") or ", ".join(map(str, self.args))

    def attribute(self: Any, name: str) -> Any:
        thing = self.__dict__.get("_onebase_thing")
        if thing is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(thing, name)

    body = {"__str__": text, "__getattr__": attribute, "_onebase_own": True, "__module__": "solution"}
    try:
        return type(name, bases, body)
    except TypeError:  # bases that do not go together
        return type(name, (Exception,), body)


class SolutionModule(types.ModuleType):
    """What `import solution` gives in the test's process."""

    def __init__(self, name: str, bridge: Bridge) -> None:
        super().__init__(name)
        self.__dict__["_onebase_bridge"] = bridge
        self.__dict__["_onebase_found"] = {}

    def __getattr__(self, name: str) -> Any:
        bridge = self.__dict__["_onebase_bridge"]
        if name == "__all__":
            return [n for n in bridge.ask("public") if type(n) is str]
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.__dict__["_onebase_found"]:
            return self.__dict__["_onebase_found"][name]
        found = bridge.names([name])
        if name not in found:
            raise AttributeError(f"the solution does not define {name}")
        return found[name]

    def _onebase_self(self) -> Any:
        return self.__dict__["_onebase_bridge"].ask("entry", f"__import__('sys').modules[{self.__name__!r}]")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            self.__dict__["_onebase_found"].pop(name, None)
            self.__dict__["_onebase_bridge"].do("set", self._onebase_self(), name, value)

    def __delattr__(self, name: str) -> None:
        self.__dict__["_onebase_bridge"].do("del", self._onebase_self(), name)
