"""The janitor of a warm sandbox process: decides what the kernel gives, forks the zygote, and clears away what
is left when it has ended.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import Any

from onebase.verifiers.sandbox_layers import Plan


def janitor(config: dict[str, Any], zygote: Callable[[Plan], None], ours: socket.socket) -> None:
    caller = os.pidfd_open(config["caller"])
    base = tempfile.mkdtemp(prefix="onebase-box-")
    os.mkdir(os.path.join(base, "box"), 0o700)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    plan = Plan(base=base, layers=("rlimits",), missing={}, complaints=(reader, writer))
    pid = os.fork()
    if pid == 0:
        zygote(plan)
        os._exit(0)
    ours.close()
    child = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(caller, select.POLLIN)
    if child not in [fd for fd, _ in poll.poll()]:
        poll.unregister(caller)
        if not poll.poll(1000):
            os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    shutil.rmtree(base, ignore_errors=True)
