"""The seccomp layer: a BPF program that refuses system calls by number, built from the tables below.

Refused: everything that reaches outside the run (the network, other processes, mounts and namespaces, kernel
keys, IPC objects that survive their maker), that changes the machine, or that is a large and rarely needed
part of the kernel's surface (bpf, io_uring, userfaultfd, perf).  Calls newer than the tables do not exist for
the code (ENOSYS, as on an older kernel).  The 32-bit entry of x86-64 kills; its x32 numbers do not exist.

One program is put on the warm process and inherited by its forks, because putting one on costs the kernel
more (verify, compile, compute the table of always-allowed calls) than all other layers of a run together.  So
what the warm process does for each run (wait, setuid, chown) is not in the tables: the code may ask for it
too, and has no right that would make it succeed.

Sources: linux/seccomp.h, linux/filter.h, the kernel's syscall tables; the choice follows what container
engines refuse by default.
"""

from __future__ import annotations

import ctypes
import errno
import os

# name, number on x86-64, number on aarch64 (- where there is none)
NETWORK = """socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242"""
PROCESSES = """ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440,
process_mrelease 448 448, kcmp 312 272, pidfd_getfd 438 438, personality 135 92"""
MOUNTS = """mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, move_mount 429 429,
open_tree 428 428, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
unshare 272 97, setns 308 268, name_to_handle_at 303 264, open_by_handle_at 304 265, statmount 457 457,
listmount 458 458"""
MACHINE = """acct 163 89, swapon 167 224, swapoff 168 225, reboot 169 142, settimeofday 164 170,
clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161, setdomainname 171 162,
iopl 172 -, ioperm 173 -, quotactl 179 60, quotactl_fd 443 443, syslog 103 116, vhangup 153 58,
nfsservctl 180 42, kexec_load 246 104, kexec_file_load 320 294, init_module 175 105, finit_module 313 273,
delete_module 176 106, create_module 174 -, get_kernel_syms 177 -, query_module 178 -, sync 162 81,
syncfs 306 267, lsm_set_self_attr 460 460"""
SURFACE = """bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, lookup_dcookie 212 18,
modify_ldt 154 -, uselib 134 -, ustat 136 -, sysfs 139 -, _sysctl 156 -, set_mempolicy 238 237, mbind 237 235,
migrate_pages 256 238, move_pages 279 239, set_mempolicy_home_node 450 450, fanotify_init 300 262,
fanotify_mark 301 263, vmsplice 278 75, io_setup 206 0, ioprio_set 251 30"""
OBJECTS = """add_key 248 217, request_key 249 218, keyctl 250 219, memfd_create 319 279, memfd_secret 447 447,
shmget 29 194, shmat 30 196, shmctl 31 195, shmdt 67 197, semget 64 190, semop 65 193, semctl 66 191,
semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180,
mq_unlink 241 181, mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184, mq_getsetattr 245 185,
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15,
fremovexattr 199 16"""
ABSENT = """clone3 435 435, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427"""
# Calls that change how a process runs: on the caller itself (pid 0) they are its own affair.
ITSELF = """prlimit64 302 261, sched_setparam 142 118, sched_setscheduler 144 119, sched_setaffinity 203 122,
sched_setattr 314 274"""
# The next three: only where a run has neither a uid nor a pid namespace of its own, see alone().
OWNERSHIP = """chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55,
lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88"""
FORKS = """fork 57 -, vfork 58 -"""
SIGNALS = """tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_open 434 434,
pidfd_send_signal 424 424"""

LAST_KNOWN = 462  # mseal; later ones are unknown to the tables
X32 = 0x40000000
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW* as clone takes them
CLONE_THREAD = 0x10000
AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF
# Typing into a terminal; flags of files that outlast the run's cleaning.
IOCTLS = (0x5412, 0x541C, 0x40086602, 0x401C5820)  # TIOCSTI, TIOCLINUX, FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR
PRIO_PROCESS = 0

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER, ARCH = 0, 4  # offsets in struct seccomp_data
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
SPEC_ALLOW = 4  # without it, older kernels slow the process down on account of its filter
SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}

Instruction = tuple[int, int, int, int]


def argument(n: int) -> int:
    """Offset of the low half of the n-th argument (both architectures are little-endian)."""
    return 16 + 8 * n


