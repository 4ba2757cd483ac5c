"""The single checks of the `instruction` verifier: each is a function of the answer's text and of the
arguments that the row gives it, and says whether it holds and what was found.

What is counted follows IFEval (arXiv 2311.07911) and its published code where that can be trusted with a
reward.  Deviations: invisible characters are removed first, so that they neither split nor hide words;
placeholders, highlights, titles and bullet points must hold something, and a rule of dashes is no bullet; a
keyword is a literal, not a regular expression; JSON is an object or a list with no key twice; of the options
of `one_of` exactly one must occur; `repeat` wants something after the repetition; commas of all scripts are
commas; sentences are split here and not by a trained model, and end at blank lines, too; capital words are
words with their inner hyphens, apostrophes and dots.  All scans are linear in the text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from onebase.verifiers import language as language_verifier


class Found(NamedTuple):
    holds: bool
    how: str


class BadCheck(ValueError):
    """The row's check cannot be carried out: unknown name, wrong or missing argument."""


RELATIONS = ("at least", "at most", "exactly", "around", "less than", "more than")
_MARKS = "".join(chr(c) for c in range(0x300, 0x1000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
_WORD = re.compile(rf"[\w{_MARKS}]+")
_COMPOUND = re.compile(r"[^\W_]+(?:[-'’.&][^\W_]+)*")
_BULLET = re.compile(r"^[^\S\n]*(?:\*(?!\*)|-(?!-))[^\S\n]*\S", re.M)
_HIGHLIGHT = re.compile(r"\*\*(?!\s)[^*\n]+(?<!\s)\*\*|\*(?!\s)[^*\n]+(?<!\s)\*")
_COMMAS = re.compile("[,\uff0c\u3001\u060c\u055d\ufe50\uff64]")
_LIST_MARK = re.compile(r"^[^\S\n]*(?:\d{1,3}[.)]|[-*•])[^\S\n]+", re.M)
# The look-behind lets a match begin at the first dot of a run only: linear on a megabyte of dots.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$)|(?<![。！？।؟])[。！？।؟]++[”’」』)]*+"
)
_TITLES = frozenset(
    "mr mrs ms dr prof st vs e.g i.e fig figs eq approx dept gen gov hon lt col sgt capt rev mt cf vol pp al "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
"""Abbreviations that no sentence ends with; behind those below one ends if a capital follows."""
_ABBREVIATIONS = frozenset("jr sr etc inc ltd co corp a.m p.m u.s u.k ph.d ave blvd rd est ed".split())


def clean(text: str) -> str:
    """Composed characters, no invisible ones, plain line ends."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")


def _counted(n: int, relation: str, wanted: int, what: str, within: float = 0.1) -> Found:
    relation = relation.replace("_", " ").strip().lower()
    if relation not in RELATIONS:
        raise BadCheck(f"relation {relation!r}; allowed: {', '.join(RELATIONS)}")
    if wanted < 0:
        raise BadCheck(f"n must be at least 0: {wanted}")
    holds = {
        "at least": n >= wanted,
        "at most": n <= wanted,
        "exactly": n == wanted,
        "around": abs(n - wanted) <= within * wanted,
        "less than": n < wanted,
        "more than": n > wanted,
    }[relation]
    return Found(holds, f"{n} {what}, {relation} {wanted} wanted")


# -- counts


def words(text: str, *, relation: str, n: int, within: float = 0.1) -> Found:
    return _counted(len(_WORD.findall(text)), relation, n, "words", within)


def characters(text: str, *, relation: str, n: int, within: float = 0.1) -> Found:
    return _counted(len(text.strip()), relation, n, "characters", within)


def lines(text: str, *, relation: str, n: int, within: float = 0.1) -> Found:
    filled = sum(bool(line.strip()) for line in text.split("\n"))
    return _counted(filled, relation, n, "lines", within)


def sentences(text: str, *, relation: str, n: int, within: float = 0.1) -> Found:
    return _counted(len(split_sentences(text)), relation, n, "sentences", within)


def split_sentences(text: str) -> list[str]:
    """Sentences end at . ! ? and their like, not behind an abbreviation or an initial, and at blank lines."""
    out: list[str] = []
    for block in re.split(r"\n[^\S\n]*\n", _LIST_MARK.sub("", text)):
        start = 0
        for end in _SENTENCE_END.finditer(block):
            following = block[end.end() : end.end() + 4].lstrip()[:1]
            before = block[max(0, end.start() - 24) : end.start()].split()
            last = before[-1].lstrip("(\"'“‘*") if before else ""
            if end.group().rstrip("\"'”’)]*_") == "." and _goes_on(last, following):
                continue
            if end.group().startswith(("..", "…")) and following.islower():
                continue
            out.append(block[start : end.end()])
            start = end.end()
        out.append(block[start:])
    return [s.strip() for s in out if _WORD.search(s)]


def _goes_on(last: str, following: str) -> bool:
    """Whether a dot behind the word `last` ends no sentence, given the character that follows."""
    if len(last) == 1 and last.isupper() and last != "I":
        return True  # an initial
    if last.lower() == "no":
        return following.isdigit()
    return last.lower() in _TITLES or (last.lower() in _ABBREVIATIONS and not following.isupper())


def paragraphs(text: str, *, relation: str, n: int, separator: str = "blank", within: float = 0.1) -> Found:
    """Blocks between blank lines, or between occurrences of another separator (none of them empty)."""
    if separator == "blank":
        pieces = [p for p in text.split("\n\n") if p.strip()]
    else:
        if not separator.strip():
            raise BadCheck("separator is empty; give a text such as ***, or blank")
        pieces = [p.strip() for p in text.split(separator)]
        pieces = pieces[0 if pieces[0] else 1 :]
        pieces = pieces[: len(pieces) if pieces and pieces[-1] else -1]
        if not all(pieces):
            return Found(False, f"an empty paragraph between two {separator}")
    return _counted(len(pieces), relation, n, "paragraphs", within)


def bullets(text: str, *, relation: str, n: int) -> Found:
    return _counted(len(_BULLET.findall(text)), relation, n, "bullet points")


def sections(text: str, *, relation: str, n: int, mark: str = "Section") -> Found:
    """A section begins with the mark and a number: Section 1."""
    found = re.findall(re.escape(mark.strip()) + r"\s?\d+", text)
    return _counted(len(found), relation, n, f"sections marked {mark.strip()!r}")


def placeholders(text: str, *, relation: str, n: int) -> Found:
    found = [p for p in re.findall(r"\[([^\[\]\n]*)\]", text) if p.strip()]
    return _counted(len(found), relation, n, "placeholders")


def highlights(text: str, *, relation: str, n: int) -> Found:
    """Spans between single or double asterisks, as markdown has them: no blank inside the asterisks."""
    return _counted(len(_HIGHLIGHT.findall(text)), relation, n, "highlighted spans")


def letters(text: str, *, relation: str, n: int, letter: str = "") -> Found:
    """Occurrences of one letter or sign in any case; of all letters where none is given."""
    if not letter:
        return _counted(sum(c.isalpha() for c in text), relation, n, "letters")
    if len(letter.strip()) != 1:
        raise BadCheck(f"letter {letter!r}; one character is wanted")
    return _counted(text.lower().count(letter.strip().lower()), relation, n, f"times {letter.strip()!r}")


def capital_words(text: str, *, relation: str, n: int) -> Found:
    found = sum(word.isupper() for word in _COMPOUND.findall(text))
    return _counted(found, relation, n, "words in capitals")


def keyword(text: str, *, word: str, relation: str, n: int, whole: bool = True) -> Found:
    return _counted(len(_occurrences(text, word, whole)), relation, n, f"times {word.strip()!r}")


# -- words and phrases


def keywords(text: str, *, words: list[str], whole: bool = True) -> Found:
    missing = [word for word in words if not _occurrences(text, word, whole)]
    return Found(not missing, f"missing: {', '.join(missing)}" if missing else "all keywords are there")


def forbidden(text: str, *, words: list[str], whole: bool = True) -> Found:
    there = [word for word in words if _occurrences(text, word, whole)]
    return Found(not there, f"forbidden and there: {', '.join(there)}" if there else "no forbidden word")


def _occurrences(text: str, word: str, whole: bool) -> list[str]:
    word = _folded(word).strip()
    if not word:
        raise BadCheck("a keyword is empty")
    pattern = re.escape(word)
    if whole:
        pattern = (r"(?<!\w)" if re.match(r"\w", word) else "") + pattern
        pattern += r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return re.findall(pattern, _folded(text))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def first_word(text: str, *, word: str) -> Found:
    return _same_word(_first(text), word, "first")


def last_word(text: str, *, word: str) -> Found:
    found = _COMPOUND.findall(text[-1000:])
    return _same_word(found[-1] if found else "", word, "last")


def _first(text: str) -> str:
    found = _COMPOUND.search(text)
    return found.group() if found else ""


def _same_word(found: str, wanted: str, place: str) -> Found:
    return Found(_folded(found) == _folded(wanted.strip()), f"the {place} word is {found[:40]!r}")


def paragraph_first_word(text: str, *, paragraph: int, word: str, n: int) -> Found:
    """Paragraph number `paragraph` (from 1) of exactly `n` between blank lines begins with the word."""
    if not 1 <= paragraph <= n:
        raise BadCheck(f"paragraph {paragraph} of {n}")
    pieces = [p for p in text.split("\n\n") if p.strip()]
    if len(pieces) != n:
        return Found(False, f"{len(pieces)} paragraphs, exactly {n} wanted")
    found = re.match(r"[^\s.,?!'\"]*", pieces[paragraph - 1].lstrip().lstrip("'\""))
    return _same_word(found.group() if found else "", word, f"paragraph's ({paragraph}) first")


def starts_with(text: str, *, phrase: str) -> Found:
    holds = _folded(text).lstrip(" \n\t\"'*").startswith(_phrase(phrase))
    return Found(holds, f"{'begins' if holds else 'does not begin'} with {phrase.strip()[:60]!r}")


def ends_with(text: str, *, phrase: str) -> Found:
    holds = _folded(text).strip().strip('"').endswith(_phrase(phrase))
    return Found(holds, f"{'ends' if holds else 'does not end'} with {phrase.strip()[:60]!r}")


def _phrase(phrase: str) -> str:
    if not phrase.strip():
        raise BadCheck("the phrase is empty")
    return _folded(phrase).strip()


def repeat(text: str, *, prompt: str) -> Found:
    """The answer begins with the prompt, word for word in any case, and goes on."""
    wanted = _phrase(clean(prompt))
    given = _folded(text).strip()
    if not given.startswith(wanted):
        return Found(False, "does not begin with the prompt")
    return Found(bool(_WORD.search(given[len(wanted) :])), "the prompt, then the answer")


def one_of(text: str, *, options: list[str]) -> Found:
    there = [option for option in options if option.strip() and option.strip() in text]
    # An option inside another that is there as well (yes, yes indeed) is not a second choice.
    there = [a for a in there if not any(a != b and a in b for b in there)]
    return Found(len(there) == 1, f"{len(there)} of the options occur, exactly one wanted")


def postscript(text: str, *, marker: str = "P.S.") -> Found:
    marker = marker.strip()
    signs = [c for c in marker.lower() if c.isalnum()]
    if not signs:
        raise BadCheck(f"marker {marker!r}; e.g. P.S.")
    pattern = re.escape(marker.lower())
    if re.fullmatch(r"(?:[a-z]\.\s?)*[a-z]\.?", marker.lower()):  # P. S. and P.P.S are as good
        pattern = r"\.\s?".join(signs) + (r"\." if marker.endswith(".") else r"\.?")
    found = re.search(rf"(?:^|(?<=[\s*_(\"])){pattern}[^\w\n]*\w", text.lower())
    return Found(found is not None, f"{'a' if found else 'no'} postscript with {marker!r}")


# -- form


def title(text: str) -> Found:
    """A title in double angular brackets."""
    found = any(t.strip("<> \t") for t in re.findall(r"<<([^\n<>]+)>>", text))
    return Found(found, "a title" if found else "no <<title>>")


def case(text: str, *, form: str) -> Found:
    if form not in ("upper", "lower"):
        raise BadCheck(f"form {form!r}; allowed: upper, lower")
    wrong = next((c for c in text if (c.islower() if form == "upper" else c.isupper() or c.istitle())), None)
    if wrong is not None:
        return Found(False, f"{wrong!r} is not {form} case")
    return Found(any(c.isalpha() for c in text), f"all in {form} case")


def json_only(text: str) -> Found:
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and len(body) > 6:
        body = body[3:-3].strip()
        body = body[4:] if body[:4].lower() == "json" else body
    try:
        value = json.loads(body, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        return Found(False, f"not JSON: {str(error)[:80]}")
    kind = type(value).__name__
    return Found(isinstance(value, dict | list), f"JSON of type {kind}, an object or a list wanted")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def quoted(text: str) -> Found:
    body = text.strip()
    holds = len(body) > 2 and body[0] == body[-1] == '"' and bool(body[1:-1].strip())
    return Found(holds, "in double quotation marks" if holds else "not in double quotation marks")


def no_commas(text: str) -> Found:
    n = len(_COMMAS.findall(text))
    return Found(n == 0, f"{n} commas")


def two_answers(text: str, *, separator: str = "******") -> Found:
    """Two different answers with the separator between them and nowhere else but at the ends."""
    pieces = [p.strip() for p in text.split(separator)]
    if any(not p for p in pieces[1:-1]):
        return Found(False, "an empty answer between two separators")
    pieces = [p for p in pieces if p]
    holds = len(pieces) == 2 and pieces[0] != pieces[1]
    return Found(holds, f"{len(set(pieces))} different answers of {len(pieces)}")


def language(text: str, *, language: str, share: float = 0.75) -> Found:
    """At least this share of the words is in the language (see the `language` verifier for how it tells)."""
    if language not in language_verifier.LANGUAGES:
        raise BadCheck(f"language {language!r}; known: {' '.join(sorted(language_verifier.LANGUAGES))}")
    found = language_verifier.count(text, language)
    if not found.words:  # all of it stands in a code block, as an answer in JSON may
        found = language_verifier.count(text.replace("```", "\n"), language)
    holds = found.words > 0 and found.good >= share * found.words and found.ours >= found.best
    return Found(holds, f"{found.good} of {found.words} words are {language!r}")


CHECKS: dict[str, Callable[..., Found]] = {
    f.__name__: f
    for f in (
        words, characters, lines, sentences, paragraphs, bullets, sections, placeholders, highlights,
        letters, capital_words, keyword, keywords, forbidden, first_word, last_word, paragraph_first_word,
        starts_with, ends_with, repeat, one_of, postscript, title, case, json_only, quoted, no_commas,
        two_answers, language,
    )
}  # fmt: skip
