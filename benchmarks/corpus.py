"""How fast a corpus is prepared, beside datatrove alone and the tokenizer alone, and how much memory it
takes.

    python benchmarks/corpus.py --rows FOLDER... [--mb 1000] [--workers 2] [--json FILE]

The text is made from the JSONL files below each FOLDER: their texts are put together to documents of about
3,000 characters; each further copy of a document has 15 % of its words replaced by words of the same file, so
that it is no near-duplicate.  All runs read the same files (JSONL, 8 MB each) and use the same tokenizer
(32,768 entries, trained on the first 20 MB by `onebase corpus`), one run after the other:

    prepare        onebase corpus: all filters, language, MinHash, decontamination against 500 texts written
                   backwards (nothing matches, looking costs the same), repeats of ids, shards with digests
    bare           onebase corpus: no filter, no deduplication, no evaluation
    datatrove      its JsonlReader and DocumentTokenizer in its LocalPipelineExecutor, no shuffling
    tokenizer      the same texts in memory, `encode_batch_fast`, one process for each worker

Wall seconds, and processor seconds of all processes (which a busy machine changes less).  Peak memory is that
of the largest process; `prepare` runs on half the text, too: the two peaks say whether memory grows with the
corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_BYTES, DOCUMENT, REPLACED = 8_000_000, 3000, 0.15
CONFIG = """
name: benchmark
sources: {text: {path: PATH, FILTERS}}
tokenizer: TOKENIZER
dedup: {enabled: DEDUP}
decontaminate: {sources: SUITES}
part_bytes: 16777216
"""
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    text, tokenizer, out, tasks, workers = sys.argv[1:]
    step = DocumentTokenizer(out + "/tokens", tokenizer, eos_token="<|eos|>", shuffle_documents=False)
    options = dict(logging_dir=out + "/logs", start_method="spawn")  # so that its processor time is counted
    LocalPipelineExecutor([JsonlReader(text), step], tasks=int(tasks), workers=int(workers), **options).run()
"""
TOKENIZER = """
import json, os, sys, time
os.environ["RAYON_NUM_THREADS"] = "1"
from onebase.tokenizer import ChatTokenizer
tokenizer = ChatTokenizer.load(sys.argv[1])
texts = [json.loads(line)["text"] for file in sys.argv[2:] for line in open(file, encoding="utf-8")]
start, cpu = time.perf_counter(), time.process_time()
tokens = 0
for at in range(0, len(texts), 256):
    tokens += sum(map(len, tokenizer.encode_batch(texts[at : at + 256])))
print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, tokens]))
"""


def texts(folders: list[Path]) -> Iterator[str]:
    """The texts of all JSONL files, put together to documents."""
    for file in sorted(file for folder in folders for file in folder.rglob("*.jsonl")):
        held: list[str] = []
        for line in file.open(encoding="utf-8"):
            row = json.loads(line)
            messages = row.get("messages") or []
            held += [m["content"] for m in messages] or [
                v for v in row.values() if isinstance(v, str) and len(v) > 30
            ]
            if sum(map(len, held)) >= DOCUMENT:
                yield "\n".join(held)
                held = []


