"""Finds the final answer in a completion.

Only the part after the thought counts.  In it, first match wins: the last `\\boxed` (several boxes that are
listed together are one list), an `<answer>` tag, `#### `, "the answer is", the whole text when it is short,
the closing formula or bold value, and, as a stated fallback that the policy can switch off, the last number
(math_prose).  All scans are linear and look at the tail of the text only.
"""

from __future__ import annotations

import re

from onebase.verifiers.math_budget import Exhausted, budget
from onebase.verifiers.math_parse import readings
from onebase.verifiers.math_policy import LIMITS, Policy
from onebase.verifiers.math_prose import (
    Extraction,
    announced,
    bare,
    chosen_letter,
    closing,
    is_short,
    last_formula,
)
from onebase.verifiers.math_text import labelled_choice

_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>|<\/s>|<｜end▁of▁sentence｜>"
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox|beginboxed)(?![A-Za-z])")
_MATH_MARKS = re.compile(r"\$|\\[\[\](),;:!]|\\(?:q?quad|text(?:rm|bf)?|mathrm)(?![A-Za-z])|[{}*~\n]|&")
_OTHERWISE = re.compile(
    r"\b(?:otherwise|alternatively|or\s+else|failing\s+that|could\s+also\s+be|if\b[^.]{0,40}\b(?:wrong|not|incorrect|fails?))\b"
)
_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator marks
_TAIL = 6_000


def answer_part(completion: str, prefilled: bool) -> Extraction:
    """What follows the thought.  A thought that never closes leaves no answer."""
    text = completion[-LIMITS.completion_chars :]
    head, closed, tail = text.rpartition("</think>")
    if closed:
        text = tail
    if "<think>" in text and closed:
        return Extraction(None, "a second thought never closes")
    if closed:
        pass
    elif "<think>" in text:
        return Extraction(None, "the thought never closes")
    elif prefilled:
        return Extraction(None, "the thought that the prompt opened never closes")
    turn = _END_OF_TURN.search(text)
    return Extraction(text[: turn.start()] if turn else text, "")


def extract(completion: str, policy: Policy, kind: str = "value", prefilled: bool = False) -> Extraction:
    """`kind` says what the gold is: a choice, a text, or a value; prose is read accordingly."""
    part = answer_part(completion, prefilled)
    if part.text is None:
        return part
    text = part.text
    if not text.strip():
        return Extraction(None, "no text after the thought" if "</think>" in completion else "no text")
    if found := boxes(text, policy.boxes):
        return _final_after_box(text) or found
    if found := _tagged(text):
        return found if found.text is None else boxes(found.text, policy.boxes) or found
    if policy.boxed_only:
        return Extraction(None, "no box, and the policy wants one")
    return in_prose(text[-_TAIL:].strip(), policy, kind)


def in_prose(text: str, policy: Policy, kind: str) -> Extraction:
    """The answer of a text without box and tag."""
    try:
        with budget(LIMITS.prose_operations):
            return _in_prose(text, policy, kind)
    except Exhausted:
        return Extraction(None, "more formulas in the prose than are worth reading")


def _in_prose(text: str, policy: Policy, kind: str) -> Extraction:
    if kind == "choice":
        if is_short(text) and labelled_choice(text):
            return Extraction(bare(text), "the whole text")
        if letter := chosen_letter(text):
            return letter
    text = _CALCULATION.sub("", text)
    if "####" in text:
        line = text.rpartition("####")[2].strip().split("\n")[0]
        return Extraction(line.strip() or None, "after ####")
    if found := announced(text, kind == "text"):
        return found
    whole = Extraction(bare(text), "the whole text")
    if kind == "text" and (formula := last_formula(text)) is not None:
        return Extraction(formula, "the closing formula")
    if kind == "text" and len(text) <= 200 and "\n" not in text:
        return whole
    first = readings(bare(text))[0].op
    if (is_short(text) and first != "text") or first in ("const", "minus", "clock"):
        return whole
    found = closing(text, policy)
    return whole if found.text is None and found.how == "no answer found" and is_short(text) else found


def _tagged(text: str) -> Extraction | None:
    """The last <answer>…</answer>; several that are listed together count as one list."""
    spans: list[tuple[int, int]] = []
    end = len(text)
    while len(spans) < 20 and (end := text.rfind("</answer>", 0, end)) >= 0:
        start = text.rfind("<answer>", 0, end)
        if start < 0 or (spans and not _listed(text[end + len("</answer>") : spans[-1][0]])):
            break
        spans.append((start, end))
        end = start
    if not spans:
        return None
    inner = [text[start + len("<answer>") : end].strip() for start, end in reversed(spans)]
    if len(set(inner)) > 1:
        return Extraction(" , ".join(inner), f"{len(inner)} answer tags listed together")
    return Extraction(inner[-1] or None, "in the answer tag")


