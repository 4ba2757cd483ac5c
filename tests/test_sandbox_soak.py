"""Many runs: nothing is lost, nothing grows; two sandboxes at once; the attacks of the self-test are real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onebase.verifiers import sandbox_cgroup, sandbox_check, sandbox_soak
from onebase.verifiers.sandbox import Sandbox, SandboxError
from onebase.verifiers.sandbox_script import ENTRY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")


@pytest.mark.slow
@pytest.mark.parametrize("namespaces", ["off", "auto"])
def test_runs_of_which_a_third_are_hostile(namespaces: str) -> None:
    if namespaces == "off" and os.geteuid() != 0:
        pytest.skip("without namespaces, and without a uid of its own, a run may not even fork")
    found = sandbox_soak.soak(400, namespaces)
    assert (
        not found["errors"] and not found["wrong"] and found["false"] == 0 and found["processes_left"] == 0
    ), found
    assert found["hostile"] > 100 and {"exit", "cpu", "output", "signal"} <= set(found["how"])
    grown = found["grown"]
    assert grown["descriptors"] == grown["own_descriptors"] == grown["processes"] == 0, found
    assert grown["memory_kb"] < 2000, found


def test_nothing_grows_over_a_thousand_honest_runs() -> None:
    with Sandbox(demand=()) as sandbox:
        for n in range(1100):
            if n == 100:
                before = sandbox_soak.footprint(sandbox)
            ours, theirs = socket.socketpair()
            outcome = sandbox.start(
                ENTRY, b"print(input())", stdin=b"x" * 1000, channel=theirs, files={"f": b"x"}
            ).wait()
            ours.close()
            assert outcome.stdout == b"x" * 1000 + b"\n"
        after = sandbox_soak.footprint(sandbox)
    assert (
        after["descriptors"] == before["descriptors"]
        and after["own_descriptors"] == before["own_descriptors"]
    )
    assert after["memory_kb"] - before["memory_kb"] < 300, (before, after)


def test_a_leak_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measure, with a fault planted: pipes that stay open."""
    from onebase.verifiers import sandbox

    real, kept = sandbox.pipe, []

    def leaking(size: int) -> tuple[int, int]:
        reader, writer = real(size)
        kept.append(os.dup(reader))
        return reader, writer

    with Sandbox(demand=()) as made:
        before = sandbox_soak.footprint(made)
        monkeypatch.setattr(sandbox, "pipe", leaking)
        for _ in range(5):
            made.start(ENTRY, b"").wait()
        assert sandbox_soak.footprint(made)["own_descriptors"] == before["own_descriptors"] + 10
    for fd in kept:
        os.close(fd)


def test_two_sandboxes_at_once() -> None:
    results: list[tuple[bytes, bytes]] = []

    def work(name: str) -> None:
        with Sandbox(demand=()) as sandbox:
            for n in range(100):
                source = f"import os; open('f', 'w').write('{name}'); print('{name}', {n}, os.listdir('.'))"
                results.append(
                    (sandbox.start(ENTRY, source.encode()).wait().stdout, f"{name} {n} ['f']\n".encode())
                )

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200 and all(got == wanted for got, wanted in results)


def test_sandboxes_do_not_share_uids() -> None:
    with Sandbox(demand=()) as one, Sandbox(demand=()) as other:
        if "uid" not in one.layers:
            pytest.skip("this user may not set uids")
        uids = [
            [s.start(ENTRY, b"import os; print(os.getuid())").wait().stdout for _ in range(20)]
            for s in (one, other)
        ]
        assert not set(uids[0]) & set(uids[1])
        assert all(a != b for a, b in zip(uids[0], uids[0][1:], strict=False)), (
            "each run has another uid than the last"
        )


@pytest.mark.parametrize("name", sorted(set(sandbox_check.ATTACKS) - {"outlive its run"}))
def test_the_attacks_of_the_self_test_succeed_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "target").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = sandbox_check.attack_source(
            name, SECRET=str(tmp_path / "secret"), TARGET=str(tmp_path / "target"), PARENT=os.getpid(),
            PORT=server.getsockname()[1],
        )  # fmt: skip
        work = tmp_path / "work"
        work.mkdir()
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, cwd=work, timeout=60)
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if Path(folder, "onebase").is_dir():
            Path(folder, "onebase").rmdir()
    assert b"BREACH" in done.stdout and done.stdout.endswith(b"tried\n"), done


