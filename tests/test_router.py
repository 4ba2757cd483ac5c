"""The router: every request exactly once, bounds, homes of groups, the longest first, engines that come and
go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from onebase.rollout.router import Item, Lengths, Router

FACTOR = 1.4


class Routing(RuleBasedStateMachine):
    """Any order of additions, completions, arrivals and departures."""

    @initialize(bounds=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    def begin(self, bounds: list[int]) -> None:
        self.router = Router(FACTOR)
        self.bounds: dict[int, int] = {}
        self.running: dict[int, int] = {}
        self.prompt: dict[int, str] = {}
        self.limit: dict[int, int] = {}
        self.ended: set[int] = set()
        for bound in bounds:
            self.join(bound)

    @rule(bound=st.integers(1, 6))
    def join(self, bound: int) -> None:
        engine = max(self.bounds, default=-1) + 1
        self.router.join(engine, bound)
        self.bounds[engine] = bound

    @rule(items=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 50)), max_size=12))
    def add(self, items: list[tuple[str, int]]) -> None:
        first = len(self.prompt)
        added = [Item(first + i, prompt, limit) for i, (prompt, limit) in enumerate(items)]
        self.prompt |= {i.number: i.prompt for i in added}
        self.limit |= {i.number: i.max_tokens for i in added}
        self.router.add(added)

    @rule()
    def assign(self) -> None:
        """Each request once, to an engine with room; nobody is idle while requests wait.  (Loads move within
        one call, so who may take from whom is tested by cases below.)"""
        given = self.router.assign()
        for engine, numbers in given.items():
            for number in numbers:
                assert number not in self.running and number not in self.ended
                self.running[number] = engine
                assert self.router.engine_of(number) == engine
        idle = [e for e in self.bounds if e not in self.running.values()]
        assert not (idle and self.router.waiting), f"{idle=} while {self.router.waiting} wait"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        tokens = data.draw(st.integers(1, self.limit[number]))
        assert self.router.done(number, tokens) == self.running.pop(number)
        self.ended.add(number)

    @precondition(lambda self: self.bounds)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        engine = data.draw(st.sampled_from(sorted(self.bounds)))
        lost = sorted(n for n, e in self.running.items() if e == engine)
        assert self.router.leave(engine) == lost
        del self.bounds[engine]
        for number in lost:
            del self.running[number]

    @rule()
    def clear(self) -> None:
        self.router.clear()
        self.ended |= self.prompt.keys()
        self.running.clear()

    @invariant()
    def accounts_balance(self) -> None:
        router = self.router
        assert len(router) == len(self.prompt) - len(self.ended)
        assert router.waiting == len(router) - len(self.running)
        waiting = [n for g in router._groups.values() for n in g.waiting]
        assert sorted(waiting + list(self.running)) == sorted(set(self.prompt) - self.ended)
        for engine, place in router.places.items():
            assert place.running == {n for n, e in self.running.items() if e == engine}
            assert len(place.running) <= self.bounds[engine]
            here = [n for g in router._groups.values() if g.home == engine for n in g.waiting]
            assert place.load == sum(router._items[n][1] for n in [*here, *place.running])

    def teardown(self) -> None:
        """Whatever happened, all can be brought to an end by one engine more."""
        self.join(3)
        while len(self.router):
            self.assign()
            assert self.running
            for number in list(self.running):
                self.router.done(number, 1)
                del self.running[number]
                self.ended.add(number)
        assert self.ended >= self.prompt.keys()


TestRouting = Routing.TestCase
TestRouting.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def items(groups: int, size: int, max_tokens: int = 100) -> list[Item]:
    return [Item(p * size + g, p, max_tokens) for p in range(groups) for g in range(size)]


@given(
    groups=st.integers(1, 20),
    size=st.integers(1, 8),
    bounds=st.lists(st.integers(8, 32), min_size=1, max_size=6),
)
@settings(deadline=None)
def test_a_balanced_batch_keeps_every_group_together(groups: int, size: int, bounds: list[int]) -> None:
    """Rounds of one completion per engine: no group is split while groups without a home are left."""
    router = Router()
    for engine, bound in enumerate(bounds):
        router.join(engine, bound)
    router.add(items(groups, size))
    seen: dict[int, set[int]] = {}
    while len(router):
        for engine, numbers in router.assign().items():
            for n in numbers:
                seen.setdefault(n // size, set()).add(engine)
                if router._homeless:
                    assert len(seen[n // size]) == 1
        for place in list(router.places.values()):
            if place.running:
                router.done(min(place.running), 100)
    assert len(seen) == groups


def test_the_longest_go_first_and_waves_in_their_order() -> None:
    router = Router()
    router.join(0, 1)
    router.add([Item(0, "a", 10), Item(1, "b", 30), Item(2, "c", 20)])
    router.add([Item(3, "d", 99)])
    order = []
    while len(router):
        (numbers,) = router.assign().values()
        order += numbers
        router.done(numbers[0], 10)
    assert order == [1, 2, 0, 3]


def test_load_is_tokens_not_requests() -> None:
    """One long request weighs as much as ten short ones."""
    router = Router()
    router.join(0, 100)
    router.join(1, 100)
    router.add([Item(0, "long", 1000), *(Item(1 + i, f"short {i}", 100) for i in range(10))])
    given = router.assign()
    assert given[0] == [0] and sorted(given[1]) == list(range(1, 11))


def test_what_an_engine_loses_is_the_first_to_go() -> None:
    router = Router()
    router.join(0, 2)
    router.add(items(3, 2))
    assert router.assign() == {0: [0, 1]}
    assert router.leave(0) == [0, 1]
    assert router.assign() == {} and router.waiting == 6
    router.join(1, 2)
    assert sorted(router.assign()[1]) == [0, 1]


def test_a_late_engine_takes_from_the_crowded_one() -> None:
    """Beyond the factor a group is shared; at the factor it stays together."""
    router = Router(factor=3.0)
    router.join(0, 2)
    router.add(items(1, 8))
    assert router.assign() == {0: [0, 1]}
    router.join(1, 8)
    assert router.assign() == {1: [2, 3]}  # 6 and 2 of the 8 are within the factor


def test_lengths_are_learned_by_prompt_and_in_general() -> None:
    lengths = Lengths(remembered=2)
    assert lengths.expected("a", 100) == 100
    lengths.add("a", 20, 100)
    lengths.add("a", 30, 100)
    assert lengths.expected("a", 100) == 25 and lengths.expected("a", 10) == 10
    assert lengths.expected("new", 200) == 50  # a quarter was used
    lengths.add("b", 1, 100)
    lengths.add("a", 25, 100)
    lengths.add("c", 1, 100)
    assert list(lengths.prompts) == ["a", "c"]  # b ended longest ago


def test_a_known_prompt_is_placed_by_its_own_length() -> None:
    router = Router()
    router.join(0, 1)
    router.add([Item(0, "short", 100), Item(1, "long", 100)])
    for tokens in (5, 90):
        (number,) = router.assign()[0]
        router.done(number, tokens)
    router.add([Item(2, "short", 100), Item(3, "long", 100)])
    assert router.assign() == {0: [3]}


@pytest.mark.parametrize("engines", [None, [0]])
def test_only_engines_that_changed_need_to_be_named(engines: list[int] | None) -> None:
    router = Router()
    for engine in range(3):
        router.join(engine, 2)
    router.add(items(6, 2))
    router.assign()
    router.done(min(router.places[0].running), 100)
    assert list(router.assign(engines)) == [0]


def test_numbers_that_are_there_and_engines_that_are_not() -> None:
    router = Router()
    router.add([Item(0, "a", 1)])
    with pytest.raises(AssertionError, match="there already"):
        router.add([Item(0, "b", 1)])
    with pytest.raises(KeyError):
        router.leave(3)
    with pytest.raises(AssertionError):
        Router(factor=0.5)
