"""The math answer verifier: finds the final answer of a completion and decides whether it equals the gold.

`verify(completion, answer, policy=None, prefilled=False)`.  The steps, each in its own file: extraction
(math_extract), parsing to a bounded tree (math_lex, math_parse, math_primary), names and units (math_values,
math_units), equality (math_compare with math_exact, math_numeric, math_sets), conventions (math_policy).  The
answer is never evaluated as Python, nothing here can raise for what a model wrote, and all work is bounded by
the limits in math_policy, so it runs inline; a pool adds a hard wall clock on top.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_budget import Exhausted, budget
from onebase.verifiers.math_compare import same_answer
from onebase.verifiers.math_extract import boxes, extract
from onebase.verifiers.math_lex import undouble
from onebase.verifiers.math_parse import readings
from onebase.verifiers.math_policy import DEFAULT, LIMITS, Policy, make_policy
from onebase.verifiers.math_prose import announced, chosen_letter, closing, is_sentence
from onebase.verifiers.math_text import (
    choice_letter,
    labelled_choice,
    normal_text,
    predicate,
    special_text,
    spoken,
    yes_or_no,
)
from onebase.verifiers.math_tree import Node, ops
from onebase.verifiers.math_values import FalseChain, all_solved

INLINE = True
_INTEGER = re.compile(r"-?\d{1,300}")


def verify(
    completion: str,
    answer: str,
    *,
    policy: Policy | dict[str, Any] | None = None,
    prefilled: bool = False,
    **row: Any,
) -> Verdict:
    """Reward 1 or 0; an error when the gold `answer` itself cannot be understood."""
    start = time.perf_counter()
    chosen = make_policy(policy)
    gold = read_gold(str(answer))
    if isinstance(gold, str):
        return failed(f"gold: {gold}", time.perf_counter() - start, gold=str(answer)[:200])
    found = extract(undouble(completion), chosen, gold.kind, prefilled)
    if found.text is None:
        reward, reason = 0.0, found.how
    else:
        short = max(len(found.text), len(str(answer))) <= LIMITS.cached_chars
        if short:
            reward, reason = _cached_comparison(str(answer), found.text, chosen)
        else:
            reward, reason = compare(gold, found.text, chosen)
        reason = f"{found.how}: {found.text[:80]!r} {reason}"
    details = {
        "extracted": None if found.text is None else found.text[:500],
        "parsed": found.text is not None and readings(found.text)[0].op != "text",
        "how": found.how,
    }
    return Verdict(reward, reason, seconds=time.perf_counter() - start, details=details)


def gold_problem(
    answer: str = "", *, policy: Policy | dict[str, Any] | None = None, **row: Any
) -> str | None:
    """Why a gold answer cannot be understood, or None: it is empty, too long or no expression, or it would
    not be paid itself under the policy (an untrue chain, an unsolved form)."""
    chosen = make_policy(policy)
    gold = read_gold(str(answer))
    if isinstance(gold, str):
        return gold
    reward, reason = compare(gold, gold.text, chosen)
    return None if reward == 1.0 else f"the answer is not paid itself: {gold.text[:80]!r} {reason}"


class Gold:
    """A gold answer, read once."""

    __slots__ = ("content", "letter", "nodes", "raw", "text")

    @property
    def kind(self) -> str:
        """What sort of thing to look for in prose."""
        if self.letter is not None:
            return "choice"
        words = self.nodes[-1].op == "text" and len(re.findall(r"[A-Za-z]{3,}", self.text)) > 1
        prose = words and not re.search(r"[\d\\=]", self.text)
        return "text" if prose or self.nodes[0].op == "text" else "value"

    def __init__(
        self, raw: str, text: str, nodes: tuple[Node, ...], letter: str | None, content: str | None
    ) -> None:
        self.raw, self.text, self.nodes, self.letter, self.content = raw, text, nodes, letter, content


def read_gold(answer: str) -> Gold | str:
    """The gold's readings, or why it cannot be understood."""
    return _cached_gold(answer) if len(answer) <= LIMITS.cached_chars else _read_gold(answer)