def test_the_self_test_holds_and_a_sandbox_that_fails_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for namespaces in ("off", "auto"):
        report = sandbox_check.check(namespaces)
        assert not report.breaches and len(report.results) == len(sandbox_check.ATTACKS)
    monkeypatch.setitem(sandbox_check.ATTACKS, "take 2 GiB of memory", "print('BREACH')")
    monkeypatch.setattr(sandbox_check, "_passed", set())
    with pytest.raises(SandboxError, match=r"(?s)does not hold on this machine.*take 2 GiB"):
        Sandbox(demand=("rlimits",))
    monkeypatch.setitem(sandbox_check.ATTACKS, "take 2 GiB of memory", "1/0")  # not even tried
    with pytest.raises(SandboxError, match="does not hold"):
        Sandbox(demand=("rlimits",))


def test_doctor_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebase.doctor import sandbox_checks

    rows = {row.name: row for row in sandbox_checks()}
    assert rows["sandbox self-test"].state in ("ok", "note") and "rlimits" in rows["sandbox"].found
    assert all(row.state != "bad" for row in rows.values())
    monkeypatch.setitem(sandbox_check.ATTACKS, "take 2 GiB of memory", "print('BREACH')")
    assert [row.state for row in sandbox_checks() if row.name == "sandbox self-test"] == ["bad"]
    monkeypatch.setattr(sys, "platform", "darwin")
    (row,) = sandbox_checks()
    assert row.state == "note" and "Linux" in row.found


def test_cgroups_are_removed_and_hold() -> None:
    """Where this machine lets us make one."""
    with Sandbox(demand=()) as sandbox:
        if "cgroup" not in sandbox.layers:
            pytest.skip(f"no cgroup here: {sandbox.missing['cgroup']}")
        assert sandbox._zygote is not None
        pattern = f"**/{sandbox_cgroup.NAME}{sandbox._zygote.process.pid}-*"
        folders = list(Path("/sys/fs/cgroup").glob(pattern))
        assert folders
        source = b"import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1"
        outcome = sandbox.start(ENTRY, source).wait()
        assert outcome.how in ("exit", "memory")
    assert not any(folder.exists() for folder in folders)


def test_cgroup_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a tree of plain files: the group beside this process's own is found, and written to."""
    slice_ = tmp_path / "user.slice"
    own = slice_ / "session.scope"
    own.mkdir(parents=True)
    (slice_ / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (own / "cgroup.subtree_control").mkdir()  # a group with processes in it: cannot be written
    made = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        made(path, mode)
        for name in ("cgroup.procs", "memory.max", "memory.swap.max", "pids.max"):
            Path(path, name).write_text("")
        Path(path, "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
        Path(path, "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")

    monkeypatch.setattr(os, "mkdir", mkdir)
    group = sandbox_cgroup.make_v2("onebase-sandbox-1-x", str(tmp_path), "/", "/user.slice/session.scope")
    group.join(42)
    group.limit(100, 5)
    folder = slice_ / "onebase-sandbox-1-x"
    assert (folder / "cgroup.procs").read_text() == "42" and (folder / "pids.max").read_text() == "7"
    assert int((folder / "memory.max").read_text()) == (100 + sandbox_cgroup.SLACK_MB) << 20
    assert group.kills() == 1 and group.cpu_seconds() == 1.5
    (slice_ / "cgroup.subtree_control").unlink()
    with pytest.raises(OSError, match=r"session\.scope"):
        sandbox_cgroup.make_v2("onebase-sandbox-1-y", str(tmp_path), "/", "/user.slice/session.scope")


def test_measure_tells_what_a_run_costs() -> None:
    found = sandbox_check.measure(20, "off")
    assert (
        found["runs"] == 20
        and found["wall_ms"] > 0
        and 0 <= found["cpu_ms"] < 200
        and "rlimits" in found["layers"]
    )
