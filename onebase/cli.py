"""The command line.  Each verb has its own parser and imports what it needs when it runs: `--help` loads
neither torch nor pydantic.

Exit codes: 0 done; 1 the verb's answer is no (`verify --gold`, `doctor`); 2 the user's input is wrong
(UserError); 75 SIGTERM after which a training stage saved its state (run it again); 130 Ctrl-C, 143 SIGTERM,
129 SIGHUP.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from onebase.errors import UserError


class Verb(NamedTuple):
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    line: str


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"onebase {version('onebase')}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        from onebase.wording import hint, listed

        told = f"onebase: {words[0]!r} is no verb\n  allowed: {listed(VERBS)}" + hint(words[0], VERBS)
        print(told, file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        prog=f"onebase {words[0]}", description=verb.line, allow_abbrev=False, exit_on_error=False
    )
    verb.arguments(parser)
    try:
        # Intermixed: `run laptop --fresh base` and `run laptop base --fresh` are the same.
        return verb.run(parser.parse_intermixed_args(words[1:]))
    except argparse.ArgumentError as error:
        print(f"{parser.format_usage()}onebase {words[0]}: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"onebase {words[0]}: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:  # argparse after --help, or a usage error it told itself
        return leaving.code if isinstance(leaving.code, int) else 2
    except BrokenPipeError:  # `onebase ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        again = (
            "; what is whole is kept, the same command goes on from there"
            if words[0] in ("run", "eval", "corpus")
            else ""
        )
        print(f"\nonebase {words[0]}: stopped{f' by {stop}' if str(stop) else ''}{again}", file=sys.stderr)
        return getattr(stop, "code", 130)


def _help() -> str:
    verbs = "\n".join(f"  {name:<8} {verb.line}" for name, verb in VERBS.items())
    return (
        "usage: onebase VERB ...\n\n"
        "One base model becomes a V3-style and an R1-style model, stage by stage, from one recipe.\n\n"
        f"{verbs}\n\n"
        "`onebase VERB --help` tells more; `onebase run laptop` is the place to begin."
    )


def _run_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "recipe", metavar="RECIPE", help="a recipe file, or a shipped recipe's name (onebase ls recipes)"
    )
    p.add_argument(
        "stages", metavar="STAGE", nargs="*", help="only these stages and what they need (default: all)"
    )
    _set_argument(p)
    p.add_argument(
        "--dry-run", action="store_true", help="print the plan (tokens, parameters, memory, minutes), no more"
    )
    p.add_argument(
        "--fresh", action="store_true", help="first remove what the named stages (or all) made before"
    )


def _set_argument(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--set",
        metavar="A.B=C",
        action="append",
        default=[],
        help="another value in the recipe: stages.base.data.0.weight=2",
    )


def _run(args: argparse.Namespace) -> int:
    from onebase import launch, pipeline, recipe_loader

    recipe = recipe_loader.load(args.recipe, args.set)
    if launch.follows():
        launch.follow(pipeline.pick_device(recipe.hardware))
        return 0
    pipeline.run(recipe, args.stages or None, fresh=args.fresh, dry_run=args.dry_run)
    if launch.under_torchrun():
        launch.dismiss(pipeline.pick_device(recipe.hardware))
    return 0


def _plan_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe; may be left out with --simulate")
    _set_argument(p)
    from onebase import simulate_command

    simulate_command.arguments(p)


def _plan(args: argparse.Namespace) -> int:
    from onebase import simulate_command

    return simulate_command.main(args)


def _corpus_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("config", metavar="CONFIG.yaml", help="sources, filters, tokenizer (docs/data.md)")
    p.add_argument("--out", metavar="FOLDER", required=True, help="where the corpus is made, or gone on with")
    p.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)"
    )
    _set_argument(p)
    p.add_argument("--keep-work", action="store_true", help="keep the text between the steps (FOLDER/work)")
    p.add_argument("--verify", action="store_true", help="read every shard again and compare its digest")


def _corpus(args: argparse.Namespace) -> int:
    from onebase.pretrain import corpus

    return corpus.main(args.config, args.out, args.set, args.workers, args.keep_work, args.verify)


def _eval_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "checkpoints", metavar="CHECKPOINT", nargs="+", help="folder, run folder's stage, or hub id; [LABEL=]"
    )
    p.add_argument(
        "--data", metavar="SOURCE", nargs="+", required=True, help="worlds, files or hub ids of problems"
    )
    p.add_argument("--split", default="heldout", help="of worlds: heldout or ood; of a hub id: its name")
    p.add_argument("--verifier", default="math_answer", help="default: math_answer")
    p.add_argument("--problems", type=int, default=256, help="of each source (default 256)")
    p.add_argument(
        "--samples", type=int, default=8, help="sampled answers per problem, besides the greedy one"
    )
    p.add_argument("--max-tokens", type=int, default=256, help="longest answer (default 256)")
    p.add_argument("--temperature", type=float, default=1.0, help="of the sampled answers")
    p.add_argument(
        "--think", choices=("free", "open"), default="free", help="open: the prompt ends with <think>"
    )
    p.add_argument("--name", help="run folder's name (default: from the settings)")
    p.add_argument("--fresh", action="store_true", help="measure again")
    _set_argument(p)


def _eval(args: argparse.Namespace) -> int:
    from onebase import eval_command

    return eval_command.main(args)


def _chat_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "folder", metavar="FOLDER", help="checkpoint or stage folder (runs/laptop/r1), or a hub id"
    )
    p.add_argument("--ask", metavar="TEXT", help="answer this one question and leave")
    p.add_argument("--max-tokens", type=int, default=512, help="longest reply (default 512)")
    p.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (default 0.6)")
    p.add_argument("--hardware", choices=("auto", "cpu", "gpu"), default="auto")


def _chat(args: argparse.Namespace) -> int:
    from onebase import chat
    from onebase.pipeline import pick_device

    device = pick_device(args.hardware)
    chat.main(
        args.folder, temperature=args.temperature, max_tokens=args.max_tokens, device=device, ask=args.ask
    )
    return 0


def _verify_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "verifier", metavar="NAME", help="built-in, entry point or path.py:function (onebase ls verifiers)"
    )
    p.add_argument(
        "data", metavar="ROWS.jsonl", help="rows with `completion` and `answer`, and what the verifier needs"
    )
    p.add_argument(
        "--gold", action="store_true", help="judge each row's own answer instead: all must score 1"
    )
    p.add_argument(
        "--field", metavar="OURS=THEIRS", action="append", default=[], help="as in completion=output"
    )
    p.add_argument(
        "--show", type=int, default=10, metavar="N", help="rows shown that did not score 1 (default 10)"
    )
    p.add_argument("--out", metavar="FILE.jsonl", help="write every verdict there")
    p.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="as `options` in a recipe's term: --option 'policy={percent: strict}'",
    )
    p.add_argument("--timeout", type=float, metavar="S", help="seconds for one verdict")


def _verify(args: argparse.Namespace) -> int:
    from onebase import verify

    return verify.main(
        args.verifier, args.data, args.gold, args.field, args.show, args.out, args.option, args.timeout
    )


def _new_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", metavar="verifier", choices=("verifier",), help="what to make: verifier")
    p.add_argument("name", metavar="NAME", help="its name: letters, digits and _")
    p.add_argument("--dir", default=".", help="the folder in which NAME/ is made (default: here)")


def _new(args: argparse.Namespace) -> int:
    from onebase import new_verifier

    return new_verifier.main(args.name, args.dir)


def _ls_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        default="runs",
        help="recipes, worlds, verifiers, or a folder of runs (default: runs)",
    )


def _ls(args: argparse.Namespace) -> int:
    from onebase import ls

    return ls.main(args.what)


def _cp_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "name", metavar="NAME", help="a shipped recipe (laptop), or a stage's checkpoint (runs/laptop/r1)"
    )
    p.add_argument("dest", metavar="DEST", help="where to; an existing file or folder is not overwritten")


def _cp(args: argparse.Namespace) -> int:
    from onebase import cp_files

    return cp_files.main(args.name, args.dest)


def _doctor(args: argparse.Namespace) -> int:
    from onebase import doctor

    return doctor.main()


def _schema_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--text", metavar="KIND", nargs="?", const="recipe", help="readable: recipe, model or a kind of stage"
    )


def _schema(args: argparse.Namespace) -> int:
    from onebase import schema_text

    return schema_text.main(args.text)


VERBS = {
    "run": Verb(_run_arguments, _run, "run a recipe's stages: pretrain, sft, grpo, reject_sample, eval"),
    "plan": Verb(_plan_arguments, _plan, "tell what a run will cost; --simulate: how many engines it needs"),
    "corpus": Verb(_corpus_arguments, _corpus, "prepare text for pretraining: filter, deduplicate, tokenise"),
    "eval": Verb(_eval_arguments, _eval, "measure checkpoints on problems"),
    "chat": Verb(_chat_arguments, _chat, "talk to a checkpoint"),
    "verify": Verb(_verify_arguments, _verify, "judge the rows of a file by a verifier"),
    "new": Verb(_new_arguments, _new, "write a verifier's plug-in: code, golden cases, test, package"),
    "ls": Verb(_ls_arguments, _ls, "list runs, recipes, worlds or verifiers"),
    "cp": Verb(_cp_arguments, _cp, "copy a shipped recipe to edit it, or a checkpoint to give it away"),
    "doctor": Verb(lambda p: None, _doctor, "look at this machine: libraries, GPU, memory, disk"),
    "schema": Verb(_schema_arguments, _schema, "the recipe's JSON schema, or its fields as text"),
}


if __name__ == "__main__":
    raise SystemExit(main())
