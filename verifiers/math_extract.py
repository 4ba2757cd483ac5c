"""Finds the final answer in a completion.

Only the part after the thought counts.  In it, first match wins: the last `\\boxed` (several boxes that are
listed together are one list), an `<answer>` tag, `#### `, "the answer is", the closing formula or bold span,
the whole text when it is short, and, as a stated fallback that the policy can switch off, the last number.
All scans are linear and look at the tail of the text only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onebase.verifiers.math_parse import readings
from onebase.verifiers.math_policy import LIMITS, Policy
from onebase.verifiers.math_text import CHOICE, choice_letter

_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>|<\/s>|<｜end▁of▁sentence｜>"
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox|beginboxed)(?![A-Za-z])")
_MARK = re.compile(
    r"(?:final\s+answer|answer|result|solution|réponse|respuesta|antwort|答案)\s*"
    r"(?:\*\*)?\s*(?::|：|\bis\b|\best\b|\bes\b|\bist\b|是|为|=)\s*(?:\*\*)?(?:\s*(?:is|:|that)\b)?",
    re.I,
)
_NUMBER = re.compile(
    r"(?<![A-Za-z_\\\d.])(?P<sign>[-+−]\s?)?(?P<currency>\\?\$)?"
    r"(?:\\[dt]?frac\s*\{(?P<top>-?\d+)\}\s*\{(?P<bottom>\d+)\}"
    r"|(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:\s?/\s?(?P<under>\d+))?)"
    r"(?P<percent>\s?\\?%)?"
)
_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)|(?<![\\$])\$(?P<d>[^$\n]+?)(?<!\\)\$", re.S
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_MATH_MARKS = re.compile(r"\$|\\[\[\](),;:!]|\\(?:q?quad|text(?:rm|bf)?|mathrm)(?![A-Za-z])|[{}*~\n]|&")
_SENTENCE_END = re.compile(
    r"(?<=[^\d\s])\.(?=\s|$)|(?<=\d)\.(?=\s|$)|\n|。|(?<=\s)because\b|\s\((?=since|because|as\b|from|i\.e)|,\s+(?=which|so|since|it|not)\b"
)
_TAIL = 6_000


@dataclass(slots=True)
class Extraction:
    """The text of the answer and how it was found; or why there is none."""

    text: str | None
    how: str


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
    if found := boxes(text):
        return _final_after_box(text) or found
    if (inner := _tagged(text)) is not None:
        return boxes(inner) or Extraction(inner or None, "in the answer tag")
    if policy.boxed_only:
        return Extraction(None, "no box, and the policy wants one")
    tail = text[-_TAIL:].strip()
    if kind == "choice" and (letter := _letter(tail)):
        return Extraction(letter, "the letter chosen in the text")
    if "####" in tail:
        line = tail.rpartition("####")[2].strip().split("\n")[0]
        return Extraction(line.strip() or None, "after ####")
    if found := _after_mark(tail, kind == "text"):
        return found
    if kind == "text" and len(tail) <= 200 and "\n" not in tail:
        return Extraction(_bare(tail), "the whole text")
    whole = Extraction(_bare(tail), "the whole text")
    if _short(tail) and readings(_bare(tail))[0].op != "text":
        return whole
    found = _closing(tail, policy)
    return whole if found.text is None and found.how == "no answer found" and _short(tail) else found


def _tagged(text: str) -> str | None:
    """The last <answer>…</answer>."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def _final_after_box(text: str) -> Extraction | None:
    """A "final answer" that is stated after the last box, and so outranks it."""
    after = text[text.rfind("boxed") :][:_TAIL]
    mark = after.lower().rfind("final answer")
    found = None if mark < 0 else _after_mark(after[mark:])
    if found is None or found.text is None or readings(found.text)[0].op == "text":
        return None  # "the final answer is a common one" states none
    return found


def boxes(text: str) -> Extraction | None:
    """The last box; boxes that are listed together ("and", "or", commas between) count as one list."""
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
    if _row_of_boxes(text, found):
        return Extraction(None, "many different boxes side by side")
    joined = [found[-1]]
    while len(joined) < len(found):
        before = found[-1 - len(joined)]
        if not _listed(text[before[1] : joined[0][0]]):
            break
        joined.insert(0, before)
    contents = [content.strip().rstrip("\\").strip() for _, _, content in joined]
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
    return bool(re.fullmatch(r"(?:\s*[\w()'-]+){1,7}\s*,?\s*(?:and|or)", plain)) and "." not in plain


def _letter(text: str) -> str | None:
    """The option a text settles on, where the gold is one."""
    patterns = (
        r"(?:answer|choice|option|réponse|答案)\b[^.\n]{0,30}?\b(?:is|:|est|be)?\s*"
        r"(?:for sure\s+|definitely\s+)?"
        r"\(?\**([A-J])\**\)?(?![A-Za-z'])",
        r"(?:think|therefore|thus|so|hence|choose|pick|select|it is)\b[^.\n]{0,30}?\b(?:it'?s|is)?\s*"
        r"\(?\**([A-J])\**\)?(?![A-Za-z'])",
    )
    for pattern in patterns:
        found = [m for m in re.finditer(pattern, text[-2000:], re.I) if m.group(1).isupper()]
        if found:
            return str(found[-1].group(1))
    lead = re.match(r"\(?\**([A-J])\**\)?(?=[\s.,:;)。、不]|$)", text)
    if lead:
        return str(lead.group(1))
    closing = re.search(r"(?<![A-Za-z])(?<!not )\(?\**([A-J])\**\)?\.?\s*$", text)
    return str(closing.group(1)) if closing else None


