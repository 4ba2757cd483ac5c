"""Share of the words that are in the target language: R1's language consistency reward (arXiv 2501.12948,
section 2.3.2), which counts target-language words in the thought.

A script decides first, word by word.  Languages of one script are told apart sentence by sentence, by
function words and letters of their own (`language_words.py`): where another language has more of them in a
sentence than the target, all words of the sentence count as foreign; a sentence that shows nothing goes with
the whole text.  Chinese and Japanese differ by kana.

Formulas, code, numbers and tags do not count, except that words of another script than Latin do even there,
so that text cannot hide in a code block.

Limits: words of a language of the same script inside a sentence of the target count as the target's;
Danish and Norwegian are not told apart; languages that are not listed are told by script alone.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any, NamedTuple

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.language_words import ALIKE, FUNCTION_WORDS, LETTERS, SHARED_LETTERS
from onebase.verifiers.math_extract import answer_part

INLINE = True
_SCRIPTS = {
    "LATIN": "en fr de es it pt nl pl sv da fi nb cs ro hu tr vi id sw",
    "CJK": "zh",
    "HIRAGANA KATAKANA CJK": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru uk bg sr",
    "ARABIC": "ar fa ur",
    "DEVANAGARI": "hi mr ne",
    "HEBREW": "he",
    "GREEK": "el",
    "THAI": "th",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "MALAYALAM": "ml",
}
LANGUAGES = {code: set(scripts.split()) for scripts, codes in _SCRIPTS.items() for code in codes.split()}
PARTS = ("all", "thought", "answer")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI")
# Not words: code, formulas, commands, tags.  Atomic groups stop at the next opening: linear on hostile text.
_NOT_WORDS = re.compile(
    r"```(?>[^`]|`(?!``))*(?:```|\Z)|`[^`\n]{1,200}`|\$\$(?>[^$]|\$(?!\$))*\$\$|\$[^$\n]{0,500}\$"
    r"|\\\[(?>[^\\]|\\(?![\[\]]))*\\\]|\\\((?>[^\\]|\\(?![()]))*\\\)|\\[A-Za-z]+|</?\w{1,40}>"
    r"|https?://[^\s<>\"]{1,500}"
)
_MARKS = "".join(chr(c) for c in range(0x300, 0x1000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
_WORD = re.compile(
    # at most 64 letters: longer runs are no words, and must not fill the caches
    rf"[^\W\d_](?:[^\W\d_]|[{_MARKS}\u200c\u200d'’](?=[^\W\d_{_MARKS}])|[{_MARKS}]){{0,63}}"
)
_SENTENCE = re.compile(r"[.!?。！？।؟…]+|\n+")
_LIMIT = 200_000
_LONGEST_SENTENCE = 40  # words; a longer one is judged in pieces
_RIVAL_SHARE = 0.1  # least share of a sentence's words that must speak for another language


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    name = unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]
    return "CJK" if name == "IDEOGRAPHIC" else name


def verify(
    completion: str, answer: str = "", *, target: str = "en", part: str = "all", **row: Any
) -> Verdict:
    """`target` is a two-letter language code; `part` is all, thought or answer."""
    if target not in LANGUAGES:
        return failed(f"row: language {target!r} is unknown; known: {' '.join(sorted(LANGUAGES))}")
    if part not in PARTS:
        return failed(f"row: part {part!r} is unknown; allowed: {', '.join(PARTS)}")
    text = completion
    if part == "thought":
        text = completion.rpartition("</think>")[0] if "</think>" in completion else completion
    elif part == "answer":
        found = answer_part(completion, False)
        if found.text is None:
            return Verdict(0.0, found.how)
        text = found.text
    counted = count(text, target)
    if counted.words == 0:
        return Verdict(1.0, "no words")
    share = counted.good / counted.words
    return Verdict(share, f"{counted.good} of {counted.words} words are {target!r}")


class Counted(NamedTuple):
    good: int
    """Words of the target language."""
    words: int
    ours: int
    """Evidence for the target in the whole text, against languages of the same script."""
    best: int
    """The same for the other language that has most."""


def count(text: str, target: str) -> Counted:
    text = unicodedata.normalize("NFKC", text[:_LIMIT])
    spans = [span for span in _NOT_WORDS.findall(text) if not span.isascii()]
    hidden = [w for span in spans for w in _WORD.findall(span) if _script(w[0]) != "LATIN"]
    sentences = [_WORD.findall(s) for s in _SENTENCE.split(_NOT_WORDS.sub(" ", text))]
    pieces = [s[i : i + _LONGEST_SENTENCE] for s in sentences for i in range(0, len(s), _LONGEST_SENTENCE)]
    pieces += [hidden] if hidden else []
    counted = [_by_script(piece, target) for piece in pieces]
    evidence = [_evidence([w for w in piece if _in_scripts(w, target)], target) for piece in pieces]
    whole: dict[str, int] = {}
    for found in evidence:
        for code, n in found.items():
            whole[code] = whole.get(code, 0) + n
    otherwise = _foreign(whole, target, sum(words for _, words in counted))
    good = total = 0
    for (inside, words), found in zip(counted, evidence, strict=True):
        foreign = otherwise if (verdict := _foreign(found, target, words)) is None else verdict
        good += 0 if foreign else inside
        total += words
    return Counted(good, total, whole.get(target, 0), _rival(whole, target))


def _by_script(piece: list[str], target: str) -> tuple[int, int]:
    """(words in the target's script, words).  Where a script has no blanks every character weighs as a word,
    so that mixing cannot hide in one long run."""
    good = total = kana = 0
    for word in piece:
        scripts = [_script(c) for c in word] if not word.isascii() else ["LATIN"]
        if len(word) == 1 and scripts[0] == "GREEK" and target != "el":
            continue  # a variable
        if scripts[0] in _UNSPACED:
            total += len(word)
            good += sum(s in LANGUAGES[target] for s in scripts)
            kana += sum(s in ("HIRAGANA", "KATAKANA") for s in scripts)
        else:
            total += 1
            good += _in_scripts(word, target)
    if target == "ja" and not kana and good >= 8:
        good = 0  # so many Chinese characters without kana are Chinese
    return good, total


def _in_scripts(word: str, target: str) -> bool:
    allowed = LANGUAGES[target]
    if word.isascii():
        return "LATIN" in allowed
    return all(_script(c) in allowed for c in word if c.isalpha())


def _evidence(words: list[str], target: str) -> dict[str, int]:
    """How many different words speak for each language that shares the target's script."""
    found: dict[str, int] = {}
    if target in FUNCTION_WORDS:
        for word in set(words):
            for code in _speaks_for(word):
                found[code] = found.get(code, 0) + 1
    return found


def _foreign(found: dict[str, int], target: str, words: int) -> bool | None:
    """Whether another language has more evidence than the target; None where there is too little."""
    best, ours = _rival(found, target), found.get(target, 0)
    if best > ours and best >= max(2, words * _RIVAL_SHARE):
        return True
    return False if ours >= 2 or ours > best else None


def _rival(found: dict[str, int], target: str) -> int:
    alike = ALIKE.get(target)
    return max((n for code, n in found.items() if code not in (target, alike)), default=0)


@lru_cache(maxsize=65536)
def _speaks_for(word: str) -> tuple[str, ...]:
    """Languages of the word's script that have it as a function word, or alone have its letters.  Not names
    (capitals and foreign letters) and not the labels of points and segments (AB, DE)."""
    script = _script(word[0])
    shared = SHARED_LETTERS.get(script)
    lower = word.lower()
    label = len(word) <= 3 and word.isupper()
    own = set() if word != lower or not shared else set(word) - set(shared) - set("'’")
    codes = []
    for code, words in _words().items():
        if script in LANGUAGES[code]:
            if (lower in words and not label) or (own and own <= set(LETTERS[code])):
                codes.append(code)
    return tuple(codes)


@lru_cache(maxsize=1)
def _words() -> dict[str, frozenset[str]]:
    return {code: frozenset(words.split()) for code, words in FUNCTION_WORDS.items()}
