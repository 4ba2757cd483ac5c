"""`onebase doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onebase.files import human_bytes

State = Literal["ok", "note", "bad"]
STYLE = {"ok": "green", "note": "yellow", "bad": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    found: str
    advice: str = ""


def main() -> int:
    """Print the table; 1 where something needed is missing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "advice"):
        table.add_column(column, overflow="fold")
    bad = False
    for check in checks():
        bad |= check.state == "bad"
        table.add_row(Text(check.state, STYLE[check.state]), check.name, check.found, check.advice)
    Console(highlight=False, markup=False).print(table)
    return 1 if bad else 0


def checks() -> Iterator[Check]:
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "bad", platform.python_version(), "")
    for requirement in requirements(extra=None):
        yield package(requirement, needed=True)
    yield from torch_checks()
    yield from sandbox_checks()
    for requirement in requirements(extra="vllm") + requirements(extra="ray"):
        yield package(requirement, needed=False)
    yield from machine()


def requirements(extra: str | None) -> list[str]:
    """What the installed onebase declares, as `name>=1,<2`; of one extra, or the core."""
    from importlib.metadata import requires

    found = []
    for line in requires("onebase") or []:
        text, _, marker = line.partition(";")
        match = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if (match.group(1) if match else None) == extra:
            found.append(text.replace(" ", ""))
    return found


def package(requirement: str, needed: bool) -> Check:
    """Whether the package is there in a version that its requirement allows."""
    from importlib.metadata import PackageNotFoundError, version

    name = re.split(r"[<>=!~\[]", requirement)[0]
    window = requirement[len(name) :]
    try:
        have = version(name)
    except PackageNotFoundError:
        advice = (
            f'pip install "{requirement}"'
            if needed
            else f'only for its own engine: pip install "onebase[{name}]"'
        )
        return Check(name, "bad" if needed else "note", "not installed", advice)
    if not allows(window, have):
        return Check(name, "bad" if needed else "note", have, f"onebase is made for {window}")
    return Check(name, "ok", have, "")


def allows(window: str, have: str) -> bool:
    """Whether a version satisfies `>=1.2,<2` (release numbers only: that is all onebase declares)."""
    numbers = _release(have)
    for part in filter(None, window.split(",")):
        match = re.fullmatch(r"(>=|<=|==|<|>)([\d.]+)", part)
        assert match, f"{window=}"
        sign, limit = match.group(1), _release(match.group(2))
        width = max(len(numbers), len(limit))
        a, b = (n + (0,) * (width - len(n)) for n in (numbers, limit))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[sign]:
            return False
    return True


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match.group(0).split("."))) if match else (0,)


def torch_checks() -> Iterator[Check]:
    """Devices, and whether a product of two matrices comes out right on each."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    yield Check("matmul on CPU", *matmul("cpu"))
    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        advice = (
            "an NVIDIA driver is here, but this torch cannot use it: install a CUDA build of torch"
            if driver
            else ""
        )
        yield Check("GPU", "note", f"none ({build})", advice or "none needed; hardware: auto and cpu work")
        return
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        yield Check(
            f"GPU {n}",
            "ok",
            f"{torch.cuda.get_device_name(n)}, {human_bytes(free)} of {human_bytes(total)} free",
        )
        yield Check(f"matmul on GPU {n}", *matmul(f"cuda:{n}"))


def sandbox_checks() -> Iterator[Check]:
    """What code verifiers can hold untrusted code with here, and whether it holds when attacked."""
    from onebase.verifiers.sandbox import DEMAND, SandboxError
    from onebase.verifiers.sandbox_check import BASIC, check, verdict

    try:
        reports = [check("off"), check("auto")]
    except SandboxError as error:
        yield Check("sandbox", "note", str(error).splitlines()[0], "only verifiers that run code need it")
        return
    plain, full = reports
    lacking = [wish for wish in DEMAND if not set(wish.split("|")) & set(full.layers)]
    reasons = [
        f"no {layer}: {full.missing[layer]}"
        for wish in lacking
        for layer in wish.split("|")
        if layer in full.missing
    ]
    yield Check(
        "sandbox",
        "note" if lacking else "ok",
        ", ".join(plain.layers) or "no layer",
        "; ".join([*reasons, *plain.notes]),
    )
    more = [layer for layer in full.layers if layer not in plain.layers]
    reasons = [
        f"no {layer}: {reason}"
        for layer, reason in full.missing.items()
        if layer not in BASIC and not reason.startswith("not needed")
    ]
    advice = "; ".join(dict.fromkeys(reasons)) if not lacking else ""
    yield Check("sandbox, namespaces", "ok" if more else "note", ", ".join(more) or "none", advice)
    for name, report in zip(("", " with namespaces"), reports if more else reports[:1], strict=False):
        failed = sum(result.held for result in report.results)
        through = [f"{result.attack}: {verdict(result)}" for result in report.results if not result.held]
        yield Check(
            f"sandbox self-test{name}",
            "bad" if report.breaches else "note" if through else "ok",
            f"{failed} of {len(report.results)} attacks fail",
            "; ".join(through),
        )


def matmul(device: str) -> tuple[State, str, str]:
    """One 512 x 512 product against float64 on the CPU, and its speed."""
    import time

    import torch

    a, b = torch.randn(512, 512), torch.randn(512, 512)
    try:
        x, y = a.to(device), b.to(device)
        product = (x @ y).cpu()
        start = time.perf_counter()
        for _ in range(10):
            z = x @ y
        z.cpu()
        flops = 10 * 2 * 512**3 / (time.perf_counter() - start)
    except RuntimeError as error:
        return "bad", str(error).splitlines()[0], "driver and torch do not fit, or the GPU is taken"
    worst = float((product - a.double() @ b.double()).abs().max())
    if worst > 0.5:  # TF32 stays below 0.1
        return "bad", f"wrong by {worst:.3g}", "faulty hardware or driver"
    return "ok", f"{flops / 1e9:.0f} GFLOP/s on a small matrix", ""


def machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Check("cores", "ok", f"{cores}" + (f", OMP_NUM_THREADS={threads}" if threads else ""), "")
    memory = available_memory()
    if memory is not None:
        low = memory < 4e9
        yield Check(
            "memory",
            "note" if low else "ok",
            f"{human_bytes(memory)} available",
            "laptop.yaml wants 4 GB" if low else "",
        )
    free = shutil.disk_usage(Path.cwd()).free
    low = free < 2e9
    yield Check(
        "disk",
        "note" if low else "ok",
        f"{human_bytes(free)} free in {Path.cwd()}",
        "runs may not fit" if low else "",
    )
    writable = os.access(Path.cwd(), os.W_OK)
    yield Check(
        "folder",
        "ok" if writable else "bad",
        "writable" if writable else "not writable",
        "" if writable else "cd elsewhere",
    )


def available_memory() -> int | None:
    """Bytes this process may still take: the machine's, or less where a cgroup says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))
