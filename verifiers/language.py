"""Share of words written in the script of the target language, as R1's language consistency reward (arXiv
2501.12948, section 2.3.2) counts target-language words; formulas, code, numbers and tags do not count.

Deviation: a script, not a vocabulary, decides, so English is told from Chinese but not from French.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from onebase.verifiers.base import Verdict, failed

INLINE = True
_SCRIPTS = {
    "LATIN": "en fr de es it pt nl pl sv da fi nb cs ro hu tr vi id",
    "CJK": "zh",
    "HIRAGANA KATAKANA CJK": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru uk bg sr",
    "ARABIC": "ar fa ur",
    "DEVANAGARI": "hi mr ne",
    "HEBREW": "he",
    "GREEK": "el",
    "THAI": "th",
}
_LANGUAGES = {code: set(scripts.split()) for scripts, codes in _SCRIPTS.items() for code in codes.split()}
_NOT_WORDS = re.compile(
    r"```.*?(?:```|$)|\$\$.*?\$\$|\$[^$\n]{0,500}\$|\\\[.*?\\\]|\\[A-Za-z]+|</?\w+>", re.S
)
_WORD = re.compile(r"[^\W\d_]+")
_LIMIT = 200_000


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    return unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]


def verify(completion: str, answer: str = "", *, target: str = "en", **row: Any) -> Verdict:
    """`target` is a two-letter language code."""
    scripts = _LANGUAGES.get(target)
    if scripts is None:
        return failed(f"language {target!r} is unknown; known: {' '.join(sorted(_LANGUAGES))}")
    good = total = 0
    for word in _WORD.findall(_NOT_WORDS.sub(" ", completion[:_LIMIT])):
        # Scripts without spaces: every character weighs as a word, so that mixing cannot hide in one long
        # run.
        parts = list(word) if _script(word[0]) in ("CJK", "HIRAGANA", "KATAKANA", "THAI") else [word]
        total += len(parts)
        good += sum(_script(part[0]) in scripts for part in parts)
    if total == 0:
        return Verdict(1.0, "no words")
    return Verdict(good / total, f"{good} of {total} words in the script of {target!r}")
