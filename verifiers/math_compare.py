"""Whether two parsed answers are the same answer, under a Policy: lists, sets, tuples, matrices, relations,
names. Numbers and expressions are compared in math_number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_exact import rational
from onebase.verifiers.math_family import family, same_family
from onebase.verifiers.math_number import NO_VALUE, is_number, same_number, same_quantity
from onebase.verifiers.math_numeric import (
    Evaluator,
    _points,
    close,
    context,
)
from onebase.verifiers.math_policy import Policy
from onebase.verifiers.math_sets import ORDER, operand, same_set, to_set, turned
from onebase.verifiers.math_tree import Node, normal, ops, symbols
from onebase.verifiers.math_values import (
    Item,
    all_solved,
    components,
    compound,
    expand_signs,
    is_solved,
    item,
    strip,
)

EMPTY = Node("const", ("empty",))
REALS = Node("const", ("R",))
Y = Node("sym", ("y",))


def same_answer(gold: Node, answer: Node, policy: Policy) -> str | None:
    """How the two are equal, or None.  Raises FalseChain when the answer states something untrue."""
    gold, answer = compound(strip(gold)), compound(strip(answer))
    if (many := family(gold)) is not None and (others := family(answer, many)) is not None:
        return same_family(many, others)
    golds, gold_kind = _members(gold, False)
    if (
        answer.op == "tuple"
        and answer.args[0] == "["
        and len(answer.args) > 4
        and gold_kind in ("list", "set")
    ):
        answer = Node("list", answer.args[2:])  # a Python list of three or more
    answers, answer_kind = _members(answer, True)
    if gold_kind == answer_kind == "single":
        return _same_item(golds[0], answers[0], policy)
    if how := _as_sets(gold, answer, policy):
        return how
    if "single" in (gold_kind, answer_kind):
        return _against_single(golds, answers, gold_kind, answer_kind, policy)
    ordered = policy.list_order == "fixed" and "set" not in (gold_kind, answer_kind)
    ordered = ordered or any(i.value == Node("const", ("dots",)) for i in golds + answers)
    if ordered or _names_decide(golds, answers):
        return "the same list in order" if _same_in_order(golds, answers, policy) else None
    return "the same list in any order" if _same_in_any_order(golds, answers, policy) else None


def _members(node: Node, lenient: bool) -> tuple[list[Item], str]:
    """The answers a tree stands for, and whether it is one, a list or a set."""
    node = strip(node)
    if node.op == "rel" and node.args[0] and set(node.args[0]) <= {"=", "~", "in"}:
        inner = item(node, lenient)
        if inner.value.op == "set" or (inner.value.op == "list" and inner.name is not None):
            return [Item(m.value, inner.name) for m in _members(inner.value, lenient)[0]], inner.value.op
    kind = node.op if node.op in ("list", "set") else "single"
    parts = [part for part in node.args] if kind != "single" else [node]
    found = [item(signed, lenient) for part in parts for signed in expand_signs(strip(part))]
    found = [inner for outer in found for inner in _flatten(outer, lenient)]
    if kind == "single" and len(found) > 1:
        kind = "list"
    return found, kind


def _flatten(outer: Item, lenient: bool) -> list[Item]:
    """Lists inside lists: `x = 1, 2` or `(p=5, q=2), (p=7, q=2)` typed with braces."""
    if outer.value.op != "list":
        return [outer]
    return [Item(inner.value, inner.name or outer.name) for inner in _members(outer.value, lenient)[0]]


def _against_single(
    golds: list[Item], answers: list[Item], gold_kind: str, answer_kind: str, policy: Policy
) -> str | None:
    """One answer against several: the same only when the several are one, or are the parts of a tuple."""
    single, several = (golds, answers) if gold_kind == "single" else (answers, golds)
    kind = answer_kind if gold_kind == "single" else gold_kind
    parts = strip(single[0].value)
    if parts.op == "tuple" and parts.args[:2] == ("(", ")") and kind == "list":
        inner = [Item(strip(part)) for part in parts.args[2:]]
        same = _same_in_order(inner, several, policy)
        return "the parts of the tuple in order" if same else None
    if kind == "set" and (not policy.singleton or EMPTY in (single[0].value, several[0].value)):
        return None
    how = None
    for one in several:
        pair = (single[0], one) if gold_kind == "single" else (one, single[0])
        if (how := _same_item(*pair, policy)) is not None:
            break
    exact = replace(policy, percent="hundredth")  # 5% and 5 are two answers
    alike = all(
        one is two or _same_item(one, two, exact) or _same_item(two, one, exact)
        for one, two in zip(several[:-1], several[1:], strict=True)
    )
    return how if how is not None and alike else None


def _names_decide(golds: list[Item], answers: list[Item]) -> bool:
    """`AB = 4, CD = 5` against `4, 5`: without names, the order tells which is which."""
    none_golds, none_answers = (all(i.name is None for i in items) for items in (golds, answers))
    return (_named_apart(golds) and none_answers) or (_named_apart(answers, False) and none_golds)


def _named_apart(items: list[Item], numbered: bool = True) -> bool:
    """Whether each has a name of its own; `numbered` says whether x_1 and x_2 are two names."""
    names = [_head(i.name) for i in items if i.name is not None]
    if not numbered:
        names = [Node(n.op, (re.sub(r"_\d+$", "", str(n.args[0])),)) if n.op == "sym" else n for n in names]
    return len(names) == len(items) and len(set(names)) == len(names) > 1


def _same_in_order(golds: Sequence[Item], answers: Sequence[Item], policy: Policy) -> bool:
    if len(golds) != len(answers):
        return False
    return all(_same_item(g, a, policy) is not None for g, a in zip(golds, answers, strict=True))


def _same_in_any_order(golds: list[Item], answers: list[Item], policy: Policy) -> bool:
    """Equal as multisets, or as sets once repetitions are dropped.  Exact keys settle nearly all; the few
    that remain are tried pairwise."""
    if not (_named_apart(golds) and _named_apart(answers)):
        golds, answers = [Item(g.value, approx=g.approx) for g in golds], [Item(a.value) for a in answers]
    rest_answers = {_key(a): a for a in answers}
    rest_golds = {_key(g): g for g in golds}
    for key in set(rest_answers) & set(rest_golds):
        del rest_answers[key], rest_golds[key]
    if len(rest_answers) > 24 or len(rest_golds) > 24:
        return False
    left = list(rest_answers.values())
    for gold in rest_golds.values():
        match = next((i for i, a in enumerate(left) if _same_item(gold, a, policy)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _key(entry: Item) -> tuple[object, object]:
    name = None if entry.name is None else _head(entry.name)
    try:
        return (name, rational(entry.value))
    except NO_VALUE:
        return (name, normal(entry.value))


def _as_sets(gold: Node, answer: Node, policy: Policy) -> str | None:
    """Equality as sets of reals, where either side speaks of intervals or inequalities."""
    if not _set_like(gold) and not _set_like(answer):
        return None
    plain = {strip(gold).op, strip(answer).op} <= {"tuple", "list", "set"}
    if plain and not any(_unions(node) or T.INF in T.walk(node) for node in (gold, answer)):
        return None
    if not policy.unsolved and all_solved(gold) and not all_solved(answer):
        return None  # 2x - 4 > 0 restates the problem whose answer is x > 2
    joined = bool({"union", "inter", "minus"} & {gold.op, answer.op})
    try:
        left, right = (operand(node) if joined else to_set(node) for node in (gold, answer))
    except NO_VALUE:
        return None
    return "the same set of numbers" if same_set(left, right, policy.interval_ends == "strict") else None


def _unions(node: Node) -> bool:
    return bool(ops(node) & {"union", "inter", "minus", "both"}) or any(
        p.op == "rel" and set(p.args[0]) & (ORDER | {"in", "notin"}) for p in T.walk(node)
    )


def _set_like(node: Node) -> bool:
    node = strip(node)
    if node.op == "list":
        points = [part for part in node.args if part.op == "rel" and part.args[0] == ("=",)]
        rest = [part for part in node.args if part not in points]
        return bool(rest) and all(_set_like(part) for part in rest)
    return node.op in ("union", "inter", "minus", "both", "tuple", "set") or node in (
        Node("const", ("R",)),
        Node("const", ("empty",)),
    ) or (node.op == "rel" and bool(set(node.args[0]) & (ORDER | {"in", "notin"})))  # fmt: skip


def _same_item(gold: Item, answer: Item, policy: Policy) -> str | None:
    """One answer against one, names and stated approximations considered."""
    if gold.name is not None and answer.name is not None and not _same_name(gold.name, answer.name):
        return _same_equation(_equation(gold), _equation(answer), policy)
    if not policy.assignment and (gold.name is None) != (answer.name is None):
        return None
    how = same_value(gold.value, answer.value, policy)
    if how is None and gold.approx is not None:
        how = same_value(gold.approx, answer.value, policy)
    if how is None and answer.approx is not None and gold.value.op == "dec":
        how = same_value(gold.value, answer.approx, policy)
    if how is None and (gold.name is not None or answer.name is not None):
        how = _same_equation(_equation(gold), _equation(answer), policy)
    return how


def _same_name(left: Node, right: Node) -> bool:
    a, b = (_head(node) for node in (left, right))
    if Y in (a, b) and any(_is_function_of(node) for node in (left, right)):
        return True  # y = 2x + 1 and f(x) = 2x + 1
    a, b = _segment(a), _segment(b)
    return a == b or repr(a).replace("paren", "").lower() == repr(b).replace("paren", "").lower()


def _head(node: Node) -> Node:
    """The name of a function without the letter it is applied to: W(n) and W(x)."""
    node = strip(node)
    if (
        node.op == "mul"
        and len(node.args) == 2
        and node.args[1].op == "paren"
        and strip(node.args[1]).op == "sym"
    ):
        return normal(node.args[0])
    return normal(node)


def _segment(node: Node) -> Node:
    """\\overline{AB} and |AB| as AB."""
    if node.op == "fn" and node.args[0] == "abs" and node.args[1].op == "mul":
        ends = [str(part.args[0]) for part in node.args[1].args if part.op == "sym"]
        node = node.args[1] if len(ends) == 2 and "".join(ends).isupper() else node
    name = str(node.args[0]) if node.op == "sym" else ""
    if name.startswith("overline ") and name[9:].isalpha():
        return normal(T.mul(*(Node("sym", (letter,)) for letter in name[9:])))
    return node


def _is_function_of(node: Node) -> bool:
    node = strip(node)
    return (
        node.op == "mul" and len(node.args) == 2 and node.args[0].op == "sym" and node.args[1].op == "paren"
    )


def _equation(entry: Item) -> Node:
    return entry.value if entry.name is None else Node("rel", (("=",), entry.name, entry.value))


def same_value(gold: Node, answer: Node, policy: Policy) -> str | None:
    """How two values without names are equal, or None."""
    gold, answer = _without_label(strip(gold), answer), _without_label(strip(answer), gold)
    if _set_like(gold) and answer == Node("sym", ("R",)):
        answer = REALS
    if not policy.arithmetic and is_number(gold) and not is_number(answer):
        return None
    if normal(gold) == normal(answer):
        return "the same form"
    if {"above", "below"} & _functions(gold) and not {"above", "below"} & _functions(answer):
        if normal(_two_sided(gold)) == normal(answer):
            return "the same limit"
    if "big" in ops(answer) and "big" not in ops(gold) and not policy.unevaluated:
        return None
    if how := _as_sets(gold, answer, policy):
        return how
    if "matrix" in (gold.op, answer.op):
        gold, answer = _column(gold), _column(answer)
    pair = {gold.op, answer.op}
    if pair == {"tuple"}:
        return _same_tuple(gold, answer, policy)
    if pair == {"matrix"}:
        same = gold.args[0] == answer.args[0] and _all_same(gold.args[1:], answer.args[1:], policy)
        return "the same matrix" if same else None
    if pair == {"matrix", "tuple"}:
        return _same_vector(gold, answer, policy)
    if pair & {"matrix", "tuple"} and pair & {"add", "mul", "sym"}:
        return _same_components(gold, answer, policy)
    if pair == {"rel"}:
        return _same_relation(gold, answer, policy)
    if pair == {"ratio"}:
        return _same_ratio(gold, answer, policy)
    if pair & {"set", "list"}:
        return same_answer(gold, answer, policy) if pair <= {"set", "list", "tuple"} else None
    if pair == {"clock"}:
        return _same_time(gold, answer)
    if "text" in pair:
        return _same_text(gold, answer)
    if "sym" in pair and _segment(gold) == _segment(answer):
        return "the same segment"
    if pair & {"tuple", "matrix", "rel", "union", "inter", "minus", "both", "builder", "clock"}:
        return None
    if "ratio" in pair:
        return _ratio_as_quotient(gold, answer, policy)
    if "based" in pair:
        return _same_based(gold, answer, policy)
    return same_quantity(gold, answer, policy)


def _all_same(golds: Sequence[Node], answers: Sequence[Node], policy: Policy) -> bool:
    return len(golds) == len(answers) and all(
        _same_item(item(g, False), item(a, True), policy) for g, a in zip(golds, answers, strict=True)
    )


def _same_tuple(gold: Node, answer: Node, policy: Policy) -> str | None:
    brackets = gold.args[:2] == answer.args[:2]
    if len(gold.args) == 4 and not brackets and policy.interval_ends == "strict":
        return None
    return "the same tuple" if _all_same(gold.args[2:], answer.args[2:], policy) else None


def _same_vector(gold: Node, answer: Node, policy: Policy) -> str | None:
    matrix, row = (gold, answer) if gold.op == "matrix" else (answer, gold)
    columns, cells = matrix.args[0], matrix.args[1:]
    if not policy.vector_forms or (columns != 1 and columns != len(cells)):
        return None
    pair = (cells, row.args[2:]) if gold.op == "matrix" else (row.args[2:], cells)
    return "the same vector" if _all_same(*pair, policy) else None


def _same_components(gold: Node, answer: Node, policy: Policy) -> str | None:
    """A vector against 3i - 2j + k in unit vectors."""
    row, sum_of = (gold, answer) if gold.op in ("tuple", "matrix") else (answer, gold)
    cells = row.args[2:] if row.op == "tuple" else row.args[1:]
    parts = components(sum_of)
    if parts is None or len(cells) not in (2, 3) or (len(cells) == 2 and parts[2] != T.ZERO):
        return None
    here = parts[: len(cells)]
    golds, answers = (cells, here) if row is gold else (here, cells)
    return "the same vector" if _all_same(golds, answers, policy) else None


def _column(node: Node) -> Node:
    """A column of two typed as \\binom."""
    return Node("matrix", (1, *node.args[1:])) if node.op == "fn" and node.args[0] == "binom" else node


def _without_label(node: Node, other: Node) -> Node:
    """P(3,-1) as the point alone, where the other side has no letter before it."""
    labelled = node.op == "mul" and len(node.args) == 2 and node.args[1].op == "tuple"
    labelled = labelled and strip(other).op in ("tuple", "matrix")
    name = node.args[0] if labelled else node
    return node.args[1] if labelled and name.op == "sym" and str(name.args[0])[0].isupper() else node


def _functions(node: Node) -> set[str]:
    return {str(part.args[0]) for part in T.walk(node) if part.op == "fn"}


def _two_sided(node: Node) -> Node:
    if node.op == "fn" and node.args[0] in ("above", "below"):
        return node.args[1]
    if not any(isinstance(arg, Node) for arg in node.args):
        return node
    return T.rebuild(node, [_two_sided(arg) if isinstance(arg, Node) else arg for arg in node.args])


def _same_ratio(gold: Node, answer: Node, policy: Policy) -> str | None:
    if len(gold.args) != len(answer.args):
        return None
    if _all_same(gold.args, answer.args, policy):
        return "the same ratio"
    if Node("const", ("dots",)) in gold.args or (_clock(gold) and (_clock(answer) or not _lowest(gold))):
        return None
    first_gold, first_answer = gold.args[0], answer.args[0]
    cross = [
        same_number(T.mul(g, first_answer), T.mul(a, first_gold), policy)
        for g, a in zip(gold.args[1:], answer.args[1:], strict=True)
    ]
    try:
        zero = rational(first_gold) == 0 or rational(first_answer) == 0
    except NO_VALUE:
        zero = False
    return "ratios in proportion" if all(cross) and not zero else None


def _ratio_as_quotient(gold: Node, answer: Node, policy: Policy) -> str | None:
    """2:3 against 2/3."""
    ratio, other = (gold, answer) if gold.op == "ratio" else (answer, gold)
    if len(ratio.args) != 2 or _clock(ratio) or other.op in ("text", "based"):
        return None
    if other is gold and gold.op in ("num", "dec"):
        return None  # 18:1 does not answer 18
    how = same_number(T.div(*ratio.args), other, policy)
    return how and f"{how}, the ratio as a quotient"


def _same_time(gold: Node, answer: Node) -> str | None:
    """The same time of day; when one side leaves the half of the day out, the time on the dial."""
    (hour, *rest, known), (other, *others, known_too) = gold.args, answer.args
    same = hour == other or (known != known_too and (hour - other) % 12 == 0)
    return "the same time" if same and rest == others else None


def _clock(node: Node) -> bool:
    """Whether a ratio can be a time of day whose minutes would have been typed with two digits."""
    try:
        hours, *rest = (rational(part) for part in node.args)
    except NO_VALUE:
        return False
    return 0 <= hours <= 24 and all(10 <= part < 60 or part == 0 for part in rest)


def _lowest(node: Node) -> bool:
    return gcd(*(int(rational(part)) for part in node.args)) == 1


def _same_text(gold: Node, answer: Node) -> str | None:
    def spelled(node: Node) -> str:
        if node.op in ("text", "sym"):
            return str(node.args[0])
        if node.op == "const" and node.args[0] in ("e", "i"):
            return str(node.args[0])
        if node.op == "mul" and all(part.op in ("sym", "text", "const") for part in node.args):
            return "".join(str(part.args[0]) for part in node.args)
        return ""

    a, b = spelled(gold), spelled(answer)
    if {gold.op, answer.op} == {"mul", "text"} and 2 < len(a) == len(b) < 6 and sorted(a) == sorted(b):
        return "the same product of letters"
    if len(a) > 1:
        a, b = a.lower(), b.lower()
    return "the same text" if a and a.replace(" ", "") == b.replace(" ", "") else None


def _same_based(gold: Node, answer: Node, policy: Policy) -> str | None:
    if gold.op == answer.op:
        return "the same number in the same base" if gold.args == answer.args else None
    based, other = (gold, answer) if gold.op == "based" else (answer, gold)
    if gold.op != "based":
        try:
            return "the same value" if rational(gold) == rational(answer) else None
        except NO_VALUE:
            return None
    if policy.base_suffix == "optional" and other.op == "num" and str(other.args[0]) == based.args[0]:
        return "the same digits, base left out"
    return None


def _same_relation(gold: Node, answer: Node, policy: Policy) -> str | None:
    for turn in (answer, turned(answer)):
        if gold.args[0] == turn.args[0] and _all_same(gold.args[1:], turn.args[1:], policy):
            return "the same relation"
    if set(gold.args[0]) | set(answer.args[0]) <= {"="}:
        return _same_equation(gold, answer, policy)
    if len(gold.args) == len(answer.args) == 3:
        return _same_inequality(gold, answer, policy)
    return None


def _same_equation(gold: Node, answer: Node, policy: Policy) -> str | None:
    """Two equations whose differences of sides are constant multiples of each other."""
    if gold.op != "rel" or answer.op != "rel" or not {*gold.args[0], *answer.args[0]} <= {"=", "~"}:
        return None
    if len(gold.args) != 3 or len(answer.args) != 3:
        return None
    if not policy.unsolved and is_solved(gold) and not is_solved(answer):
        return None
    ratio = _constant_ratio(T.sub(*gold.args[1:]), T.sub(*answer.args[1:]))
    return "the same equation up to a factor" if ratio is not None else None


def _same_inequality(gold: Node, answer: Node, policy: Policy) -> str | None:
    if not policy.unsolved and is_solved(gold) and not is_solved(answer):
        return None
    ratio = _constant_ratio(T.sub(*gold.args[1:]), T.sub(*answer.args[1:]))
    if ratio is None or abs(context().im(ratio)) > 1e-15:
        return None
    other = answer if context().re(ratio) > 0 else turned(answer)
    return "the same inequality up to a factor" if gold.args[0] == other.args[0] else None


def _constant_ratio(left: Node, right: Node) -> object | None:
    """The constant left / right, when it is one and neither side vanishes identically."""
    names = sorted(symbols(left))
    if (
        not names
        or names != sorted(symbols(right))
        or (ops(left) | ops(right)) & {"tuple", "list", "set", "text"}
    ):
        return None
    context().dps = 30
    ratios = []
    for point in _points(names, False):
        try:
            a, b = Evaluator(30, point).value(left), Evaluator(30, point).value(right)
        except NO_VALUE:
            continue
        if a == 0 or b == 0 or min(abs(a), abs(b)) < 1e-24:
            return None
        ratios.append(a / b)
    if len(ratios) < 3 or not all(close(ratios[0], other, 20) for other in ratios[1:]):
        return None
    return ratios[0]
