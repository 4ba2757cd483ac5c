"""`onebase chat`: talk to a checkpoint in the terminal; the thought is dim and apart from the answer.

The engine gives whole completions, so a reply is asked for piece by piece: each request goes on from the ids
so far, under its own seed.  What was sampled stays as ids and is never tokenised again within a turn.
Thoughts of earlier turns are dropped from later prompts by the chat template, as in training.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onebase.errors import UserError
from onebase.tokenizer import END_THINK, THINK, ChatTokenizer
from onebase.wording import hint, listed

if TYPE_CHECKING:
    from rich.console import Console

    from onebase.rollout.engine import Engine

PIECE = 16  # tokens between two looks at the screen
LONGEST = 8192  # tokens of a conversation, where the model allows more
COMMANDS = {
    "/think on": "the next replies begin inside a thought",
    "/think off": "the model decides itself whether to think (the start)",
    "/reset": "forget the conversation",
    "/quit": "leave (also Ctrl-D)",
}
Kind = Literal["thought", "answer"]


@dataclass(slots=True)
class Splitter:
    """Text as it arrives, cut into thought and answer; the tags themselves are left out.

    A piece that may be the beginning of a tag is held back until it is clear (`end` lets it go): tokenizers
    of other models have no single id for the tags.
    """

    kind: Kind = "answer"
    held: str = ""

    def feed(self, text: str) -> list[tuple[Kind, str]]:
        out: list[tuple[Kind, str]] = []
        rest = self.held + text
        while rest:
            tag = THINK if self.kind == "answer" else END_THINK
            before, found, after = rest.partition(tag)
            if found:
                out.append((self.kind, before))
                self.kind = "thought" if tag == THINK else "answer"
                rest = after
                continue
            keep = next((n for n in range(min(len(tag) - 1, len(rest)), 0, -1) if tag[:n] == rest[-n:]), 0)
            out.append((self.kind, rest[: len(rest) - keep]))
            rest = rest[len(rest) - keep :]
            break
        self.held = rest
        return [(kind, part) for kind, part in out if part]

    def end(self) -> list[tuple[Kind, str]]:
        rest, self.held = self.held, ""
        return [(self.kind, rest)] if rest else []


@dataclass(slots=True)
class Conversation:
    """The turns so far, and how replies are drawn."""

    engine: Engine
    tokenizer: ChatTokenizer
    longest: int
    max_tokens: int
    temperature: float
    think: Literal["free", "open"] = "free"
    seed: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)
    cut: bool = False
    """Whether the last reply ended at the limit of tokens."""

    def reply(self, text: str) -> Iterator[str]:
        """Say `text`; yields the reply's text in pieces.  The turn is kept when the reply is complete, or
        was stopped by the caller (then as far as it came)."""
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self.tokenizer.prompt_ids(messages, self.think)
        if len(prompt) >= self.longest:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, the model reads {self.longest}; "
                "/reset begins anew"
            )
        ids: list[int] = []
        start = THINK if self.think == "open" else ""
        shown = ""
        if start:
            yield start
        try:
            for done in self._pieces(prompt, ids):
                whole = self.tokenizer.text(ids)
                # An unfinished character decodes to U+FFFD until its last byte is there.
                now = whole if done else whole.rstrip("\N{REPLACEMENT CHARACTER}")
                if now.startswith(shown) and now != shown:
                    yield now[len(shown) :]
                    shown = now
        finally:
            if ids:
                said = start + self.tokenizer.text(ids)
                if THINK in said and END_THINK not in said:
                    said += END_THINK  # cut off while thinking: the template drops closed thoughts only
                self.messages = [*messages, {"role": "assistant", "content": said}]

    def _pieces(self, prompt: list[int], ids: list[int]) -> Iterator[bool]:
        """Extends `ids` piece by piece; yields whether the reply is over."""
        from onebase.rollout.engine import Request
        from onebase.rollout.torch_engine import request_seed

        most = min(self.max_tokens, self.longest - len(prompt))
        self.cut = True
        while len(ids) < most:
            request = Request(
                prompt_ids=prompt + ids,
                seed=request_seed(self.seed, len(self.messages), len(ids), 0),
                max_tokens=min(PIECE, most - len(ids)),
                temperature=self.temperature,
                stop_ids=self.tokenizer.stop_ids,
            )
            (rollout,) = self.engine.generate([request])
            ids += rollout.completion_ids
            self.cut = rollout.finish_reason != "stop"
            yield not self.cut or len(ids) >= most
            if not self.cut:
                return


def main(
    folder: Path | str,
    *,
    temperature: float = 0.6,
    max_tokens: int = 512,
    device: str = "auto",
    ask: str | None = None,
) -> None:
    """Talk to a checkpoint folder, a stage's folder or a hub id.  With `ask`, or where the input is no
    terminal, one question is answered on the standard output, tags and all, and that is it."""
    origin = find(folder)
    if max_tokens < 1 or temperature < 0:
        raise UserError(f"max_tokens={max_tokens}, temperature={temperature}: at least 1, at least 0")
    question = ask if ask is not None else None if sys.stdin.isatty() else sys.stdin.read()
    if question is not None and not question.strip():
        raise UserError("there is no question: the input is empty")
    conversation = open_conversation(origin, device, temperature, max_tokens)
    if question is not None:
        for piece in conversation.reply(question.strip()):
            print(piece, end="", flush=True)
        print()
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"{origin}: /think on|off, /reset, /quit", style="dim", markup=False)
    talk(conversation, console, lambda: console.input("[bold]> [/bold]"))


def open_conversation(origin: str, device: str, temperature: float, max_tokens: int) -> Conversation:
    from onebase.model import checkpoint
    from onebase.pipeline import pick_device
    from onebase.rollout.torch_engine import TorchEngine

    device = pick_device("auto") if device == "auto" else device
    dtype = "bfloat16" if device == "cuda" else "float32"
    model, tokenizer = checkpoint.load(origin, device, dtype)
    model.eval()
    longest = min(LONGEST, context_length(model))
    engine = TorchEngine(model, tokenizer.pad_id, 1, longest)
    seed = random.SystemRandom().getrandbits(32)
    return Conversation(engine, tokenizer, longest, max_tokens, temperature, seed=seed)


def context_length(model: Any) -> int:
    """Positions that a model of ours, or one of transformers behind `HFCausalLM`, was made for."""
    from onebase.model.transformer import Transformer

    config = model.config if isinstance(model, Transformer) else model.model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", LONGEST))


def talk(conversation: Conversation, console: Console, read: Callable[[], str]) -> None:
    """Read, reply, until /quit or the end of the input.  Ctrl-C stops a reply, and leaves at the prompt."""
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line.startswith("/"):
            if not command(conversation, console, line):
                return
        elif line:
            try:
                show(conversation.reply(line), console)
                if conversation.cut:
                    console.print("(cut off at the limit of tokens)", style="dim")
            except KeyboardInterrupt:
                console.print("\n(stopped)", style="dim")
            except UserError as error:
                console.print(str(error), style="yellow", markup=False)


def show(pieces: Iterator[str], console: Console) -> None:
    """Print a reply as it comes: the thought dim and italic, the answer on a line of its own."""
    splitter, before = Splitter(), ""
    last: Kind | None = None

    def put(parts: list[tuple[Kind, str]]) -> None:
        nonlocal last, before
        for kind, text in parts:
            if kind != last:
                text = text.lstrip()
                if not text:
                    continue
                if last is not None and not before.endswith("\n"):
                    console.print()
            last, before = kind, text
            style = "dim italic" if kind == "thought" else ""
            console.print(text, end="", style=style, markup=False, highlight=False, soft_wrap=True)

    for piece in pieces:
        put(splitter.feed(piece))
    put(splitter.end())
    console.print()


def command(conversation: Conversation, console: Console, line: str) -> bool:
    """Obey a line that begins with a slash; False to leave."""
    words = " ".join(line.lower().split())
    if words in ("/quit", "/exit", "/q"):
        return False
    if words == "/reset":
        conversation.messages = []
        console.print("(forgotten)", style="dim")
    elif words in ("/think on", "/think off"):
        conversation.think = "open" if words == "/think on" else "free"
        console.print(f"({COMMANDS[words]})", style="dim", markup=False)
    elif words in ("/help", "/", "/?"):
        for name, what in COMMANDS.items():
            console.print(f"{name:<11} {what}", style="dim", markup=False)
    else:
        told = f"{line}: no such command; allowed: {listed(COMMANDS)}{hint(words, COMMANDS)}"
        console.print(told, style="yellow", markup=False)
    return True


def find(given: Path | str) -> str:
    """The checkpoint behind what was given, as `checkpoint.load` takes it; UserError with the nearest."""
    from onebase.pipeline import checkpoint_folder
    from onebase.recipe_checks import HUB_ID

    path = Path(given).expanduser()
    if path.is_dir():
        found = checkpoint_folder(path)
        if found is not None:
            return str(found)
        stages = [str(p) for p in sorted(path.iterdir()) if p.is_dir() and checkpoint_folder(p)]
        if stages:
            raise UserError(f"{given}: a run's folder; name one of its stages\n  allowed: {listed(stages)}")
        raise UserError(
            f"{given}: no checkpoint there: neither config.json nor checkpoint/\n"
            f"  with one: {listed(_known(path))}" + hint(str(given), _known(path))
        )
    if path.exists():
        raise UserError(f"{given}: a file; expected a folder with config.json, or a stage's folder")
    if HUB_ID.fullmatch(str(given)) and not path.parent.is_dir():
        return str(given)
    known = _known(path)
    raise UserError(f"{given}: no such folder\n  with a checkpoint: {listed(known)}{hint(str(given), known)}")


def _known(path: Path) -> list[str]:
    """Folders with a checkpoint beside the path and under runs/."""
    from onebase.pipeline import checkpoint_folder

    beside = path.parent.iterdir() if path.parent.is_dir() else []
    folders = [*beside, *Path("runs").glob("*/*")]
    return list(dict.fromkeys(str(p) for p in sorted(folders) if p.is_dir() and checkpoint_folder(p)))[:12]
