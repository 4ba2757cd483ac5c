"""Answers that are words: normal form of prose, choices, yes and no, clock times and dates."""

from __future__ import annotations

import re
import unicodedata

from onebase.verifiers.math_tree import Node, num

_WRAPPERS = re.compile(
    r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|mathrm|mathbf|mathit|mathsf|mbox|hbox|emph|operatorname)\s*\{"
)
_TIME = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?|(\d{1,2})\s*([ap])\.?\s?m\.?", re.I
)
_MONTHS = ("january february march april may june july august september october november december").split()
_MONTH = r"(?P<month>[A-Za-z]{3,9})\.?"
_DATES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        _MONTH + r"\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?(?:\s*,?\s+(?P<year>\d{4}))?",
        r"(?:the\s+)?(?P<day>\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?"
        + _MONTH
        + r"(?:\s*,?\s+(?P<year>\d{4}))?",
        r"(?P<year>\d{4})-(?P<number>\d{1,2})-(?P<day>\d{1,2})",
    )
)
_BASED = re.compile(r"(\d+[A-Fa-f][0-9A-Fa-f]*|[A-F][0-9A-F]+)_\s*(1[1-9]|2\d|3[0-6])")
_YES = {"yes": "yes", "true": "yes", "correct": "yes", "no": "no", "false": "no", "incorrect": "no"}
_ALL_REAL = {"allrealnumbers", "allreals", "allreal", "anyrealnumber", "everyrealnumber", "therealnumbers"}
_EMPTY = {"nosolution", "nosolutions", "norealsolution", "norealsolutions", "emptyset", "theemptyset"}
_UNDEFINED = {"doesnotexist": "dne", "dne": "dne", "undefined": "undefined", "diverges": "diverges"}
CHOICE = re.compile(r"\s*(?:option|choice|answer)?\s*[(\[]?\s*([A-J])\s*[)\].:]?\s*\.?\s*", re.I)
_LABELLED = re.compile(r"\s*\{?\s*(?:\(([A-J])\)\s*\}?|([A-J])[).:]|([A-J])(?=\s+[A-Z]))\s*(\S[^\n]*)")


def unwrap(text: str) -> str:
    """`\\text{(C)}` and its like without the wrapper (all of them when nested), dollars and spacing gone."""
    for _ in range(4):
        bare = _WRAPPERS.sub("{", text)
        if bare == text:
            break
        text = bare
    return text.replace("$", "").replace("\\,", " ").replace("\\ ", " ").replace("\\!", "")


def normal_text(text: str) -> str:
    """Words in lower case (single letters keep theirs) without punctuation and article.  A hyphen goes only
    from between letters, and a point only where no digit follows: elsewhere they are part of a number."""
    bare = unicodedata.normalize("NFKC", unwrap(text)).strip()
    compact = re.sub(r"[\s{};:!?\"'`]+|[.,](?!\d)|\*(?!\*)", " ", bare).strip()
    if len(compact) == 1:
        return compact
    compact = re.sub(r"^(?:the|a|an) (?=\w)", "", compact.lower())
    return re.sub(r"\s+|(?<=[^\W\d_])[-_](?=[^\W\d_])", "", compact)


def special_text(text: str) -> Node | None:
    """A clock time, a date, yes or no, or a phrase for a known set; else None."""
    bare = unwrap(text).replace("{", "").replace("}", "").replace("\\", "").strip().rstrip(".")
    if not bare or len(bare) > 60:
        return None
    if bare[0].isdigit() and (match := _TIME.fullmatch(bare)):
        return _time(match)
    for pattern in _DATES:
        if match := pattern.fullmatch(bare):
            return _date(match)
    if based := _BASED.fullmatch(bare):
        return Node("based", (based[1].upper(), int(based[2])))
    if not bare[0].isalpha():
        return None
    word = normal_text(bare)
    if word in _YES:
        return Node("text", (_YES[word],))
    if word in _ALL_REAL:
        return Node("const", ("R",))
    if word in _EMPTY:
        return Node("const", ("empty",))
    return Node("text", (_UNDEFINED[word],)) if word in _UNDEFINED else None


def _time(match: re.Match[str]) -> Node | None:
    hour, minute = int(match[1] or match[5]), int(match[2] or 0)
    second, half = int(match[3] or 0), (match[4] or match[6] or "").lower()
    if minute > 59 or second > 59 or hour > 24 or (half and not 1 <= hour <= 12):
        return None
    parts = (num(hour), num(minute), *((num(second),) if match[3] else ()))
    if not half:
        return Node(
            "ratio", parts
        )  # 7:32 may be a ratio too; compared as a time when both sides look like one
    return Node("text", (f"time {hour % 12 + 12 * (half == 'p')}:{minute:02}:{second:02}",))


def _date(match: re.Match[str]) -> Node | None:
    groups = match.groupdict()
    if groups.get("number"):
        month = int(groups["number"])
    else:
        name = groups["month"].lower()
        months = [
            i for i, full in enumerate(_MONTHS, 1) if full.startswith(name[:3]) and full.startswith(name)
        ]
        if len(months) != 1:
            return None
        month = months[0]
    if not 1 <= month <= 12 or not 1 <= int(groups["day"]) <= 31:
        return None
    return Node("text", (f"date {groups['year'] or ''}-{month}-{int(groups['day'])}",))


def choice_letter(text: str) -> str | None:
    """The letter, when the text is a multiple-choice letter and nothing else: `B`, `(B)`, `\\text{(B)}`,
    `B.`"""
    if len(text) > 60:
        return None
    match = CHOICE.fullmatch(unwrap(text).replace("{", " ").replace("}", " "))
    if match is None:
        return None
    letter = match.group(1)
    return letter.upper() if letter.isupper() or len(match.group().strip()) > 1 else None


def labelled_choice(text: str) -> tuple[str, str] | None:
    """`(D) Alina` or `C Cecile` as letter and content."""
    match = _LABELLED.match(unwrap(text))
    if match is None or len(text) > 300:
        return None
    letter = match[1] or match[2] or match[3]
    return letter, match[4].strip()