def _after_mark(text: str, prose: bool = False) -> Extraction | None:
    """What "the answer is" announces: the last such mark counts."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    rest = text[marks[-1].end() :].strip()
    if not rest:
        return None
    if math := _MATH.match(rest.lstrip("*( ")):
        after = rest.lstrip("*( ")[math.end() :]
        if not re.match(r"\s*(?:or|and)\b", after):
            return Extraction(_math_text(math), "after the answer mark")
    if prose:
        return Extraction(_bare(rest.split("\n")[0]), "after the answer mark")
    sentence = _SENTENCE_END.split(rest)[0].strip(" *`")
    sentence = re.sub(r"^(?:is|:|equal to|equals|approximately|about)\s+", "", sentence, flags=re.I)
    if choice_letter(sentence) or _short(sentence):
        return Extraction(_bare(sentence), "after the answer mark")
    maths = list(_MATH.finditer(sentence))
    numbers = list(_NUMBER.finditer(sentence))
    if settled := re.search(r"(?:\bis|=)\s*(" + _NUMBER.pattern + r")[\s\w]{0,30}$", sentence):
        return Extraction(settled.group(1), "the number after the answer mark")
    if maths and (not numbers or maths[-1].end() >= numbers[-1].end()):
        return Extraction(_math_text(maths[-1]), "the formula after the answer mark")
    if numbers:
        if _hedged(sentence, numbers):
            return Extraction(None, "several numbers offered")
        return Extraction(numbers[0].group(), "the number after the answer mark")
    return None


def _closing(text: str, policy: Policy) -> Extraction:
    """The formula, bold span or number that the text ends on, whichever comes last."""
    numbers = list(_NUMBER.finditer(text)) if policy.last_number else []
    maths = [math for math in _MATH.finditer(text) if not _prose(_math_text(math))]
    bolds = [
        bold
        for bold in _BOLD.finditer(text)
        if any(c.isdigit() for c in bold.group(1)) or "$" in bold.group()
    ]
    end = numbers[-1].end() if numbers else -1
    if bolds and bolds[-1].end() >= end and _short(bolds[-1].group(1)):
        return Extraction(_bare(bolds[-1].group(1)), "the closing bold span")
    if maths and maths[-1].end() >= end:
        return Extraction(_math_text(maths[-1]), "the closing formula")
    if not numbers:
        return Extraction(None, "no answer found")
    if _hedged(text, numbers):
        return Extraction(None, "several numbers offered")
    return Extraction(numbers[-1].group(), "the last number (fallback)")


def _hedged(text: str, numbers: list[re.Match[str]]) -> bool:
    """`4 or 5`, `41, maybe 42`: no number was settled on."""
    for first, second in zip(numbers, numbers[1:], strict=False):
        between = text[first.end() : second.start()].lower().strip(" *$")
        if re.fullmatch(
            r"[.,;?]?\s*(?:or|and/or)\b(?:\s+\w+){0,2}|[.,;]\s*(?:maybe|perhaps|possibly)", between
        ):
            return True
    return False


def _math_text(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _short(text: str) -> bool:
    """Whether a whole text may be the answer: one line, and no run of three words of prose."""
    if len(text) > 400 or "\n" in text.strip() or _PROSE_WORDS.search(text):
        return False
    bare = re.sub(r"\\[A-Za-z]+\s*(?:\{[A-Za-z ]*\})?", " ", text)
    words = re.findall(r"[^\W\d_]{2,}", bare)
    words = [word for word in words if word.lower() not in _MATH_WORDS]
    return len(words) <= 2 and not re.search(r"[\u3040-\u9fff\u0600-\u06ff\u0900-\u097f]", bare)


def _prose(formula: str) -> bool:
    """Two dollars that are prices, not the ends of a formula."""
    bare = re.sub(r"\\[A-Za-z]+\s*(?:\{[^{}]*\})?", " ", formula)
    return len([word for word in re.findall(r"[^\W\d_]{3,}", bare) if word.lower() not in _MATH_WORDS]) >= 2


_PROSE_WORDS = re.compile(r"\b(?:so|thus|hence|then|therefore|since|because|is|are|we|get|has|have)\b", re.I)
_MATH_WORDS = set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt abs floor ceil max min gcd "
    "lcm pi infinity inf oo and or in union percent degrees mod meters cm km kg dollars units".split()
)


def _bare(text: str) -> str:
    """Without the sentence round it: final stop, emphasis, one pair of dollars."""
    text = re.sub(r"\*\*([^*]{1,200})\*\*(?![\w(])", r"\1", text).strip().strip("*`").strip()
    text = re.sub(r"^(?:thus|so|therefore|hence|answer)[,:]?\s+", "", text, flags=re.I)
    if match := _MATH.fullmatch(text.rstrip(".")):
        return _math_text(match)
    return text.rstrip(".") if not text.endswith("..") else text


__all__ = ["CHOICE", "Extraction", "answer_part", "boxes", "extract"]