def _read_gold(answer: str) -> Gold | str:
    text = undouble(answer.strip())
    if not text:
        return "it is empty"
    if len(text) > 50_000:
        return f"it has {len(text)} characters"
    if (boxed := boxes(text)) is not None:
        # A gold cut short before its closing brace still says what it is.
        text = boxed.text or text.partition("boxed")[2].strip().lstrip("{")
    elif "####" in text:
        text = text.rpartition("####")[2].strip()
    if len(text) > LIMITS.answer_chars:
        return f"it has {len(text)} characters; the limit is {LIMITS.answer_chars}"
    announced = "\n" in text or re.search(r"\banswer\s*(?:is|:)", text, re.I)
    if announced and (part := extract(text, Policy(), "choice")).text is not None:
        text = part.text
    letter, content = choice_letter(text), None
    if letter is None and (labelled := labelled_choice(text)) is not None:
        letter, content = labelled
    nodes = readings(text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", text):
        nodes = nodes[:1]  # as a gold, 1,200 is one number
    if (
        nodes[0].op == "text"
        and content is None
        and (letter is None)
        and not (_is_prose(text) or special_text(text))
    ):
        return f"neither an expression nor words: {text[:80]!r}"
    return Gold(answer.strip(), text, nodes, letter, content)


_cached_gold = lru_cache(maxsize=4096)(_read_gold)


@lru_cache(maxsize=8192)
def _cached_comparison(answer: str, text: str, policy: Policy) -> tuple[float, str]:
    gold = read_gold(answer)
    assert isinstance(gold, Gold), f"{answer=}"
    return compare(gold, text, policy)


def _is_prose(text: str) -> bool:
    """Whether unparsed text has words of a language in it (so that equality of text is what was meant)."""
    if text.count("{") != text.count("}"):
        return False
    return (
        re.search(r"[^\W\d_]{2,}|\\text", re.sub(r"\\[A-Za-z]+", " ", text)) is not None or "\\text" in text
    )


def compare(gold: Gold, text: str, policy: Policy) -> tuple[float, str]:
    """Reward and reason for an extracted answer against the gold."""
    try:
        with budget(LIMITS.comparison_operations, _extras(gold, policy)):
            return _compare(gold, text, policy)
    except Exhausted:
        return 0.0, "takes more operations to compare than an answer is worth"


def _extras(gold: Gold, policy: Policy) -> int:
    """Dear steps are for golds that are themselves left unevaluated or unsolved, and for policies that allow
    such answers; what a model writes cannot ask for them."""
    asked = policy.unevaluated or policy.unsolved
    return 2 if asked or any("big" in ops(node) or not all_solved(node) for node in gold.nodes) else 0


def _compare(gold: Gold, text: str, policy: Policy) -> tuple[float, str]:
    if len(text) > LIMITS.answer_chars:
        return 0.0, f"is too long ({len(text)} characters)"
    if text in (gold.text, gold.raw) and not _chained(text):
        return 1.0, "is the gold's text"
    if _INTEGER.fullmatch(text) and _INTEGER.fullmatch(gold.text):
        same = int(text) == int(gold.text)
        return float(same), f"{'equals' if same else 'differs from'} {gold.text[:80]}: integers"
    if gold.letter is not None and (reply := _choice(gold, text)) is not None:
        return reply
    if policy.decimal_comma:
        text = re.sub(r"(?<=\d),(?=\d)(?!\d{3}(?!\d))", ".", text)
    untrue = None
    candidates = readings(text)
    if (said := _said(gold, text)) is not None:
        candidates = (*candidates, *readings(said))
    if gold.letter is None and (labelled := labelled_choice(text)) is not None:
        candidates = (*candidates, *readings(labelled[1]))  # `(C) 42` where the gold is the content
    for answer_node in candidates:
        for gold_node in gold.nodes:
            try:
                how = same_answer(gold_node, answer_node, policy)
            except FalseChain as error:
                untrue = str(error)
                continue
            except (RecursionError, ArithmeticError, ValueError, TypeError) as error:
                untrue = f"cannot be compared ({type(error).__name__}: {error})"
                continue
            if how is not None:
                return 1.0, f"equals {gold.text[:80]!r}: {how}"
    if untrue is not None:
        return 0.0, untrue
    kind = "is not understood, so differs from" if readings(text)[0].op == "text" else "differs from"
    return 0.0, f"{kind} {gold.text[:80]!r}"


def _said(gold: Gold, text: str) -> str | None:
    """What a sentence in a box or tag says, read as the gold is: `The answer is 5`, `Yes, it is`."""
    sentence = spoken(text)
    if not is_sentence(sentence):
        return None
    if gold.kind == "value":
        conditional = re.search(r"\b(?:if|unless|otherwise|assuming|provided|when)\b", sentence, re.I)
        return None if conditional else (announced(sentence) or closing(sentence, DEFAULT)).text
    if gold.nodes[0] in (Node("text", ("yes",)), Node("text", ("no",))):
        return yes_or_no(sentence)
    return predicate(sentence)


def _chained(text: str) -> bool:
    """Text equality must not wave through an untrue chain that is also the gold's typing."""
    return (
        False
        if "=" not in text
        else any("rel" in ops(node) and len(node.args) > 3 for node in readings(text))
    )


def _choice(gold: Gold, text: str) -> tuple[float, str] | None:
    """Letter against letter, or against the content of a labelled gold; None when the text is no choice."""
    letter = choice_letter(text.strip("* ")) or (text.upper() if text in tuple("abcdefghij") else None)
    content = None
    if letter is None and (labelled := labelled_choice(text)) is not None:
        letter, content = labelled
    if letter is None and is_sentence(spoken(text)) and (chosen := chosen_letter(spoken(text))) is not None:
        letter = chosen.text or "?"
    if letter is not None:
        if letter != gold.letter:
            return 0.0, f"differs from choice {gold.letter}"
        if content is None or gold.content is None or normal_text(content) == normal_text(gold.content):
            return 1.0, f"is choice {gold.letter}"
        return 0.0, f"names choice {gold.letter} with another content"
    if gold.content is not None and normal_text(text) == normal_text(gold.content):
        return 1.0, f"is the content of choice {gold.letter}"
    return None