def _final_after_box(text: str) -> Extraction | None:
    """A "final answer" that is stated after the last box, and so outranks it."""
    after = text[text.rfind("boxed") :][:_TAIL]
    mark = after.lower().rfind("final answer")
    found = None if mark < 0 else announced(after[mark:])
    if found is None or found.text is None or readings(found.text)[0].op == "text":
        return None  # "the final answer is a common one" states none
    return found


def boxes(text: str, several: str = "listed") -> Extraction | None:
    """The last box; boxes that are listed together ("and", "or", commas between) count as one list, unless
    the policy for `several` boxes says that only the last counts or that there may be only one."""
    position = len(text)
    for _ in range(60):
        position = text.rfind("box", 0, position)
        if position < 0:
            break
    starts = list(_BOX.finditer(text, max(0, position - 12)))
    if not starts:
        return None
    found: list[tuple[int, int, str]] = []
    for start in starts[-40:]:
        if found and start.start() < found[-1][1]:
            continue  # a box inside a box
        span = _box_content(text, start.end())
        if span is None:
            return Extraction(None, "the last box is not closed, or far too long")
        found.append((start.start(), *span))
    if several == "one" and len({content.strip() for _, _, content in found}) > 1:
        return Extraction(None, "different boxes, and the policy wants one")
    if several == "listed" and _row_of_boxes(text, found):
        return Extraction(None, "many different boxes side by side")
    joined = [found[-1]]
    while several == "listed" and len(joined) < len(found):
        before = found[-1 - len(joined)]
        if not _listed(text[before[1] : joined[0][0]]):
            break
        joined.insert(0, before)
    contents = [content.strip().rstrip("\\").strip() for _, _, content in joined]
    contents = [content[2:-2] if re.fullmatch(r"\*\*[^*]+\*\*", content) else content for content in contents]
    if len(contents) > 1 and len(set(contents)) > 1:
        return Extraction(" , ".join(contents), f"{len(contents)} boxes listed together")
    if not contents[-1]:
        return Extraction(None, "the last box is empty")
    return Extraction(contents[-1], "in the last box")


def _box_content(text: str, position: int) -> tuple[int, str] | None:
    """End and content of a box.  One that is far longer than any answer counts as not closed."""
    while position < len(text) and text[position].isspace():
        position += 1
    if position >= len(text):
        return None
    if text[position] != "{":
        token = re.compile(r"\\?[A-Za-z]+|[-+]?\d[\d.,]*\d|[-+]?\d|[^\s{}$]").match(text, position)
        return (token.end(), token.group()) if token else None
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.S).finditer(text, position, position + 10 * LIMITS.answer_chars):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return brace.end(), text[position + 1 : brace.start()]
    return None


def _row_of_boxes(text: str, found: list[tuple[int, int, str]]) -> bool:
    """Three or more different answers with nothing between them: a listing, not a correction."""
    row = {found[-1][2]}
    for before, after in zip(found[-2::-1], found[:0:-1], strict=True):
        if _MATH_MARKS.sub("", text[before[1] : after[0]]).strip():
            break
        row.add(before[2])
    return len(row) > 2


def _listed(between: str) -> bool:
    """Whether two boxes belong to one list: only separators, or a short connective, stand between them."""
    if len(between) > 120 or "\n\n" in between.strip():
        return False
    plain = _MATH_MARKS.sub(" ", between)
    plain = re.sub(r"[\w\\^]+\s*(?:\([^()]*\))?\s*=\s*$", "", plain).strip().lower()
    if not plain:
        return False  # side by side: the later corrects the earlier
    if re.fullmatch(r"[,;.]?\s*(?:and/or|and|or|und|et|&|/)?\s*[,;]?|[,;]", plain) and plain != ".":
        return True
    if re.fullmatch(r"[,;(]?\s*(?:or|alternatively|either)\b(?:\s+\w+){0,3}\s*[,:]?", plain):
        return True
    if _OTHERWISE.search(plain):
        return True
    return bool(re.fullmatch(r"(?:\s*[\w()'-]+){1,7}\s*,?\s*(?:and|or)", plain)) and "." not in plain


__all__ = ["Extraction", "answer_part", "boxes", "extract", "in_prose"]
