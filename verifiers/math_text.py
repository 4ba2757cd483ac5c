"""Answers that are words: normal form of prose, choices, yes and no, clock times, dates, numbers in words."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from onebase.verifiers.math_tree import Node

_WRAPPERS = re.compile(
    r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|mathrm|mathbf|mathit|mathsf|mbox|hbox|emph|operatorname)\s*\{"
)
_TIME = re.compile(
    r"(?:(\d{1,2}):(\d{2})(?::(\d{2}))?|(\d{1,2})(?=\s*(?:[ap]|noon|midnight)))"
    r"\s*(?:([ap])\.?\s?m\.?|(noon|midnight)|hours|o'clock)?",
    re.I,
)
_MONTHS = "january february march april may june july august september october november december".split()
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
_BASED = re.compile(r"\(?(\d+[A-Fa-f][0-9A-Fa-f]*|[A-Fa-f][0-9A-Fa-f]+)\)?_\s*\(?(1[1-9]|2\d|3[0-6])\)?")
_YES = {"yes": "yes", "true": "yes", "correct": "yes", "no": "no", "false": "no", "incorrect": "no"}
_ALL_REAL = {
    "allrealnumbers", "allreals", "allreal", "anyrealnumber", "everyrealnumber", "therealnumbers", "anyreal",
    "realnumbers", "allrealnumber", "allrealvalues",
}  # fmt: skip
_EMPTY = re.compile(
    r"(?:there(?:is|are|exists?))?no(?:such|real|valid|possible|integer|positive)*"
    r"(?:solutions?|roots?|values?|numbers?|integers?|x|n)(?:exists?)?|emptyset|theemptyset|none(?:exists?)?"
)
_UNDEFINED = {
    "doesnotexist": "undefined",
    "dne": "undefined",
    "undefined": "undefined",
    "diverges": "diverges",
}
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CHOICE = re.compile(r"\s*(?:option|choice|answer)?\s*[(\[]?\s*([A-J])\s*[)\].:]?\s*\.?\s*", re.I)
_LABELLED = re.compile(r"\s*\{?\s*(?:\(([A-J])\)\s*\}?|([A-J])[).:]|([A-J])(?=\s+[A-Z]))\s*(\S[^\n]*)")


_TEXT_GROUP = re.compile(r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|mathrm|mathbf|mbox|hbox|emph)\s*\{([^{}]*)\}")


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
    return re.sub(r"(?<=[^\W\d_])[-_](?=[^\W\d_])", "", re.sub(r"\s+", "", compact))


def spoken(text: str) -> str:
    """A text with its \\text{…} groups opened, to be read as a sentence."""
    return _TEXT_GROUP.sub(r" \1 ", text).strip()


def yes_or_no(text: str) -> str | None:
    """`Yes, because 4 is even`: the word a reply begins with, unless the other one follows."""
    match = re.match(r"\W*(yes|no|true|false)\b(?=\s*[,.;:!]|\s*$)", text, re.I)
    if match is None or re.search(r"\b(?:yes|no|true|false)\b", text[match.end() :], re.I):
        return None
    return _YES[match.group(1).lower()]


def predicate(text: str) -> str | None:
    """`It is a Saturday`: what a short sentence says of its subject; None when it denies or says nothing."""
    match = re.fullmatch(
        r"[^.\n]{0,80}?(?:\b(?:is|are|was|be|called|named)|(?<=[Ii]t)'s)\b:?\s+((?:(?!\bnot\b)[^.\n]){1,60})\.?",
        text,
    )
    return match.group(1) if match else None


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
    if not bare[0].isalpha() or "\\" in unwrap(text):
        return None
    word = normal_text(bare)
    if word in ("noon", "midnight"):
        return Node("clock", (12 if word == "noon" else 0, 0, 0, True))
    if word in _YES:
        return Node("text", (_YES[word],))
    if word in _ALL_REAL:
        return Node("const", ("R",))
    if _EMPTY.fullmatch(word):
        return Node("const", ("empty",))
    if word.removeprefix("on").removesuffix("s") in _DAYS or word.removeprefix("on") in _DAYS:
        return Node("text", (word.removeprefix("on").removesuffix("s"),))
    return Node("text", (_UNDEFINED[word],)) if word in _UNDEFINED else None


def _time(match: re.Match[str]) -> Node | None:
    """clock(hour, minute, second, whether the half of the day is known)."""
    hour, minute, second = int(match[1] or match[4]), int(match[2] or 0), int(match[3] or 0)
    half, word = (match[5] or "").lower(), (match[6] or "").lower()
    if minute > 59 or second > 59 or hour > 24 or (half and not 1 <= hour <= 12) or (word and hour != 12):
        return None
    if half or word:
        hour = hour % 12 + 12 * (half == "p" or word == "noon")
    return Node("clock", (hour % 24, minute, second, bool(half or word or not 1 <= hour <= 12)))


def _date(match: re.Match[str]) -> Node | None:
    groups = match.groupdict()
    if groups.get("number"):
        month = int(groups["number"])
    else:
        name = groups["month"].lower()
        months = [i for i, full in enumerate(_MONTHS, 1) if full.startswith(name)]
        if len(months) != 1:
            return None
        month = months[0]
    if not 1 <= month <= 12 or not 1 <= int(groups["day"]) <= 31:
        return None
    return Node("text", (f"date {groups['year'] or ''}-{month}-{int(groups['day'])}",))


_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
).split()
_CARDINALS = {word: value for value, word in enumerate(_UNITS)}
_CARDINALS |= {"seventeen": 17, "eighteen": 18, "nineteen": 19}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_CARDINALS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12, "hundredth": 100}
_WORD = re.compile(r"[\s-]*([A-Za-z]+)")
_VOCABULARY = {*_CARDINALS, *_SCALES, *_PARTS, *(f"{part}s" for part in _PARTS), "and", "a", "an"}


def number_in_words(text: str) -> str | None:
    """`twenty-five percent` as `25 percent`, `three and a half` as a fraction: the text with its leading
    words that name a number written in digits; None when it does not begin with such or digits follow."""
    bare = unwrap(text).replace("{", " ").replace("}", " ").strip()
    words: list[tuple[str, int]] = []
    position = 0
    while len(words) < 12 and (match := _WORD.match(bare, position)):
        if match.group(1).lower() not in _VOCABULARY:
            break
        position = match.end()
        words.append((match.group(1).lower(), position))
    while words and (value := _words_value([word for word, _ in words])) is None:
        words.pop()
    rest = bare[words[-1][1] :] if words else "1"
    after = re.match(r"[\s-]*(?:and\s+)?([A-Za-z]*)", rest)
    assert after is not None
    if re.search(r"\d|\w+\s+\w+\s+\w+\s+\w", rest) or after.group(1).lower() in _VOCABULARY:
        return None
    assert value is not None
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}{rest}"


def _words_value(words: list[str]) -> Fraction | None:
    """The number that all these words name."""
    part = _PARTS.get(words[-1].removesuffix("s"))
    if part is None:
        value = _cardinal(words)
        return None if value is None else Fraction(value)
    cut = len(words) - 1 - words[::-1].index("and") if "and" in words else -1
    above = words[cut + 1 : -1]
    top = 1 if above in (["a"], ["an"]) else _cardinal(above)
    whole = _cardinal(words[:cut]) if cut >= 0 else 0
    return None if top is None or whole is None else whole + Fraction(top, part)


def _cardinal(words: list[str]) -> int | None:
    total = current = 0
    if not words or words[0] not in _CARDINALS or words[-1] == "and":
        return None
    for before, word in zip(["", *words], words, strict=False):
        if word == "and":
            if before not in _SCALES:
                return None
        elif word in _SCALES:
            current *= _SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
        elif word in _CARDINALS:
            value, room = _CARDINALS[word], current % 100
            if room and not (value < 10 and room >= 20 and room % 10 == 0):
                return None  # "five six" is no number
            current += value
        else:
            return None
    return total + current


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
