"""Verifiers on a Ray cluster: order, limits on the node, and the death of an actor or a node in mid-batch."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase import rewards
from onebase.errors import UserError
from onebase.recipe import Term
from onebase.verifiers.ray_pool import RayPool

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

PLANTED = """
import os, pathlib, signal, time
from onebase.verifiers.base import Verdict

def verify(completion, answer, folder="", **row):
    actor = os.getppid()
    if folder:
        (pathlib.Path(folder) / str(actor)).touch()
    if completion == "hang":
        while True:
            pass
    if completion == "slow":
        time.sleep(0.05)
    if completion == "assassin":
        os.kill(actor, signal.SIGKILL)
        time.sleep(60)
    return Verdict(float(completion == answer), str(actor))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine; [the cluster, the second node]."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield [made, second]
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def pool(cluster: Any) -> Iterator[RayPool]:
    with RayPool(workers=1) as made:
        yield made


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("planted") / "planted.py"
    path.write_text(PLANTED)
    return f"{path}:verify"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the actors that judged leave their process numbers."""
    (tmp_path / "actors").mkdir()
    return tmp_path / "actors"


def once_both_judge(folder: Path, act: Callable[[list[int]], object]) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 30
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        act([int(file.name) for file in folder.iterdir()])

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def rows(*completions: str, **more: Any) -> list[dict[str, Any]]:
    return [{"completion": text, "answer": "right", **more} for text in completions]


def test_order_limits_and_both_nodes(pool: RayPool, tmp_path: Path, folder: Path) -> None:
    texts = [("right", "wrong")[n % 3 == 0] for n in range(200)]
    texts[50] = "hang"
    batch = rows(*texts, folder=str(folder))
    batch[60]["lock"] = threading.Lock()
    (tmp_path / "elsewhere.py").write_text(PLANTED)
    name = f"{tmp_path / 'elsewhere.py'}:verify"
    assert pool.run(name, []) == []
    (tmp_path / "elsewhere.py").unlink()  # the nodes are sent its text
    verdicts = pool.run(name, batch, wall_seconds=2)
    expected = [float(text == "right") if text != "hang" else None for text in texts]
    expected[60] = None
    assert [v.reward for v in verdicts] == expected
    assert verdicts[50].error == "timeout: over 2 s of wall clock, worker killed"
    assert (verdicts[60].error or "").startswith("row: it cannot be sent")
    assert len(list(folder.iterdir())) == 2 and pool.lost == 0
    with pytest.raises(UserError, match="did you mean 'math_answer'"):
        pool.run("math_anser", rows("x"))


def test_an_actor_that_is_killed_costs_nothing(pool: RayPool, planted: str, folder: Path) -> None:
    before = pool.lost
    killer = once_both_judge(folder, lambda actors: os.kill(actors[0], signal.SIGKILL))
    verdicts = pool.run(planted, rows(*["slow", "right"] * 60, folder=str(folder)))
    killer.join()
    assert [v.reward for v in verdicts] == [0.0, 1.0] * 60
    assert pool.lost == before + 1


def test_a_row_that_kills_actors_is_an_error_and_not_for_ever(pool: RayPool, planted: str) -> None:
    verdicts = pool.run(planted, rows(*["right"] * 20, "assassin", *["right"] * 20))
    assert (verdicts[20].error or "").startswith("infrastructure: the Ray actor that judged it died")
    assert sum(v.error is not None for v in verdicts) <= 3, "at most what was in flight on the same actor"
    assert all(v.reward == 1.0 for n, v in enumerate(verdicts) if n != 20 and v.error is None)


def test_two_threads_at_once(pool: RayPool, planted: str) -> None:
    got: dict[str, list[float | None]] = {}

    def work(text: str) -> None:
        got[text] = [v.reward for v in pool.run(planted, rows(*[text] * 30))]

    threads = [threading.Thread(target=work, args=(text,)) for text in ("right", "wrong")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {"right": [1.0] * 30, "wrong": [0.0] * 30}


def test_rewards_choose_the_cluster(cluster: Any) -> None:
    assert rewards.on_ray()
    (got,) = rewards.score([{"answer": "a+"}], ["aa"], [Term(verifier="regex", workers=1)])
    assert got.reward == 1.0
    made = rewards._pool("regex", 1, True)
    assert isinstance(made, RayPool)
    made.close()


def test_a_node_that_dies_costs_nothing(cluster: Any, pool: RayPool, planted: str, folder: Path) -> None:
    made, second = cluster
    before = pool.lost
    remover = once_both_judge(folder, lambda _: made.remove_node(second, allow_graceful=False))
    verdicts = pool.run(planted, rows(*["slow", "right"] * 100, folder=str(folder)))
    remover.join()
    assert [v.reward for v in verdicts] == [0.0, 1.0] * 100
    assert pool.lost == before + 1


def test_without_ray_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'onebase\[ray\]'"):
        RayPool().run("math_answer", [{"completion": "x", "answer": "1"}])
