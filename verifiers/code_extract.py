"""The code of a completion: the last closed fenced block of what follows the thought.

- The thought ends at the first `</think>`; a thought that never closes leaves no code, and a later `<think>`
  outside a block opens another thought.
- A fence is a line of three or more backticks or tildes; it is closed by a line of at least as many of the
  same, indented at most three columns deeper than the opening one (so a fence inside a docstring does not end
  the block).  The block loses the fence's own indentation.
- Of the closed blocks the last one tagged with the language counts; if there is none, the last untagged one.
  Blocks tagged otherwise (`text`, `bash`, `json`) are not code.
- A last block that never closes is no code: it was cut short, and an earlier block would be a draft.
- Without any fence the whole text is taken as it stands.  Whether it is Python is found out where it runs;
  text of a stranger is not parsed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARS = 400_000
PYTHON_TAGS = ("python", "py", "python3", "python2", "py3", "pycon")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)")
_SPECIAL_END = re.compile(r"(?:\s*<[|｜][^<>|｜\n]{1,40}[|｜]>)+\s*\Z|\s*</s>\s*\Z")


@dataclass(frozen=True, slots=True)
class Code:
    """`text` is None where there is no code; `how` says where it was found, or why there is none."""

    text: str | None
    how: str
    fenced: bool = False


@dataclass(slots=True)
class _Block:
    tag: str
    lines: list[str]
    closed: bool = False


def extract(completion: str, tags: tuple[str, ...] = PYTHON_TAGS, *, prefilled: bool = False) -> Code:
    """`prefilled`: the prompt has opened the thought: a completion without `</think>` is all thought."""
    if len(completion) > MAX_CHARS:
        return Code(None, f"a completion of {len(completion)} characters; the limit is {MAX_CHARS}")
    thought, closed, text = completion.partition("</think>")
    if not closed:
        if prefilled or completion.lstrip().startswith("<think>"):
            return Code(None, "the thought never closes")
        text = thought
    blocks, open_thought = _blocks(text)
    if open_thought:
        return Code(None, "a second thought never closes")
    if not blocks:
        return _whole(text)
    if not blocks[-1].closed:
        return Code(None, "the last fenced block never closes")
    chosen = [b for b in blocks if b.tag in tags] or [b for b in blocks if not b.tag]
    if not chosen:
        found = ", ".join(sorted({b.tag for b in blocks}))[:80]
        return Code(None, f"no fenced block of {tags[0]}, only of {found}")
    return Code("\n".join(chosen[-1].lines) + "\n", "the last fenced block", fenced=True)


def _whole(text: str) -> Code:
    text = _SPECIAL_END.sub("", text)
    if not text.strip():
        return Code(None, "no text after the thought")
    return Code(text.strip("\n").rstrip() + "\n", "the whole text")


def _blocks(text: str) -> tuple[list[_Block], bool]:
    """The fenced blocks outside thoughts, in order; True where a later thought never closes."""
    blocks: list[_Block] = []
    inside: tuple[str, int] | None = None  # the opening fence and its indentation
    thinking = False
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if inside is None:
            if thinking or "<think>" in line:
                if line.rfind("</think>") <= line.rfind("<think>"):
                    thinking = thinking or "<think>" in line
                    thinking = thinking if "</think>" not in line or "<think>" in line else False
                    continue
                thinking = False
                line = line[line.rfind("</think>") + len("</think>") :]
            match = _FENCE.fullmatch(line)
            if match:
                inside = (match[2], len(match[1].expandtabs(4)))
                blocks.append(_Block(_tag(match[3]), []))
            continue
        mark, indent = inside
        match = _FENCE.fullmatch(line)
        same = match is not None and match[2][0] == mark[0] and len(match[2]) >= len(mark)
        if match is not None and same and not match[3] and len(match[1].expandtabs(4)) <= indent + 3:
            blocks[-1].closed, inside = True, None
        else:
            blocks[-1].lines.append(_dedent(line, indent))
    return blocks, thinking


def _tag(info: str) -> str:
    """`Python title="x"`, `{.python}` and `python:main.py` are all python."""
    words = re.split(r"[\s{}:,]+", info.strip().strip("{}").lstrip("."), maxsplit=1)
    return words[0].lower()


def _dedent(line: str, columns: int) -> str:
    cut = 0
    while cut < min(columns, len(line)) and line[cut] == " ":
        cut += 1
    return line[cut:]
