"""Ray, where it is needed: joined where RAY_ADDRESS names a cluster, else started on this machine for as long
as this process lives; and room on it for a number of equal engines.

`RAY_ADDRESS=auto` joins a cluster that `ray start` has begun on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onebase.errors import UserError

Spread = Literal["PACK", "SPREAD"]


@dataclass(frozen=True, slots=True)
class Place:
    """What one engine is given."""

    cpus: float = 1.0
    gpus: float = 0.0
    """Below 1: the GPU is shared, with other engines or with the trainer."""
    spread: Spread = "PACK"
    """PACK: few hosts; SPREAD: as many as there are."""

    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def connect(cpus: int | None = None, object_store_memory: int | None = None) -> tuple[Any, bool]:
    """The ray module, connected; and whether Ray was started here, so that it should be stopped here."""
    try:
        import ray
        import ray.exceptions
    except ImportError as e:
        raise UserError(
            "engines on Ray are asked for and ray is not installed\n"
            "  pip install 'onebase[ray]', or leave the number of engines at 1 to generate in this process"
        ) from e
    if ray.is_initialized():
        return ray, False
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    try:
        if address:
            ray.init(address=address, **options)
            return ray, False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=cpus,
            object_store_memory=object_store_memory,
            **options,
        )
    except (OSError, RuntimeError, ValueError) as e:  # ConnectionError and TimeoutError are OSErrors
        what = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray does not start here"
        raise UserError(f"{what}: {type(e).__name__}: {first_line(e)}") from e
    return ray, True


def reserve(ray: Any, count: int, place: Place, seconds: float) -> Any:
    """A placement group with a bundle for each of `count` engines; UserError where the cluster has no
    room."""
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = place.bundle()
    group = placement_group([bundle] * count, strategy=place.spread)
    total = ray.cluster_resources()
    one_host = len(ray.nodes()) == 1
    lacking = [k for k, n in bundle.items() if n * count > total.get(k, 0)]
    if not group.wait(timeout_seconds=1 if one_host and lacking else seconds):
        free = ray.available_resources()
        remove_placement_group(group)
        room = ", ".join(f"{free.get(k, 0):g} of {total.get(k, 0):g} {k}s free" for k in bundle)
        asked = ", ".join(f"{n:g} {k}s" for k, n in bundle.items())
        raise UserError(
            f"no room for {count} engines of {asked} each: the cluster has {room} on {len(ray.nodes())} "
            "hosts; ask for fewer or smaller engines, or add hosts"
        )
    return group


def release(group: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def in_bundle(group: Any, index: int) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def last_line(ray: Any, node: str, files: Sequence[str], seconds: float = 5.0) -> str:
    """The last line that a process of some host has written to its logs; empty where it cannot be had."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node == ray.get_runtime_context().get_node_id():
        return _tail(files)
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    ref = ray.remote(_tail).options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(files)
    try:
        return str(ray.get(ref, timeout=seconds))
    except ray.exceptions.RayError:  # the host is gone as well
        return ""


def _tail(files: Sequence[str]) -> str:
    """The last line of the file that was written last; Ray's own marks (`:actor_name:`) do not count."""
    found: list[tuple[float, str]] = []
    for file in files:
        try:
            with open(file, "rb") as f:
                f.seek(max(0, os.stat(file).st_size - 8192))
                text = f.read().decode(errors="replace")
            lines = [x.strip() for x in text.splitlines() if x.strip() and not x.startswith(":")]
            if lines:
                found.append((os.stat(file).st_mtime, lines[-1]))
        except OSError:
            continue
    return max(found)[1][:400] if found else ""


def first_line(e: BaseException, most: int = 400) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:most]


def end_of(e: BaseException) -> str:
    """What Ray knows about a process's end, without its advice."""
    for line in str(e).splitlines():
        if "exit detail:" in line:
            return ": " + line.split("exit detail:")[1].split("Some common causes")[0].strip()[:300]
    return ""
