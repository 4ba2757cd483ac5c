"""One function in several processes of one process group: what `onebase run` does where a recipe asks for it.

The parent waits for all of them.  The first that ends badly decides: the others, which may hang in a
collective, are ended, and its error is raised here.  A process whose parent dies, in whatever way, ends too.

Under torchrun the processes are there already: the first runs the recipe and tells the others what to join in
(`follow`).  Any other function than a stage's main is run by the first alone.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from onebase.errors import UserError
from onebase.stage import Preemption

TIMEOUT = timedelta(minutes=10)  # of one collective; who is later than that hangs
GRACE = 5.0  # seconds between asking a process to end and ending it
SETTLE = 1.0  # seconds in which, after one failure, the others may tell theirs


class Ended(Exception):
    """A process ended without a word."""


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether torchrun started this process to join in with another that runs the recipe."""
    return under_torchrun() and os.environ["RANK"] != "0"


def follow(device: str) -> None:
    """Join in with whatever the first process runs, until it is done."""
    while (order := _ordered(device, None)) is not None:
        function, args = order
        function(*args)


def dismiss(device: str) -> None:
    """Under torchrun, and after success: the other processes may go."""
    _ordered(device, None)


_orders: list[Any] = []  # torchrun's group over which the first process says what to join in


def _ordered(device: str, order: Any) -> Any:
    import torch.distributed as dist

    if not _orders:
        _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device, None)
        _orders.append(dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    box = [order]
    dist.broadcast_object_list(box, src=0, group=_orders[0])
    return box[0]


def first() -> bool:
    """Whether this process writes the files: it is alone or the first of its group."""
    if "torch" not in sys.modules:
        return True
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0


def on_processes(
    count: int, device: str, function: Callable[..., Any], *args: Any, stop: Preemption | None = None
) -> Any:
    """`function(*args)` in `count` processes of one group on this machine; the first one's result.

    Raises what the first process to fail raised; UserError where one was killed.  `function` and `args` are
    pickled.  With `stop`, the first SIGTERM is passed on, for the function to heed.
    """
    if under_torchrun():
        started = int(os.environ["WORLD_SIZE"])
        if started != count:
            raise UserError(
                f"parallel.processes: given {count}, but torchrun started {started} processes\n"
                f"  mend it: --set parallel.processes={started}"
            )
        _ordered(device, (function, args))
        return function(*args)
    if device == "cuda":
        import torch

        if count > torch.cuda.device_count():
            raise UserError(
                f"parallel.processes: given {count}, but this machine has {torch.cuda.device_count()} GPUs\n"
                "  allowed: one process per GPU; with --set hardware=cpu any number"
            )
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")  # torch is imported once, for all
    context.set_forkserver_preload(["onebase.train.parallel", "torch.distributed.fsdp"])
    if stop is not None:
        stop.heeded = True
    ends, processes = [], []
    for rank in range(count):
        here, there = context.Pipe()
        process = context.Process(
            target=_child, args=(rank, count, store.port, device, there, function, args)
        )
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    try:
        return _results(processes, ends, stop)[0]
    finally:
        _end(processes)


def _results(processes: list[Any], ends: list[Connection], stop: Preemption | None) -> list[Any]:
    """Every process's result, or the error that explains best why there is none: a process that died makes
    the others fail in their next collective, sometimes sooner than its death is seen."""
    results: dict[int, Any] = {}
    told = False
    errors: list[tuple[int, BaseException]] = []  # how likely it is a mere consequence, and the error
    open_ends: dict[Any, int] = {end: rank for rank, end in enumerate(ends)}
    while open_ends:
        ready = wait(list(open_ends), SETTLE)
        if not ready and errors:
            break
        if stop is not None and stop.wanted and not told:
            told = True
            for process in processes:
                process.terminate()
        for end in ready:
            rank = open_ends.pop(end)
            try:
                good, value = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                processes[rank].join(GRACE)
                errors.append((0, UserError(_told(rank, len(ends), processes[rank].exitcode))))
                continue
            if good:
                results[rank] = value
                continue
            error, trace = value
            error.__cause__ = Ended(f"in process {rank} of {len(ends)}:\n{trace}")
            errors.append((1 if isinstance(error, UserError) else 2, error))
    if errors:
        raise min(errors, key=lambda e: e[0])[1]
    return [results[rank] for rank in range(len(ends))]


def _told(rank: int, count: int, code: int | None) -> str:
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    why = "; the kernel does that when memory runs out" if code == -signal.SIGKILL else ""
    return (
        f"process {rank} of {count} ended without a word ({how}{why}); the others were ended\n"
        "  the last whole state is kept: the same command goes on from there"
    )


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _child(
    rank: int,
    count: int,
    port: int,
    device: str,
    end: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    threading.Thread(target=_end_with_the_parent, args=(end,), daemon=True).start()
    try:
        from torch.distributed import TCPStore

        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        _join(rank, count, device, TCPStore("127.0.0.1", port, is_master=False))
        value = function(*args)
        answer = pickle.dumps((True, value if rank == 0 else None))
    except BaseException as error:
        answer = _failure(error)
    end.send_bytes(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not through torch's destructors, which wait for the others


def _failure(error: BaseException) -> bytes:
    trace = traceback.format_exc()
    try:
        answer = pickle.dumps((False, (error, trace)))
        pickle.loads(answer)
        return answer
    except Exception:
        if isinstance(error, KeyboardInterrupt):
            return pickle.dumps((False, (KeyboardInterrupt(str(error)), trace)))
        return pickle.dumps((False, (RuntimeError(f"{type(error).__name__}: {error}"), trace)))


def _end_with_the_parent(end: Connection) -> None:
    try:
        end.poll(None)  # nothing is ever sent: readable means closed
    finally:
        os._exit(1)


def _join(rank: int, count: int, device: str, store: Any) -> None:
    import torch
    import torch.distributed as dist

    cuda = device == "cuda"
    local = int(os.environ.get("LOCAL_RANK", rank))
    if cuda:
        torch.cuda.set_device(local)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=TIMEOUT,
        device_id=torch.device("cuda", local) if cuda else None,
    )
