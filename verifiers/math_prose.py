"""Reads an answer out of sentences: what "the answer is" announces, what a text ends on, which letter it
settles on.

A value in prose is a formula between dollars, a bold value, or a run of words that are numbers, symbols or
units.  Values that are listed together ("4 or 5", "1, 2 and 3") are one list, so offering several answers
never pays for one; a value that is denied ("not 5", "5 is wrong") or guessed at is none.  All scans are
linear and look at the tail of the text only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from onebase.verifiers.math_budget import spend
from onebase.verifiers.math_lex import FUNCTIONS
from onebase.verifiers.math_parse import readings
from onebase.verifiers.math_policy import LIMITS, Policy
from onebase.verifiers.math_text import choice_letter
from onebase.verifiers.math_units import is_unit

_SENTENCE = 600  # characters of a sentence that are looked at
_SENTENCES = 40


@dataclass(slots=True)
class Extraction:
    """The text of the answer and how it was found; or why there is none."""

    text: str | None
    how: str


class Span(NamedTuple):
    """A value in a sentence: where it stands and what it says."""

    start: int
    end: int
    text: str
    kind: str  # formula, bold or run


_MARK = re.compile(
    r"(?:final\s+answer|answer|result|solution|réponse|respuesta|antwort|答案)s?\s*"
    r"(?:(?:to|of|for)\b[^.\n:=]{0,80}?)?"
    r"(?:\*\*|__|[\"'])?\s*(?::|：|\bis\b|\bare\b|\best\b|\bes\b|\bist\b|是|为|=|\n)\s*(?:\*\*|__)?"
    r"(?:\s*(?:is|:|that|therefore|then|simply|just)\b)*",
    re.I,
)
# A formula holds no second opening (but a row end with its space, \\\\[2pt]), which keeps the search linear.
_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>(?:(?!(?<!\\)\\[\[\]]).)+)\\\]|\\\((?P<c>(?:(?!(?<!\\)\\[()]).)+)\\\)"
    r"|(?<![\\$])\$(?P<d>[^$\n]+?)(?<!\\)\$",
    re.S,
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_STOP = re.compile(r"(?<=\S)[.!?](?=\s|$)|\n|[。！？]")
_ASIDE = re.compile(
    r"(?<=\s)(?:because|since)\b|\s\((?=since|because|as\b|from|i\.e|not\b)|,\s+(?=which|so|since|as\b|it|not\b|because)|,?\s+not\b(?=\s+\S+$)"
)
_SETTLED = re.compile(r".*(?:\b(?:is|are|equals|equal\s+to|becomes|be)|=|:)\s+(?=\S)", re.S)
_LISTED = re.compile(
    r"\s*[,;]?\s*(?:(?:and|or|and/or|&|either|maybe|perhaps|possibly|alternatively|else|also)\s*,?\s*){0,3}",
    re.I,
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|nor|neither|cannot|without|except|unlikely)|n't|\b(?:anything|all)\s+but)\b"
    r"(?:\s+(?!but\b|it\b|is\b|rather\b)[A-Za-z]+){0,3}\s*[*_(]*$",
    re.I,
)
_GUESSED = re.compile(
    r"\b(?:maybe|perhaps|possibly|could(?:\s+also)?\s+be|might(?:\s+also)?\s+be|may\s+be|guess(?:ing)?|either|one\s+of|"
    r"at\s+(?:least|most)|(?:more|less|fewer|greater|larger|smaller)\s+than|between|unless|if|example)\b"
    r"(?:\s+[A-Za-z']+){0,2}[\s:]*[*_(]*$",
    re.I,
)
_REFUSED_AFTER = re.compile(
    r"[*_)]*\s+(?:(?:is|was|would\s+be)\s+(?:not\b|wrong|incorrect|false|too\b)|or\b)|\?",
    re.I,
)
_RANGE = re.compile(r"[\d)%$]\s*(?:to|through|until|up\s+to)\s+[*_(]*$", re.I)
_CODE = re.compile(
    r"[_#@\[\]<>|&\\\"~;]|\w\(|\.\.|"
    r"\b(?:lambda|exec|eval|print|import|return|def|int|float|str|input|open|assert|getattr|sympy)\b"
)
_FOREIGN = re.compile(r"[\u0370-\u1cff\u2c00-\u2dff\u3040-\ud7ff]+")
_GREEK = re.compile(r"[\u0370-\u03ff]")
_WORDISH = re.compile(r"(?:[^\s{}]|\{(?:[^{}]|\{[^{}]*\})*\})+|[{}]")
_LATEX_WORDS = re.compile(r"\\[A-Za-z]+")
_LETTER_RUN = re.compile(r"[^\W\d_]{2,}")
_PROSE_WORDS = re.compile(r"\b(?:so|thus|hence|then|therefore|since|because|is|are|we|get|has|have)\b", re.I)
_MATH_WORDS = {
    *FUNCTIONS, "pi", "infinity", "inf", "oo", "percent", "pct", "degrees", "degree", "mod", "dollars",
    "cents", "am", "pm", "units", "million", "billion", "thousand", "trillion", "mathrm", "text",
}  # fmt: skip
_SHORT_WORDS = set("am an as at be by do go he if it me my no of on to up us".split())
_CONNECTORS = {"and", "or", "in", "union", "u"}


def announced(text: str, prose: bool = False) -> Extraction | None:
    """What "the answer is" announces: the last such mark counts.  None when no value follows it."""
    marks = list(_MARK.finditer(text))
    for mark in reversed(marks[-8:]):
        rest = text[mark.end() :].lstrip()
        if rest:
            found = _announced(rest, prose)
            if found is not None:
                return found
    return None


def _announced(rest: str, prose: bool) -> Extraction | None:
    lead = re.match(r"[*_\s]*", rest)
    assert lead is not None
    rest = rest[lead.end() :]
    if math := _MATH.match(rest):
        # A price or a formula; what is listed with it belongs to it.
        listed = _listing(_spans(rest[: math.end() + _SENTENCE]), rest, forward=True)
        if listed:
            return Extraction(listed, "after the answer mark")
    if prose and math:
        return Extraction(bare(math.group()), "after the answer mark")
    if prose:
        return Extraction(bare(rest.split("\n")[0]), "after the answer mark")
    whole = rest[: stop.start()] if (stop := _STOP.search(rest)) else rest
    whole = whole[:_SENTENCE].strip(" *`_")
    sentence = _ASIDE.split(whole)[0].strip(' *`_"')
    sentence = sentence[:-1].strip(' "') if sentence.endswith("}") and "{" not in sentence else sentence
    sentence = re.sub(r"^(?:is|:|equal to|equals|approximately|about)\s+", "", sentence, flags=re.I)
    if choice_letter(sentence) or is_short(sentence):
        return Extraction(bare(sentence), "after the answer mark")
    spans = _spans(whole)
    if not spans:
        return None
    settled = _SETTLED.match(whole)
    if settled and (later := [span for span in spans if span.start >= settled.end()]):
        spans = later
    elif re.search(r"[,;]|\b(?:but|un\w+|if|cannot)\b", whole[: spans[0].start]):
        return Extraction(None, "no value right after the answer mark")
    if reason := _doubtful(whole, spans[0], spans[0]):
        return Extraction(None, reason)
    return Extraction(_listing(spans, whole, forward=True), "the value after the answer mark")


def closing(text: str, policy: Policy) -> Extraction:
    """The formula, bold value or number that the text ends on, whichever comes last."""
    bold = _last_bold(text)
    for start, sentence in reversed(_sentences(text)):
        spans = [span for span in _spans(sentence) if policy.last_number or span.kind != "run"]
        if bold is not None and start + len(sentence) <= bold.end and not spans:
            break
        if not spans:
            continue
        if bold is not None and bold.end <= start and spans[-1].kind == "run":
            return Extraction(bold.text, "the closing bold value")
        first = _first_of_list(spans, sentence)
        if reason := _doubtful(sentence, spans[first], spans[-1]):
            return Extraction(None, reason)
        found = _listing(spans[first:], sentence, forward=True)
        how = {"run": "the last number (fallback)", "bold": "the closing bold span"}
        return Extraction(found, how.get(spans[-1].kind, "the closing formula"))
    return Extraction(bold.text, "the closing bold value") if bold else Extraction(None, "no answer found")


def _sentences(text: str) -> list[tuple[int, str]]:
    """The last sentences and where each begins.  Formulas that span lines stay in one piece."""
    cuts, inside = [0], [match.span() for match in _MATH.finditer(text)]
    at = 0
    for stop in _STOP.finditer(text):
        while at < len(inside) and inside[at][1] <= stop.start():
            at += 1
        if at == len(inside) or not inside[at][0] < stop.start() < inside[at][1]:
            cuts.append(stop.end())
    cuts = cuts[-_SENTENCES:] + [len(text)]
    pairs = zip(cuts[:-1], cuts[1:], strict=True)
    return [(low, text[low:high].rstrip(" \n.!。！")) for low, high in pairs if text[low:high].strip()]


def _last_bold(text: str) -> Span | None:
    """The last bold span that is nothing but a value (and no number of a list: **2.**)."""
    for match in reversed(list(_BOLD.finditer(text))[-20:]):
        inner = match.group(1).strip().strip("_:")
        if re.fullmatch(r"\d{1,2}[.)]", inner) or not re.search(r"[\d\\$]", inner):
            continue
        spans = _spans(inner.rstrip("."))
        if len(spans) == 1 and len(inner) - (spans[0].end - spans[0].start) <= 3:
            return Span(match.start(), match.end(), spans[0].text, "bold")
    return None


def _doubtful(sentence: str, first: Span, last: Span) -> str | None:
    """Why the value from `first` to `last` is not what the sentence says, or None."""
    before, after = sentence[max(0, first.start - 60) : first.start], sentence[last.end : last.end + 40]
    if _RANGE.search(before):
        return "a range, not a value"
    if _DENIED.search(before) or _REFUSED_AFTER.match(after):
        return "the value is denied"
    return "the value is only guessed at" if _GUESSED.search(before) else None


def _first_of_list(spans: list[Span], sentence: str) -> int:
    """Index of the first span of the list that the last one belongs to."""
    first = len(spans) - 1
    while first and _LISTED.fullmatch(sentence[spans[first - 1].end : spans[first].start]):
        first -= 1
    return first


def _listing(spans: list[Span], sentence: str, forward: bool) -> str:
    """The first span and all that are listed with it."""
    if not spans:
        return ""
    texts, end = [spans[0].text], spans[0].end
    for span in spans[1:]:
        between = sentence[end : span.start]
        if not between.strip(" *_") or not _LISTED.fullmatch(between):
            break
        texts.append(span.text)
        end = span.end
    return texts[0] if len(texts) == 1 else " , ".join(texts)


def _spans(sentence: str) -> list[Span]:
    """The values of a sentence from left to right."""
    sentence = sentence[-_SENTENCE:] if len(sentence) > 2 * _SENTENCE else sentence
    found, covered = [], []
    for match in _MATH.finditer(sentence):
        inner = next(group for group in match.groups() if group is not None).strip()
        if not _is_prose_formula(inner):
            found.append(Span(match.start(), match.end(), inner, "formula"))
            covered.append(match.span())
    masked = _masked(sentence, covered)
    for match in _BOLD.finditer(masked):
        inner = match.group(1).replace("\x00", " ").strip()
        if (re.search(r"\d", inner) or "$" in inner) and is_short(inner):
            found.append(Span(match.start(), match.end(), bare(inner), "bold"))
            covered.append(match.span())
    found.extend(_runs(_masked(sentence, covered)))
    return sorted(found)


def _masked(text: str, covered: list[tuple[int, int]]) -> str:
    """The text with the covered stretches and foreign letters blanked: a mark that is no word stands
    there."""
    for low, high in covered:
        text = text[:low] + "\x00" * (high - low) + text[high:]
    return _FOREIGN.sub(lambda m: m.group() if _GREEK.match(m.group()) else "\x00" * len(m.group()), text)


def _runs(text: str) -> list[Span]:
    """Runs of words that are numbers, symbols or units, cut where the brackets balance at a comma."""
    found: list[Span] = []
    current: list[tuple[int, int, str]] = []
    opened = 0
    for match in _WORDISH.finditer(text.replace("\x00", " ")):
        word = match.group()
        core = word.strip("\"'`*_!?").rstrip(".:" if not word.endswith("..") else ":")
        core = "*" if word == "*" and current else core
        if _is_mathy(core, bool(current)):
            current.append((match.start() + word.index(core) if core else match.start(), match.end(), core))
            opened += sum(core.count(mark) for mark in "([") - sum(core.count(mark) for mark in ")]")
            if word[-1] in ",;" and opened <= 0:
                _flush(current, found)
        else:
            _flush(current, found)
        opened = opened if current else 0
    _flush(current, found)
    return found


def _flush(current: list[tuple[int, int, str]], found: list[Span]) -> None:
    """Ends a run: loose letters, connectors and operators at its ends go; the rest must be readable."""
    while current and (
        re.fullmatch(r"[A-Za-z]|[-=+:*/|&,;]+", current[0][2]) or current[0][2].lower() in _CONNECTORS
    ):
        if current[0][2] in "+-" and len(current) > 1 and current[1][2][:1].isdigit():
            break
        del current[0]
    while current and (
        re.fullmatch(r"[-=+:*/|&,;(]+", current[-1][2]) or current[-1][2].lower() in _CONNECTORS
    ):
        del current[-1]
    for skip in range(min(len(current), 5)):
        words = current[skip:]
        if skip > 1 and all(re.fullmatch(r"[\d.,]+", part) for _, _, part in current[:skip]):
            break  # numbers in a row: none of them is meant
        text = " ".join(part for _, _, part in words).strip(",;")
        text = text.rstrip(")") if text.count(")") > text.count("(") + text.count("[") else text
        text = text.lstrip("(") if text.count("(") > text.count(")") + text.count("]") else text
        if not re.search(r"\d|\\|[^\x00-\x7f]|[\w)]\s*[-+*/^=<>]\s*[\w(]", text):
            break
        if len(text) > LIMITS.run_chars:
            continue
        spend(len(text))  # whether or not this reading is cached
        if readings(text)[0].op != "text":
            start, end = words[0][0], words[-1][0] + len(words[-1][2].rstrip(",;"))
            found.append(Span(start, end, text, "run"))
            break
    current.clear()


def _is_mathy(word: str, inside: bool) -> bool:
    """Whether a word between spaces belongs to a formula: a number, a symbol, an operator, a unit after
    one."""
    if not word:
        return False
    if inside and (word.lower().strip(",;") in _CONNECTORS or is_unit(word.strip(",;"), False)):
        return True
    plain = _LATEX_WORDS.sub(" ", word)
    letters = _LETTER_RUN.findall(plain)
    if any(run.lower() not in _MATH_WORDS and not is_unit(run, True) for run in letters):
        return (
            len(plain) <= 12 and all(len(run) == 2 for run in letters) and bool(re.search(r"[\d+=^/]", plain))
        )
    if letters and plain.strip(",;") == letters[0]:  # a bare word: only beside a number
        return inside
    return (
        bool(re.search(r"[A-Za-z0-9\\+\-*/^=<>|%$€£¥()\[\]{}\u0370-\u03ff√∞≤≥±]", plain + word[:1]))
        and word != "a"
    )


def bare(text: str) -> str:
    """Without the sentence round it: final stop, emphasis, one pair of dollars."""
    text = re.sub(r"\*\*([^*]{1,200})\*\*(?![\w(])", r"\1", text).strip().strip("*`").strip()
    text = re.sub(r"^(?:thus|so|therefore|hence|answer)[,:]?\s+", "", text, flags=re.I)
    if match := _MATH.fullmatch(text.rstrip(".")):
        return next(group for group in match.groups() if group is not None).strip()
    return text.rstrip(".") if not text.endswith("..") else text


def last_formula(text: str) -> str | None:
    """What stands in the last dollars, words or not."""
    maths = list(_MATH.finditer(text))
    return bare(maths[-1].group()) if maths else None


def is_short(text: str) -> bool:
    """Whether a whole text may be the answer: one line, and no run of three words of prose."""
    if len(text) > 400 or "\n" in text.strip() or _PROSE_WORDS.search(text):
        return False
    plain = re.sub(r"\\[A-Za-z]+\s*(?:\{[A-Za-z ]*\})?", " ", text)
    words = [word for word in _LETTER_RUN.findall(plain) if not _is_math_word(word)]
    words = [word for word in words if len(word) > 2 or word.lower() in _SHORT_WORDS]
    return len(words) <= 2 and not re.search(r"[\u3040-\u9fff\u0600-\u06ff\u0900-\u097f]", plain)


def is_sentence(text: str) -> bool:
    """Whether a text is words of a language round a value, and nothing that only code or a formula has."""
    plain = _LATEX_WORDS.sub(" ", _MATH.sub(" ", text))
    if _CODE.search(plain):
        return False
    return any(not _is_math_word(word) for word in _LETTER_RUN.findall(plain))


def _is_math_word(word: str) -> bool:
    return word.lower() in _MATH_WORDS or word.lower() in _CONNECTORS or is_unit(word, False)


def _is_prose_formula(formula: str) -> bool:
    """Two dollars that are prices, not the ends of a formula."""
    if re.search(r"(?<=\s)[-+*/=]\s*$", formula):
        return True
    plain = re.sub(r"\\[A-Za-z]+\s*(?:\{[^{}]*\})?", " ", formula)
    return len([word for word in re.findall(r"[^\W\d_]{3,}", plain) if not _is_math_word(word)]) >= 2


_CHOSEN = (
    re.compile(
        r"(?:answer|choice|option|réponse|答案)\b[^.\n]{0,30}?\b(?:is|:|est|be)?\s*"
        r"(?:for sure\s+|definitely\s+)?"
        r"\(?\**\(?([A-J])\)?\**\)?(?![A-Za-z'])",
        re.I,
    ),
    re.compile(
        r"(?:think|therefore|thus|so|hence|choose|pick|select|it is)\b[^.\n]{0,30}?\b(?:it'?s|is)?\s*"
        r"\(?\**\(?([A-J])\)?\**\)?(?![A-Za-z'])",
        re.I,
    ),
)
_LEADING = re.compile(r"\(?\**([A-J])\**\)?(?=[\s.,:;)。、不]|$)")
_LAST = re.compile(r"(?<![A-Za-z])\(?\**([A-J])\**\)?\.?\s*$")
_RIVAL = re.compile(
    r"\**\)?\s*(?:,|/|&|\bor\b|\band\b|\bund\b)\s*(?:(?:maybe|option|choice)\s+)?\(?\**([A-J])\b(?!')", re.I
)
_BEFORE_RIVAL = re.compile(r"\b([A-J])\**\)?\s*(?:,|/|&|\bor\b|\band\b)\s*\(?\**$")


def chosen_letter(text: str) -> Extraction | None:
    """The option a text settles on, where the gold is one; a None text when it settles on none."""
    for pattern in (*_CHOSEN, _LEADING, _LAST):
        if pattern is _LEADING:
            found = [match] if (match := pattern.match(text)) else []
        else:
            found = [match for match in pattern.finditer(text[-2000:]) if match.group(1).isupper()]
        for match in reversed(found):
            source = match.string
            before, after = source[max(0, match.start(1) - 40) : match.start(1)], source[match.end(1) :]
            rival = _RIVAL.match(after) or _BEFORE_RIVAL.search(before)
            if rival and rival.group(1) != match.group(1) and rival.group(1).isupper():
                return Extraction(None, "several letters offered")
            if _DENIED.search(before.replace("(", "")) or _REFUSED_AFTER.match(after):
                return Extraction(None, "the letter is denied")
            return Extraction(match.group(1), "the letter chosen in the text")
    return None
