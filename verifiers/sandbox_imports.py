"""Imports inside a run: the packages that were asked for, and modules that lie behind a folder which the
run's uid may not enter.

The second is common: an interpreter under /root (pyenv, uv, conda in a container) is closed to every other
uid.  Descriptors of its folders, opened before the uid changes, still lead inside: only what lies below an
open folder is checked, not the way to it.  So such modules are read relative to the descriptor.
"""

from __future__ import annotations

import _imp
import importlib.machinery
import importlib.util
import marshal
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Any


class Packages:
    """A finder that lets the named packages be imported from the caller's search path, and no others."""

    def __init__(self, names: Sequence[str], search: list[str]) -> None:
        self.search = search
        self.places: list[str] = []  # folders and files to be made visible
        self.tops: dict[str, tuple[str | None, list[str] | None]] = {}  # package: its file, its folders
        self.infos: dict[str, str] = {}  # distribution: its dist-info folder
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in self.tops:
                continue
            spec = PathFinder.find_spec(name, search)
            if spec is None:
                if name in names:
                    raise ModuleNotFoundError(f"packages={name!r}: there is no such package on sys.path")
                continue
            places = spec.submodule_search_locations
            self.tops[name] = (spec.origin, None if places is None else list(places))
            if spec.submodule_search_locations is not None:
                self.places += list(spec.submodule_search_locations)
                self.places += [f"{place}.libs" for place in spec.submodule_search_locations]
            elif spec.origin:
                self.places.append(spec.origin)
            todo += self._requirements(name)

    def _requirements(self, name: str) -> list[str]:
        """Import names of what the distribution requires, extras left out."""
        from importlib.metadata import Distribution, PathDistribution

        found: list[str] = []
        for distribution in Distribution.discover(name=name, path=self.search):
            assert isinstance(distribution, PathDistribution)
            place = str(distribution._path)  # type: ignore[attr-defined]
            self.infos[re.sub(r"[-_.]+", "-", name).lower()] = place
            self.places.append(place)
            listed = (distribution.read_text("top_level.txt") or "").split()
            found += listed
            for requirement in distribution.requires or []:
                if "extra ==" not in requirement:
                    match = re.match(r"[\w.-]+", requirement)
                    found += [match.group(0).replace("-", "_")] if match else []
            break
        return found

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """From what was found at the start: the folder around the packages cannot be listed in a run."""
        if path is not None or name not in self.tops:
            return None
        origin, places = self.tops[name]
        if origin is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = places
            return spec
        return importlib.util.spec_from_file_location(name, origin, submodule_search_locations=places)

    def find_distributions(self, context: Any) -> Iterable[Any]:
        from importlib.metadata import PathDistribution
        from pathlib import Path

        if context.name is None:
            return [PathDistribution(Path(place)) for place in self.infos.values()]
        place = self.infos.get(re.sub(r"[-_.]+", "-", context.name).lower())
        return [PathDistribution(Path(place))] if place else []

    def invalidate_caches(self) -> None: ...


class Descriptors:
    """A finder that reads modules below folders held open; `tops` are roots in which a top-level module may
    lie."""

    def __init__(self, roots: Sequence[str], tops: Sequence[str], packages: Packages) -> None:
        self.open = {root: os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for root in roots}
        self.tops, self.packages = list(tops), packages

    def move(self, first: int) -> int:
        """Give the descriptors the numbers from `first` on; the next free one."""
        for root, fd in self.open.items():
            os.dup2(fd, first, inheritable=False)
            self.open[root] = first
            first += 1
        return first

    def locate(self, path: str) -> tuple[int, str] | None:
        for root, fd in self.open.items():
            if path == root or path.startswith(root + os.sep):
                return fd, path[len(root) + 1 :]
        return None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        tail = name.rpartition(".")[2]
        entries = path if path is not None else self.tops
        if path is None and name in self.packages.tops:
            entries = [os.path.dirname(place) for place in self.packages.places]
        for entry in entries:
            place = self.locate(os.path.join(entry, tail))
            if place is None:
                continue
            fd, stem = place
            for inner in (f"{stem}/__init__.py", *(stem + s for s in importlib.machinery.EXTENSION_SUFFIXES),
                          f"{stem}.py"):  # fmt: skip
                try:
                    os.stat(inner, dir_fd=fd)
                except OSError:
                    continue
                origin = os.path.join(entry, tail) + inner[len(stem) :]
                loader: Any = _Loader(fd, inner)
                spec = ModuleSpec(name, loader, origin=origin, is_package=inner.endswith("__init__.py"))
                spec.has_location = True
                if spec.submodule_search_locations is not None:
                    spec.submodule_search_locations.append(os.path.join(entry, tail))
                return spec
        return None

    def invalidate_caches(self) -> None: ...


class _Loader:
    def __init__(self, fd: int, inner: str) -> None:
        self.fd, self.inner = fd, inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if self.inner.endswith(".py"):
            return None
        folder, name = os.path.split(self.inner)
        here = os.open(".", os.O_PATH)
        inside = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY, dir_fd=self.fd)
        try:
            os.fchdir(inside)  # the loader of shared objects takes paths only: a relative one then
            near = ModuleSpec(spec.name, ExtensionFileLoader(spec.name, f"./{name}"), origin=f"./{name}")
            return _imp.create_dynamic(near)
        finally:
            os.fchdir(here)
            os.close(here)
            os.close(inside)

    def exec_module(self, module: ModuleType) -> None:
        if not self.inner.endswith(".py"):
            _imp.exec_dynamic(module)
            return
        exec(self.code(module.__name__, str(module.__file__)), module.__dict__)

    def code(self, name: str, origin: str) -> CodeType:
        """From the cache of compiled modules where it is fresh, else from the source."""
        folder, file = os.path.split(self.inner)
        cached = os.path.join(folder, "__pycache__", f"{file[:-3]}.{sys.implementation.cache_tag}.pyc")
        info = os.stat(self.inner, dir_fd=self.fd)
        try:
            data = self.read(cached)
        except OSError:
            data = b""
        stamp = int(info.st_mtime).to_bytes(8, "little")[:4] + (info.st_size & 0xFFFFFFFF).to_bytes(
            4, "little"
        )
        if data[:8] == importlib.util.MAGIC_NUMBER + bytes(4) and data[8:16] == stamp:
            code = marshal.loads(memoryview(data)[16:])
            assert isinstance(code, CodeType), f"{cached=}"
            return code
        return compile(self.read(self.inner), origin, "exec", dont_inherit=True)

    def read(self, inner: str) -> bytes:
        fd = os.open(inner, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        with open(fd, "rb") as stream:
            return stream.read()
