"""The verifiers side by side with what else pip installs: accuracy, false accepts, speed; and the sandbox's
runs.

    python benchmarks/verifiers.py math pairs.jsonl --golds gsm8k.jsonl math.jsonl --math-verify PYTHON
    python benchmarks/verifiers.py sandbox

`math`: rows of the first file are `gold, answer, expected, source` (a `#` in the source marks a convention on
which graders differ; such rows are left out).  `--golds` names files with an `answer` field; each answer is
put into the ways a model writes it (boxed, in a sentence, after `####`, with units of prose around it), so
that the truth is known, and with one digit changed.  Every grader is a process of its own that judges the
same rows in the same order: PYTHON is an interpreter with math-verify, which gets the gold boxed, its best
form. Time is CPU time.

`sandbox`: small Python tests, one process each, in one and in two sandboxes side by side, with and without
namespaces, beside a plain fresh interpreter and beside bubblewrap where it is installed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Row = dict[str, Any]
WAYS = (
    "The answer is \\boxed{{{}}}.",
    "<think>Let me see.</think>\n\nSo we get $\\boxed{{{}}}$.",
    "We add them up.\n#### {}",
    "Therefore, the final answer is ${}$.",
    "<think>\nlong\n</think>\n<answer>{}</answer>",
)


# -- the graders, each in a process of its own


def grade(name: str) -> int:
    """Rows from standard input, one verdict with its CPU seconds a line; last the peak memory."""
    judge = {"onebase": onebase_judge, "math-verify": math_verify_judge}[name]()
    rows = [json.loads(line) for line in sys.stdin]
    judge("\\boxed{1}", "1")  # imports, caches
    for row in rows:
        start = time.process_time()
        try:
            right, note = judge(row["completion"], row["gold"])
        except Exception as error:
            right, note = False, f"{type(error).__name__}: {error}"
        print(json.dumps([right, time.process_time() - start, note[:300]]))
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    return 0


def onebase_judge() -> Callable[[str, str], tuple[bool, str]]:
    from onebase.verifiers.math_answer import verify

    def judge(completion: str, gold: str) -> tuple[bool, str]:
        verdict = verify(completion, gold)
        return verdict.reward == 1.0, verdict.reason

    return judge


def math_verify_judge() -> Callable[[str, str], tuple[bool, str]]:
    from math_verify import parse, verify

    def judge(completion: str, gold: str) -> tuple[bool, str]:
        answer = completion.rpartition("</think>")[2]
        return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(answer))), ""

    return judge


# -- the rows


def lines_of(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def pairs(path: Path) -> list[Row]:
    rows = lines_of(path)
    rows = [row for row in rows if "#" not in row.get("source", "")]
    return [row | {"completion": row["answer"], "source": row.get("source", path.stem)} for row in rows]


def written(path: Path, most: int, seed: int) -> list[Row]:
    """Answers of a data set as models write them, and each with one digit changed."""
    rng = random.Random(seed)
    golds = [str(row["answer"]) for row in lines_of(path)]
    rows = []
    for gold in rng.sample(golds, min(most, len(golds))):
        rows.append({"gold": gold, "completion": rng.choice(WAYS).format(gold), "expected": True})
        digits = [i for i, c in enumerate(gold) if c.isdigit()]
        if digits:
            at = rng.choice(digits)
            other = rng.choice([d for d in "123456789" if d != gold[at]])
            near = gold[:at] + other + gold[at + 1 :]
            rows.append({"gold": gold, "completion": rng.choice(WAYS).format(near), "expected": False})
    return [row | {"source": f"{path.parent.name}/{path.stem}, written"} for row in rows]


def math(args: argparse.Namespace) -> dict[str, Any]:
    rows = pairs(args.pairs) if args.pairs else []
    for path in args.golds:
        rows += written(path, args.most, 0)
    graders = {"onebase": sys.executable}
    if args.math_verify:
        graders["math-verify"] = args.math_verify
    else:
        print("math-verify: left out (--math-verify PYTHON)")
    out: dict[str, Any] = {"rows": len(rows)}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name, python in graders.items():
        command = [python, __file__, "grade", name]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        *lines, peak = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "[0123456789"]
        assert len(lines) == len(rows), f"{name}: {len(lines)} verdicts for {len(rows)} rows"
        out[name] = summary(rows, lines, peak)
        if args.show:
            show(name, rows, lines, args.show)
    table(out, list(graders))
    return out


def summary(rows: list[Row], lines: list[Any], peak: float) -> dict[str, Any]:
    by_source: dict[str, list[bool]] = defaultdict(list)
    for row, (right, _, _) in zip(rows, lines, strict=True):
        by_source[row["source"]].append(right == row["expected"])
    seconds = sorted(line[1] for line in lines)
    wrong = [(row, line) for row, line in zip(rows, lines, strict=True) if line[0] != row["expected"]]
    return {
        "accuracy": 1 - len(wrong) / len(rows),
        "false_accepts": sum(line[0] for _, line in wrong),
        "false_refusals": sum(not line[0] for _, line in wrong),
        "per_cpu_second": len(rows) / sum(seconds),
        "p50_ms": 1000 * seconds[len(seconds) // 2],
        "p99_ms": 1000 * seconds[int(len(seconds) * 0.99)],
        "worst_ms": 1000 * seconds[-1],
        "peak_mb": peak,
        "by_source": {s: [sum(ok), len(ok)] for s, ok in sorted(by_source.items())},
    }


def table(out: dict[str, Any], graders: list[str]) -> None:
    print(f"\n{'':44}" + "".join(f"{name:>14}" for name in graders))
    for source in out["onebase"]["by_source"]:
        cells = (out[name]["by_source"][source] for name in graders)
        print(f"{source[:43]:44}" + "".join(f"{f'{a}/{b}':>14}" for a, b in cells))
    for key in (
        "accuracy", "false_accepts", "false_refusals", "per_cpu_second", "p50_ms", "p99_ms", "worst_ms",
        "peak_mb",
    ):  # fmt: skip
        print(f"{key:44}" + "".join(f"{out[name][key]:14.4g}" for name in graders))


def show(name: str, rows: list[Row], lines: list[Any], most: int) -> None:
    wrong = [(r, line) for r, line in zip(rows, lines, strict=True) if line[0] != r["expected"]]
    for row, (right, _, note) in wrong[:most]:
        verb = "paid" if right else "refused"
        print(f"{name} {verb}: {row['gold']!r} <- {row['completion'][-120:]!r}  {note}")


# -- the sandbox


def sandbox(args: argparse.Namespace) -> dict[str, Any]:
    from onebase.verifiers.sandbox_check import SMALL_TEST

    plain = [sys.executable, "-I", "-S", "-c", SMALL_TEST.decode()]
    commands = {"fresh interpreter, no isolation": plain}
    if shutil.which("bwrap"):
        commands["bubblewrap"] = [
            "bwrap",
            "--ro-bind",
            "/",
            "/",
            "--unshare-all",
            "--die-with-parent",
            *plain,
        ]
    out: dict[str, Any] = {}
    for name, command in commands.items():
        start = time.perf_counter()
        for _ in range(args.runs // 10):
            subprocess.run(command, check=True, capture_output=True)
        out[name] = {"runs_per_second": args.runs // 10 / (time.perf_counter() - start)}
    for namespaces in ("off", "auto"):
        for side_by_side in (1, 2):
            job = [sys.executable, __file__, "measure", namespaces, str(args.runs)]
            with ThreadPoolExecutor(side_by_side) as threads:  # a process each, as in a verifier pool
                each = [json.loads(text) for text in threads.map(output_of, [job] * side_by_side)]
            rate = sum(1000 / e["wall_ms"] for e in each)
            kind = "layers of a container" if namespaces == "off" else "with namespaces"
            name = f"{kind}, {side_by_side} at a time"
            out[name] = {
                "runs_per_second": rate,
                "cpu_ms": sum(e["cpu_ms"] for e in each) / len(each),
                "layers": each[0]["layers"],
            }
    for name, row in out.items():
        layers, cpu = " ".join(row.get("layers", [])), row.get("cpu_ms", float("nan"))
        print(f"{name:44}{row['runs_per_second']:8.0f} runs/s  {cpu:6.2f} CPU ms  {layers}")
    return out


def output_of(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("math")
    one.add_argument("pairs", type=Path, nargs="?")
    one.add_argument("--golds", type=Path, nargs="*", default=[])
    one.add_argument("--most", type=int, default=1000, help="answers taken of each file of golds")
    one.add_argument("--math-verify", metavar="PYTHON")
    one.add_argument("--show", type=int, default=0, help="wrong verdicts shown of each grader")
    two = parts.add_parser("sandbox")
    two.add_argument("--runs", type=int, default=2000)
    for part in (one, two):
        part.add_argument("--out", type=Path)
    hidden = parts.add_parser("grade")
    hidden.add_argument("name")
    hidden = parts.add_parser("measure")
    hidden.add_argument("namespaces")
    hidden.add_argument("runs", type=int)
    args = parser.parse_args()
    if args.part == "grade":
        return grade(args.name)
    if args.part == "measure":
        from onebase.verifiers.sandbox_check import measure

        print(json.dumps(measure(args.runs, args.namespaces)))
        return 0
    out = {"math": math, "sandbox": sandbox}[args.part](args)
    if args.out:
        args.out.write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
