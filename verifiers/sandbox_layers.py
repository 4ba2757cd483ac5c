"""The layers that work even in a default container."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import dataclass
from typing import Any


@dataclass
class Plan:
    """What holds here, decided once by the janitor; every run is made from it."""

    base: str
    layers: tuple[str, ...]
    missing: dict[str, str]
    complaints: tuple[int, int]  # a pipe: what kept the code from being started

    def complaint(self) -> str:
        try:
            return os.read(self.complaints[0], 4096).decode(errors="replace")
        except BlockingIOError:
            return ""


def set_rlimits(limits: dict[str, Any], command: bool) -> None:
    memory = limits["memory_mb"] << 20
    seconds = math.ceil(limits["cpu_seconds"]) + 1
    values = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: limits["disk_mb"] << 20,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: memory,
    }
    if not command:
        values[resource.RLIMIT_AS] = memory + (64 << 20)
    for which, value in values.items():
        resource.setrlimit(which, (value, value))