def make_text(rows: list[Path], folder: Path, size: int, seed: int = 0) -> int:
    """Files of about `size` bytes together; returns the exact number of bytes of text."""
    folder.mkdir()
    originals = list(texts(rows))
    random.Random(0).shuffle(originals)
    words = [word for text in originals[:: max(1, len(originals) // 200)] for word in text.split()]
    rng = random.Random(seed)
    made = written = number = 0
    out = (folder / "0000.jsonl").open("w", encoding="utf-8")
    while True:
        for text in originals:
            if made:
                pieces = text.split(" ")
                text = " ".join(rng.choice(words) if rng.random() < REPLACED else word for word in pieces)
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode("utf-8", "surrogatepass"))
            if written >= size:
                out.close()
                return written
            if out.tell() > FILE_BYTES:
                out.close()
                number += 1
                out = (folder / f"{number:04d}.jsonl").open("w", encoding="utf-8")
        made += 1


def measured(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds and the largest process of a command and all it starts."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        running = subprocess.Popen(command, stdout=told, stderr=told)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read().decode(errors="replace")
    assert running.returncode == 0, text[-3000:]
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu": cpu, "peak_mb": usage.ru_maxrss / 1024}


def prepare(
    work: Path, name: str, text: Path, tokenizer: str, workers: int, bare: bool, suite: Path | None
) -> dict[str, float]:
    filters = "filters: []" if bare else "language: [en], language_threshold: 0.2"
    config = CONFIG.replace("PATH", str(text)).replace("FILTERS", filters).replace("TOKENIZER", tokenizer)
    suites = f"[{{path: {suite}}}]" if suite else "[]"
    (work / f"{name}.yaml").write_text(
        config.replace("DEDUP", str(not bare).lower()).replace("SUITES", suites)
    )
    out = work / name
    command = [sys.executable, "-m", "onebase", "corpus", str(work / f"{name}.yaml"), "--out", str(out)]
    numbers = measured([*command, "--workers", str(workers)])
    card = json.loads((out / "card.json").read_text())["sources"]["text"]
    numbers |= {k: card[k] for k in ("documents_read", "documents_train", "bytes_train", "tokens_train")}
    return numbers


def tokenizer_alone(folder: Path, text: Path, workers: int) -> dict[str, float]:
    files = sorted(map(str, text.glob("*.jsonl")))
    commands = [[sys.executable, "-c", TOKENIZER, str(folder), *files[n::workers]] for n in range(workers)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    found = [json.loads(p.communicate()[0]) for p in running]
    return {
        "seconds": max(f[0] for f in found),
        "cpu": sum(f[1] for f in found),
        "tokens": sum(f[2] for f in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", help="some of: prepare bare datatrove tokenizer (default: all)")
    args = parser.parse_args()
    results: dict[str, Any] = {"load_average": os.getloadavg()[0], "workers": args.workers}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        size = make_text(args.rows, work / "text", args.mb * 1_000_000)
        half = make_text(args.rows, work / "half", size // 2, seed=1)
        make_text(args.rows, work / "suite", 3_000_000, seed=2)
        suite = work / "suite.jsonl"
        lines = (work / "suite" / "0000.jsonl").read_text(encoding="utf-8").splitlines()[-500:]
        suite.write_text(
            "\n".join(json.dumps({"problem": "Another: " + json.loads(x)["text"][::-1]}) for x in lines)
        )
        results["bytes"] = {"text": size, "half": half}
        make_text(args.rows, work / "sample", min(20_000_000, size))
        trained = "{vocab_size: 32768, sample_bytes: 20000000}"
        prepare(work, "first", work / "sample", trained, args.workers, True, None)
        tokenizer = f"{{path: {work / 'first' / 'tokenizer'}}}"
        wanted = args.only or ["prepare", "bare", "datatrove", "tokenizer"]
        runs = [("prepare", "text", False), ("prepare half", "half", False), ("bare", "text", True)]
        runs = [run for run in runs if run[0].split()[0] in wanted]
        for name, text, bare in runs:
            key = name.replace(" ", "_")
            results[name] = prepare(
                work, key, work / text, tokenizer, args.workers, bare, None if bare else suite
            )
            show(name, results[name], results["bytes"][text])
        tasks = len(list((work / "text").glob("*.jsonl")))
        script = work / "datatrove_alone.py"
        script.write_text(DATATROVE)
        file = str(work / "first" / "tokenizer" / "tokenizer.json")
        command = [sys.executable, str(script), str(work / "text"), file, str(work / "dt"), str(tasks)]
        if "datatrove" in wanted:
            results["datatrove"] = measured([*command, str(args.workers)])
            show("datatrove", results["datatrove"], size)
        if "tokenizer" in wanted:
            results["tokenizer"] = tokenizer_alone(work / "first" / "tokenizer", work / "text", args.workers)
            show("tokenizer", results["tokenizer"], size)
        results["load_average_after"] = os.getloadavg()[0]
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def show(name: str, numbers: dict[str, float], size: int) -> None:
    rate = size / 1e6 / numbers["seconds"]
    per_cpu = size / 1e6 / numbers["cpu"]
    peak = f", peak {numbers['peak_mb']:.0f} MB" if "peak_mb" in numbers else ""
    print(
        f"{name:14} {size / 1e6:7.1f} MB in {numbers['seconds']:7.1f} s: {rate:6.2f} MB/s; "
        f"{per_cpu:6.2f} MB per processor second{peak}", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