def program(machine: str) -> list[Instruction]:
    """The filter of every run."""
    column, _ = ARCHITECTURES[machine]
    refuse = ERRNO | errno.EPERM
    code = opening(machine)
    code += [(JUMP_GE, 0, 1, LAST_KNOWN + 1), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]  # x32 numbers too
    code += refusals([NETWORK, PROCESSES, MOUNTS, MACHINE, SURFACE, OBJECTS], column, errno.EPERM)
    code += refusals([ABSENT], column, errno.ENOSYS)
    code += rule("socketpair 53 199", column, [
        (LOAD, 0, 0, argument(0)), (JUMP_EQ, 0, 4, AF_UNIX),
        (LOAD, 0, 0, argument(1)), (AND, 0, 0, SOCK_TYPE_MASK), (JUMP_EQ, 0, 1, SOCK_STREAM),
        (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, refuse),
    ])  # fmt: skip
    for row in ITSELF.replace("\n", " ").split(","):
        code += rule(row, column, [
            (LOAD, 0, 0, argument(0)), (JUMP_EQ, 0, 1, 0), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, refuse),
        ])  # fmt: skip
    code += rule("setpriority 141 140", column, [
        (LOAD, 0, 0, argument(0)), (JUMP_EQ, 0, 3, PRIO_PROCESS),
        (LOAD, 0, 0, argument(1)), (JUMP_EQ, 0, 1, 0), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, refuse),
    ])  # fmt: skip
    code += rule("ioctl 16 29", column, [
        (LOAD, 0, 0, argument(1)),
        *(step for number in IOCTLS for step in ((JUMP_EQ, 0, 1, number), (RETURN, 0, 0, refuse))),
        (RETURN, 0, 0, ALLOW),
    ])  # fmt: skip
    code += rule("clone 56 220", column, [
        (LOAD, 0, 0, argument(0)), (JUMP_SET, 0, 1, NEW_NAMESPACES), (RETURN, 0, 0, refuse),
        (RETURN, 0, 0, ALLOW),
    ])  # fmt: skip
    return [*code, (RETURN, 0, 0, ALLOW)]


def alone(machine: str, pid: int) -> list[Instruction]:
    """A second filter, put on in the run's process where it shares the caller's uid and pid namespace: a run
    is one process (threads are free), signals itself only, and changes no file's mode, owner or times."""
    column, _ = ARCHITECTURES[machine]
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    code = opening(machine) + refusals([FORKS, SIGNALS, OWNERSHIP], column, errno.EPERM)
    code += rule("clone 56 220", column, [
        (LOAD, 0, 0, argument(0)), (JUMP_SET, 1, 0, CLONE_THREAD), refuse, (RETURN, 0, 0, ALLOW),
    ])  # fmt: skip
    for name in ("kill 62 129", "tgkill 234 131"):
        code += rule(name, column, [
            (LOAD, 0, 0, argument(0)), (JUMP_EQ, 1, 0, pid), refuse, (RETURN, 0, 0, ALLOW),
        ])  # fmt: skip
    return [*code, (RETURN, 0, 0, ALLOW)]


def opening(machine: str) -> list[Instruction]:
    """Kill what does not call as this architecture does; leave the call's number in the accumulator."""
    return [
        (LOAD, 0, 0, ARCH),
        (JUMP_EQ, 1, 0, ARCHITECTURES[machine][1]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]


def refusals(groups: list[str], column: int, error: int) -> list[Instruction]:
    code: list[Instruction] = []
    for row in ",".join(groups).replace("\n", " ").split(","):
        number = row.split()[1 + column]
        if number != "-":
            code += [(JUMP_EQ, 0, 1, int(number)), (RETURN, 0, 0, ERRNO | error)]
    return code


def rule(row: str, column: int, body: list[Instruction]) -> list[Instruction]:
    """`body` for that one call; it must end in a return on every way."""
    return [(JUMP_EQ, 0, len(body), int(row.split()[1 + column])), *body]


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8),
                ("k", ctypes.c_uint32)]  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def compiled(code: list[Instruction]) -> _Program:
    array = (_Instruction * len(code))(*(_Instruction(*line) for line in code))
    return _Program(len(code), array)


def install(code: list[Instruction], libc: ctypes.CDLL) -> None:
    """Put the filter on this thread and all its forks, for good.  OSError where the kernel refuses."""
    ready = compiled(code)
    call = SECCOMP_CALL[os.uname().machine]
    if libc.syscall(call, 1, SPEC_ALLOW, ctypes.byref(ready)) == 0:
        return
    if libc.syscall(call, 1, 0, ctypes.byref(ready)) != 0:  # kernels before 4.17 do not know the flag
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp filter refused ({errno.errorcode.get(number, number)})")
