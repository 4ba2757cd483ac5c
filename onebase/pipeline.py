"""Runs a recipe: the stages in the order of their graph, each in its folder, each once.

    runs/<recipe>/recipe.resolved.yaml   what was asked for, every default written out
    runs/<recipe>/run.json               versions, commit and hardware of the latest start
    runs/<recipe>/starts.jsonl           the same for every start
    runs/<recipe>/<stage>/               the stage's own files
    runs/<recipe>/<stage>/made.json      what it is made from
    runs/<recipe>/<stage>/done.json      it is finished

A stage's main keeps its own state/ and goes on from there when it is called again, so a broken stage is
simply called again.  A finished stage is skipped as long as what it was made from is unchanged; otherwise
nothing is thrown away silently: the changed field is named and `--fresh` has to be said.
"""

from __future__ import annotations

import faulthandler
import fcntl
import importlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from onebase import files, graph, launch, stage_state
from onebase.errors import UserError
from onebase.log import RunLog
from onebase.recipe import Recipe
from onebase.recipe_loader import dump
from onebase.stage import Preempted, Preemption, StageRun
from onebase.wording import hint, listed

# A new kind of stage: its section in recipe.py and one entry here.
MAIN = {
    "pretrain": "onebase.pretrain.train",
    "sft": "onebase.sft.train",
    "grpo": "onebase.grpo.train",
    "reject_sample": "onebase.sft.reject_sample",
    "eval": "onebase.evaluate",
}
DIVIDED = ("pretrain", "sft")  # kinds that the recipe's `parallel` divides over processes
REPORT = "onebase.report"


class Stopped(KeyboardInterrupt):
    """The process was told to end.  `code` is its exit code: 128 + the signal, as a shell counts."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def run(
    recipe: Recipe,
    stages: list[str] | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Path:
    """Run the named stages (None: all) with what they need; returns the run's folder.

    `fresh` first removes the named stages' folders (or all).  Raises UserError, and Stopped when a signal
    ends it.
    """
    named = _known(recipe, stages)
    todo = graph.order(recipe.stages, named)
    folder = run_folder(recipe)
    if not quiet:
        from onebase import plan

        finished = [name for name in todo if stage_state.is_done(folder / name) and not fresh]
        plan.show(recipe, todo, finished)
    if dry_run:
        from onebase import gold

        for line in gold.plan_lines(recipe, todo):
            print(line)
        return folder
    device = pick_device(recipe.hardware)
    with ExitStack() as stack:
        stack.enter_context(lock(folder))
        preemption = stack.enter_context(_signals())
        renewed = (named or todo) if fresh else []
        stage_state.check_unchanged(recipe, folder, todo, renewed)
        for name in renewed:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
        start = stage_state.versions(device)
        files.atomic_write(folder / "recipe.resolved.yaml", dump(recipe))
        files.atomic_write(folder / "run.json", stage_state.to_json(start))
        files.append_jsonl(folder / "starts.jsonl", start | {"stages": todo, "fresh": fresh})
        for name in todo:
            if stage_state.is_done(folder / name):
                _say(quiet, f"{name}: finished before, skipped")
                for parent in stage_state.older_parents(recipe, folder, name):
                    _say(quiet, f"  made from an earlier {parent}; --fresh {name} would use the new one")
            else:
                _run_stage(recipe, name, folder, device, quiet, preemption)
        report = importlib.import_module(REPORT).write(folder)
    if not quiet:
        from onebase import summary

        summary.show(recipe, folder, todo, report)
    return folder


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.runs).expanduser() / recipe.name


def checkpoint_folder(folder: Path) -> Path | None:
    """The whole checkpoint of a stage's folder, or the folder itself where it is a checkpoint."""
    found = files.whole_folder(folder / "checkpoint")
    return found or (folder if (folder / "config.json").is_file() else None)


def resolve_checkpoint(recipe: Recipe, folder: Path, name: str) -> str:
    """What an `init` or an eval model names, as a folder that can be loaded or a hub id."""
    if name in recipe.stages:
        found = checkpoint_folder(folder / name)
        if found is None:
            raise UserError(
                f"{folder / name}: stage {name} is marked as finished but has no checkpoint/ folder\n"
                f"  make it again: onebase run ... {name} --fresh"
            )
        return str(found)
    path = Path(name).expanduser()
    if not path.is_dir():
        return name  # a hub id; the loader looked at it
    found = checkpoint_folder(path)
    if found is None:
        raise UserError(
            f"{path}: not a checkpoint folder: it has neither config.json nor checkpoint/\n"
            f"  it holds: {listed(sorted(p.name for p in path.iterdir())[:10])}"
        )
    return str(found)


