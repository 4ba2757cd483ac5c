"""The filter, run by an interpreter of its own: both architectures, though a machine has but one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebase.verifiers import sandbox_seccomp as s

MACHINES = sorted(s.ARCHITECTURES)
ALLOW, KILL, EPERM, ENOSYS = s.ALLOW, s.KILL, s.ERRNO | 1, s.ERRNO | 38


def answer(
    code: list[s.Instruction], machine: str, number: int, *arguments: int, arch: int | None = None
) -> int:
    """What the kernel would do with a call."""
    data = {s.NUMBER: number, s.ARCH: s.ARCHITECTURES[machine][1] if arch is None else arch}
    data |= {s.argument(n): value & 0xFFFFFFFF for n, value in enumerate((*arguments, 0, 0, 0, 0, 0, 0)[:6])}
    at = accumulator = 0
    while True:
        operation, true, false, value = code[at]
        at += 1
        if operation == s.RETURN:
            return value
        if operation == s.LOAD:
            accumulator = data[value]
        elif operation == s.AND:
            accumulator &= value
        else:
            holds = {
                s.JUMP_EQ: accumulator == value,
                s.JUMP_GE: accumulator >= value,
                s.JUMP_SET: bool(accumulator & value),
            }[operation]
            at += true if holds else false


def rows(*groups: str) -> list[list[str]]:
    return [row.split() for row in ",".join(groups).replace("\n", " ").split(",")]


def nr(machine: str, row: str) -> int:
    return int(row.split()[1 + s.ARCHITECTURES[machine][0]])


ORDINARY = {
    "x86_64": {
        "read": 0, "write": 1, "openat": 257, "execve": 59, "mmap": 9, "fork": 57, "futex": 202, "kill": 62,
        "wait4": 61, "sendmsg": 46, "unlinkat": 263, "getrandom": 318, "setresuid": 117, "rseq": 334,
    },
    "aarch64": {
        "read": 63, "write": 64, "openat": 56, "execve": 221, "mmap": 222, "futex": 98, "kill": 129,
        "wait4": 260, "sendmsg": 211, "unlinkat": 35, "getrandom": 278, "setresuid": 147, "rseq": 293,
    },
}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_tables_name_is_refused_and_the_ordinary_is_not(machine: str) -> None:
    code = s.program(machine)
    column = s.ARCHITECTURES[machine][0]
    for row in rows(s.NETWORK, s.PROCESSES, s.MOUNTS, s.MACHINE, s.SURFACE, s.OBJECTS):
        if row[1 + column] != "-":
            assert answer(code, machine, int(row[1 + column])) == EPERM, row
    for row in rows(s.ABSENT):
        assert answer(code, machine, int(row[1 + column])) == ENOSYS
    for name, call in ORDINARY[machine].items():
        assert answer(code, machine, call) == ALLOW, name
    assert answer(code, machine, s.LAST_KNOWN) == ALLOW and answer(code, machine, s.LAST_KNOWN + 1) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_hang_on_their_arguments(machine: str) -> None:
    code = s.program(machine)
    clone, pair, ioctl = (
        nr(machine, "clone 56 220"),
        nr(machine, "socketpair 53 199"),
        nr(machine, "ioctl 16 29"),
    )
    limit, priority = nr(machine, "prlimit64 302 261"), nr(machine, "setpriority 141 140")
    assert answer(code, machine, clone, 17) == ALLOW and answer(code, machine, clone, 0x3D0F00) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(code, machine, clone, 17 | flag) == EPERM, hex(flag)
    assert answer(code, machine, pair, 1, 1 | 0o2000000, 0) == ALLOW
    for family, kind in ((1, 2), (1, 5), (2, 1), (16, 3)):
        assert answer(code, machine, pair, family, kind) == EPERM
    assert (
        answer(code, machine, ioctl, 0, 0x5401) == ALLOW and answer(code, machine, ioctl, 0, 0x5412) == EPERM
    )
    assert answer(code, machine, limit, 0) == ALLOW and answer(code, machine, limit, 1) == EPERM
    assert answer(code, machine, priority, 0, 0) == ALLOW
    assert answer(code, machine, priority, 2, 0) == answer(code, machine, priority, 0, 5) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_a_run_that_is_alone(machine: str) -> None:
    code = s.alone(machine, 4711)
    clone, kill, tgkill = (
        nr(machine, "clone 56 220"),
        nr(machine, "kill 62 129"),
        nr(machine, "tgkill 234 131"),
    )
    assert answer(code, machine, clone, 17) == EPERM and answer(code, machine, clone, 0x3D0F00) == ALLOW
    for call in (kill, tgkill):
        assert answer(code, machine, call, 4711) == ALLOW
        assert {answer(code, machine, call, pid) for pid in (1, 0, -1, -4711)} == {EPERM}
    assert answer(code, machine, nr(machine, "fchmodat 268 53")) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@given(arch=st.integers(0, 2**32 - 1), call=st.integers(0, 600))
def test_another_calling_convention_kills(machine: str, arch: int, call: int) -> None:
    if arch != s.ARCHITECTURES[machine][1]:
        assert answer(s.program(machine), machine, call, arch=arch) == KILL
        assert answer(s.alone(machine, 1), machine, call, arch=arch) == KILL


@given(call=st.integers(0x40000000, 0x40000000 + 600))
def test_x32_numbers_do_not_exist(call: int) -> None:
    assert answer(s.program("x86_64"), "x86_64", call) == ENOSYS


def test_programs_fit_the_kernel() -> None:
    for machine in MACHINES:
        for code in (s.program(machine), s.alone(machine, 1)):
            assert len(code) <= 4096 and code[-1] == (s.RETURN, 0, 0, ALLOW)
            for at, (operation, true, false, _) in enumerate(code):
                assert (
                    max(true, false) < 256 and at + 1 + max(true, false) < len(code) or operation == s.RETURN
                )


@pytest.mark.parametrize(
    ("machine", "header", "pattern"),
    [
        ("x86_64", "x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
        ("aarch64", "asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
    ],
)
def test_numbers_are_those_of_the_kernels_headers(machine: str, header: str, pattern: str) -> None:
    path = Path("/usr/include", header)
    if not path.exists():
        pytest.skip(f"no {path}")
    numbers = {name: int(value) for name, value in re.findall(pattern, path.read_text())}
    column = s.ARCHITECTURES[machine][0]
    groups = (s.NETWORK, s.PROCESSES, s.MOUNTS, s.MACHINE, s.SURFACE, s.OBJECTS)
    groups += (s.ABSENT, s.OWNERSHIP, s.FORKS, s.SIGNALS, s.ITSELF)
    checked = 0
    for row in rows(*groups):
        if row[0] in numbers:
            assert row[1 + column] == str(numbers[row[0]]), row
            checked += 1
        elif row[1 + column] != "-":
            assert int(row[1 + column]) > max(numbers.values()) or row[0].endswith("handle_at"), row
    assert checked > 80
