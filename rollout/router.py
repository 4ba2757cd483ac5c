"""Which engine gets which request: pure bookkeeping, without Ray, clocks or chance.

- Requests of one prompt (a group) go to one engine, its home, where the prompt is prefilled once and cached.
  Another engine takes from a group only where the home's load exceeds `factor` times its own.
- Load is expected outstanding tokens.  A request is expected to have as many tokens as its prompt's earlier
  completions had on average; a prompt that is new, as large a share of its max_tokens as completions have
  had so far (all of it, before the first has ended).
- The longest expected first, among the requests that were added together; earlier additions before later
  ones, so that no group waits for ever.  (Longest processing time first: Graham, SIAM J. Appl. Math. 17,
  1969.)
- An engine holds at most `bound` requests; the others wait here, for whichever engine has room first.

An engine may leave at any time (it died); its requests wait again and are the first to go.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

SMOOTHING = 1000
"""Completions over which the share of max_tokens that is used is averaged."""

DRIVER_SHARE = 4e-3
"""Seconds of an order for each engine there is: one driver hands out all orders, and an order must be worth
its while.  A reply and the next order cost it about a millisecond."""


def order_seconds(least: float, engines: int) -> float:
    """How long an engine generates before it comes back, so that the driver keeps up with all of them."""
    return max(least, DRIVER_SHARE * engines)


class Item(NamedTuple):
    """A request, as the router sees it."""

    number: int
    prompt: Hashable
    max_tokens: int


@dataclass(slots=True)
class Lengths:
    """Expected tokens of completions, from those that have ended."""

    remembered: int
    share: float = 1.0
    """Of max_tokens that is used."""
    seen: int = 0
    prompts: OrderedDict[Hashable, tuple[float, int]] = field(default_factory=OrderedDict)
    """Mean length and number of completions; the prompts that ended longest ago are forgotten first."""

    def expected(self, prompt: Hashable, max_tokens: int) -> int:
        known = self.prompts.get(prompt)
        tokens = known[0] if known else self.share * max_tokens
        return max(1, min(max_tokens, round(tokens)))

    def add(self, prompt: Hashable, tokens: int, max_tokens: int) -> None:
        self.seen = min(self.seen + 1, SMOOTHING)
        self.share += (tokens / max_tokens - self.share) / self.seen
        mean, n = self.prompts.pop(prompt, (0.0, 0))
        self.prompts[prompt] = (mean + (tokens - mean) / (n + 1), n + 1)
        if len(self.prompts) > self.remembered:
            self.prompts.popitem(last=False)


@dataclass(slots=True)
class _Group:
    """Requests of one prompt."""

    prompt: Hashable
    home: int | None = None
    waiting: deque[int] = field(default_factory=deque)
    size: int = 0
    """Requests that wait or run."""


@dataclass(slots=True)
class _Place:
    """An engine."""

    bound: int
    running: set[int] = field(default_factory=set)
    load: int = 0
    """Expected tokens of what runs here and of what waits for this home."""
    queue: list[tuple[int, int, int, _Group]] = field(default_factory=list)
    """Heap of the groups at home here that have waiting requests."""


@dataclass(slots=True)
class Router:
    factor: float = 1.5
    remembered: int = 100_000
    places: dict[int, _Place] = field(default_factory=dict)
    lengths: Lengths = field(init=False)
    waiting: int = 0
    """Requests that no engine has yet."""

    _groups: dict[Hashable, _Group] = field(default_factory=dict)
    _homeless: list[tuple[int, int, int, _Group]] = field(default_factory=list)
    """Heap of (wave, -expected tokens, first number, group): the order in which groups find a home."""
    _items: dict[int, tuple[Item, int, int]] = field(default_factory=dict)
    """(request, expected tokens, wave)"""
    _engine_of: dict[int, int] = field(default_factory=dict)
    _crowded: set[int] = field(default_factory=set)
    """Engines that requests wait for."""
    _wave: int = 0

    def __post_init__(self) -> None:
        assert self.factor >= 1, f"{self.factor=}"
        self.lengths = Lengths(self.remembered)

    def __len__(self) -> int:
        """Requests that wait or run."""
        return len(self._items)

    def __contains__(self, number: int) -> bool:
        return number in self._items

    # -- engines

    def join(self, engine: int, bound: int) -> None:
        assert engine not in self.places and bound >= 1, f"{engine=} {bound=}"
        self.places[engine] = _Place(bound)

    def leave(self, engine: int) -> list[int]:
        """The engine is gone; the requests it had wait again."""
        place = self.places.pop(engine)
        self._crowded.discard(engine)
        back = sorted(place.running)
        for *_, group in place.queue:
            group.home = None
            self._push(self._homeless, group)
        for number in back:
            group = self._groups[self._items[number][0].prompt]
            del self._engine_of[number]
            if group.home == engine:
                group.home = None
            if group.home is None and group.waiting:
                group.waiting.appendleft(number)  # it is in the heap already
            else:
                self._put(group, number)
        self.waiting += len(back)
        for group in self._groups.values():
            if group.home == engine:
                group.home = None
        return back

    # -- requests

    def add(self, items: Iterable[Item]) -> None:
        """Requests that were not there; those of one call are one wave."""
        for item in items:
            assert item.number not in self._items, f"{item.number=} is there already"
            expected = self.lengths.expected(item.prompt, item.max_tokens)
            self._items[item.number] = (item, expected, self._wave)
            group = self._groups.setdefault(item.prompt, _Group(item.prompt))
            group.size += 1
            self.waiting += 1
            self._put(group, item.number)
        self._wave += 1

    def assign(self, engines: Iterable[int] | None = None) -> dict[int, list[int]]:
        """Requests that go to engines now.  `engines`: those whose room or load has changed since the last
        call (after additions and departures: None, which is all)."""
        given: dict[int, list[int]] = {}
        if not self.waiting:
            return given
        heap: list[tuple[int, int]] = []
        for engine in self.places if engines is None else engines:
            if len(self.places[engine].running) < self.places[engine].bound:
                heappush(heap, (self.places[engine].load, engine))
        while heap and self.waiting:
            load, engine = heappop(heap)
            place = self.places[engine]
            if load != place.load:  # another has taken from what waited for it
                heappush(heap, (place.load, engine))
                continue
            number = self._next(engine)
            if number is None:
                continue  # nothing for it, nor for those that have more to do
            self._engine_of[number] = engine
            place.running.add(number)
            self.waiting -= 1
            given.setdefault(engine, []).append(number)
            if len(place.running) < place.bound:
                heappush(heap, (place.load, engine))
        return given

    def done(self, number: int, tokens: int) -> int:
        """A request has ended with so many tokens; the engine that had it."""
        item, _, _ = self._items[number]
        self.lengths.add(item.prompt, tokens, item.max_tokens)
        return self.drop(number)

    def drop(self, number: int) -> int:
        """A running request is given up; the engine that had it."""
        item, expected, _ = self._items.pop(number)
        engine = self._engine_of.pop(number)
        place = self.places[engine]
        place.running.remove(number)
        place.load -= expected
        group = self._groups[item.prompt]
        group.size -= 1
        if not group.size:
            del self._groups[item.prompt]
        return engine

    def clear(self) -> None:
        """Forget every request; engines and expected lengths are kept."""
        self._items.clear()
        self._groups.clear()
        self._homeless.clear()
        self._engine_of.clear()
        self._crowded.clear()
        self.waiting = 0
        for place in self.places.values():
            place.running.clear()
            place.queue.clear()
            place.load = 0

    def engine_of(self, number: int) -> int | None:
        return self._engine_of.get(number)

    # -- inside

    def _push(self, heap: list[tuple[int, int, int, _Group]], group: _Group) -> None:
        number = group.waiting[0]
        _, expected, wave = self._items[number]
        heappush(heap, (wave, -expected, number, group))

    def _put(self, group: _Group, number: int) -> None:
        """Let a request wait: for its group's home, or for the first that has room."""
        group.waiting.append(number)
        if group.home is not None:
            place = self.places[group.home]
            place.load += self._items[number][1]
            if len(group.waiting) == 1:
                self._wait_for(group.home, group)
        elif len(group.waiting) == 1:
            self._push(self._homeless, group)

    def _wait_for(self, engine: int, group: _Group) -> None:
        self._push(self.places[engine].queue, group)
        self._crowded.add(engine)

    def _next(self, engine: int) -> int | None:
        """The request that this engine takes next, with the load moved to it."""
        place = self.places[engine]
        if place.queue:  # of a group that is at home here
            return self._take(engine)
        if self._homeless:  # of a group that finds its home here
            *_, group = heappop(self._homeless)
            group.home = engine
            place.load += sum(self._items[n][1] for n in group.waiting)
            self._wait_for(engine, group)
            return self._take(engine)
        busiest = max(self._crowded, key=lambda e: (self.places[e].load, -e), default=None)
        if busiest is None or self.places[busiest].load <= self.factor * place.load:
            return None
        number = self._take(busiest)
        self.places[busiest].load -= self._items[number][1]
        place.load += self._items[number][1]
        return number

    def _take(self, engine: int) -> int:
        queue = self.places[engine].queue
        group = queue[0][3]
        number = group.waiting.popleft()
        if not group.waiting:
            heappop(queue)
            if not queue:
                self._crowded.discard(engine)
        return number