def pick_device(hardware: str) -> str:
    """cpu or cuda; UserError where a GPU is asked for and there is none."""
    if hardware == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if hardware == "gpu":
        raise UserError(
            f"hardware: given gpu, but torch {torch.__version__} sees no CUDA device\n"
            "  allowed here: --set hardware=cpu (or auto)\n"
            "  `onebase doctor` tells what is missing; a CPU build of torch is the usual cause"
        )
    return "cpu"


def _known(recipe: Recipe, stages: list[str] | None) -> list[str] | None:
    for name in stages or []:
        if name not in recipe.stages:
            text = f"stage {name!r} is not in the recipe\n  allowed: {listed(recipe.stages)}"
            raise UserError(text + hint(name, recipe.stages))
    return list(dict.fromkeys(stages)) if stages else None


def _run_stage(
    recipe: Recipe, name: str, folder: Path, device: str, quiet: bool, preemption: Preemption
) -> None:
    stage, own = recipe.stages[name], folder / name
    own.mkdir(parents=True, exist_ok=True)
    for part in (own, own / "state"):
        files.settle_all(part)
    stage_state.write_made(recipe, folder, name)
    started = time.monotonic()
    handed = {
        "recipe": recipe,
        "name": name,
        "stage": stage,
        "folder": own,
        "init": None if stage.init is None else resolve_checkpoint(recipe, folder, stage.init),
        "folders": {other: folder / other for other in recipe.stages},
        "device": device,
    }
    processes = recipe.parallel.processes if stage.kind in DIVIDED else 1
    try:
        if processes > 1:
            numbers = launch.on_processes(processes, device, run_divided, handed, quiet, stop=preemption)
        else:
            numbers = run_main(handed, quiet, preemption)
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from error
    except Exception as error:
        raise _told(error, recipe, name, own) from error
    finally:
        preemption.heeded = False
    stage_state.write_done(recipe, folder, name, numbers, time.monotonic() - started)
    shutil.rmtree(own / "state", ignore_errors=True)  # several times the checkpoint, and of no more use
    if preemption.wanted:
        raise Preempted(f"SIGTERM when stage {name} was finished")


def run_main(handed: dict[str, Any], quiet: bool, preemption: Preemption) -> dict[str, float]:
    """A stage's main, in this process; of several only the first tells what happens."""
    stage = handed["stage"]
    main = importlib.import_module(MAIN[stage.kind]).main
    total = getattr(stage, "steps", getattr(stage, "problems", 1))
    with RunLog(handed["folder"], handed["name"], total, quiet, silent=not launch.first()) as log:
        return main(StageRun(log=log, preemption=preemption, **handed))


def run_divided(handed: dict[str, Any], quiet: bool) -> dict[str, float]:
    """What each of several processes runs."""
    with _signals() as preemption:
        return run_main(handed, quiet, preemption)


def _told(error: Exception, recipe: Recipe, name: str, own: Path) -> Exception:
    """Errors of the machine in the user's words; all others are bugs and stay what they are."""
    if files.is_full(error, own):
        kept = "the last whole checkpoint and all lines of the logs"
        told = files.disk_full(own, files.folder_bytes(own), kept, error)
        return UserError(f"stage {name}: {told}")
    text = str(error)
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if no_memory or "DefaultCPUAllocator: can't allocate memory" in text:
        from onebase import fit

        return UserError(
            f"stage {name}: out of memory: {text.splitlines()[0] if text else type(error).__name__}\n"
            + fit.advice(recipe, name)
        )
    return error


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def lock(folder: Path, other: str = "give this run another name: --set name=OTHER") -> Iterator[None]:
    """One process per run folder; `other` says what to do instead of waiting.  The kernel drops the lock when
    the process ends, however it ends.

    A POSIX lock (lockf), not flock: forked workers that outlive a killed parent must not hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as f:
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            f.seek(0)
            owner = f.read().strip() or "another process"
            raise UserError(
                f"{folder}: is being written by {owner}\n  wait for it, end it, or {other}"
            ) from error
        f.truncate(0)
        f.write(f"process {os.getpid()} on {os.uname().nodename}")
        f.flush()
        yield


@contextmanager
def _signals() -> Iterator[Preemption]:
    """SIGTERM, SIGHUP and Ctrl-C end the run by an exception, so that files are closed and the bar is taken
    down; a stage that heeds the first SIGTERM ends itself after its step.  SIGUSR1 writes what every thread
    is doing to standard error, and the run goes on."""
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and preemption.heeded and not preemption.wanted:
            preemption.wanted = True
            return
        raise Stopped(number)

    if sys.__stderr__ is not None:
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True)
    former: dict[int, Any] = {
        n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield preemption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        faulthandler.unregister(signal.SIGUSR1)
