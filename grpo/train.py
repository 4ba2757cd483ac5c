"""GRPO with verifiable rewards (DeepSeekMath, arXiv 2402.03300; R1, arXiv 2501.12948).

A step: problems by (seed, step) -> groups of rollouts -> verdicts -> advantages -> one or more clipped
updates.  By default the engine generates with the trainer's own weights, so there is nothing to sync; the
recipe's `engines` may name others, which may work ahead (rollout/source.py).  The engine's log-probabilities
are what the importance ratio is taken against.  Groups whose rewards are all equal are dropped and counted;
so are rollouts whose verifier failed.  The router's selection bias is frozen in RL (it would move the experts
under the policy ratio).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onebase import card, gold
from onebase.data import Problems, problem_rows
from onebase.errors import UserError
from onebase.evaluate import greedy_accuracy
from onebase.grpo.advantage import advantages
from onebase.grpo.batch import MicroBatch, Sample, logp_of, micro_batches
from onebase.grpo.correction import correction_weight
from onebase.grpo.loss import policy_loss, token_weights
from onebase.grpo.mismatch import Mismatch
from onebase.model import checkpoint
from onebase.recipe import Grpo
from onebase.rewards import outcomes
from onebase.rollout import journal
from onebase.rollout.groups import ScoredRollout, prompt_ids, sample_groups
from onebase.rollout.source import make_source
from onebase.rollout.torch_engine import TorchEngine
from onebase.stage import StageRun
from onebase.tokenizer import ChatTokenizer
from onebase.train import state
from onebase.train.optim import Optimizer
from onebase.train.schedule import wsd
from onebase.train.stability import check_finite

FAR = 50_000_021  # places between the problems of the steps and those of a refill
SHOWN = ("reward", "accuracy", "completion_tokens", "live_groups", "eval_accuracy")


def main(run: StageRun) -> dict[str, float]:
    stage: Grpo = run.stage
    assert run.init is not None
    found = gold.check(run, [*stage.data, *stage.evaluate])  # before a model is loaded
    endless = gold.keep_problems(Problems(stage.data, run.seed, run.folders), found)
    held = problem_rows(stage.evaluate, run.seed, stage.eval_problems, run.folders) if stage.evaluate else []
    held = gold.keep(held, found)
    model, tokenizer = checkpoint.load(run.init, run.device, run.recipe.dtype)
    reference = checkpoint.load(run.init, run.device, run.recipe.dtype)[0].eval() if stage.loss.kl else None
    model.train()
    optimizer = Optimizer(model.named_parameters(), stage.optim)
    done, extra = state.load(run.folder / "state", model, optimizer, run.device)
    run.log.truncate_after(done)
    problems = PromptsThatFit(endless, tokenizer, stage.sampling, stage.max_prompt, stage.prompts)
    held = [r for r in held if len(prompt_ids(tokenizer, r, stage.sampling)) <= stage.max_prompt]
    length = stage.max_prompt + stage.sampling.max_tokens
    engine = TorchEngine(model, tokenizer.pad_id, stage.slots, length, record_routes=True)
    if stage.correction.replay_routes and engine.routes is None:
        raise UserError(
            f"stage {run.name}: correction.replay_routes: {run.init} has no routed experts that the engine "
            "could record; leave it out"
        )
    buffer = extra.pop("buffer", {})
    summary: dict[str, float] = dict(extra)
    if held and done == 0:
        before = _evaluate(engine, tokenizer, held, stage)
        run.log.step(0, stage.steps, before, ("eval_accuracy",))
        summary |= {f"before_{k}": v for k, v in before.items()}
    source = make_source(run, stage, model, tokenizer, engine, problems.of_step)
    source.restore(buffer)
    skipped = 0
    try:
        for step in range(done, stage.steps):
            rollouts, metrics = source.of_step(step)
            rollouts += refill(rollouts, stage, step, problems, engine, tokenizer, run.seed)
            samples, fate, signal = select(rollouts, stage, step)
            journal.write(run.folder / "rollouts", step + 1, rollouts, fate)
            start = time.perf_counter()
            factor = wsd(step, stage.steps, stage.optim.warmup, stage.optim.decay, stage.optim.final)
            trained = Update(model, reference, optimizer, stage, tokenizer.pad_id, run.device)(
                samples, factor
            )
            loss, norm = trained.get("loss", 0.0), trained.get("grad_norm", 0.0)
            skipped = check_finite(loss, norm, skipped, run, step)
            metrics |= signal | trained | rollout_metrics(rollouts, tokenizer)
            metrics |= outcomes([r.scored for r in rollouts])
            metrics["seconds_train"] = time.perf_counter() - start
            landed = metrics.get("tokens_landed", metrics["tokens"])
            metrics["tokens_per_second"] = landed / metrics["seconds_generate"]
            metrics["lr"] = stage.optim.lr * factor
            last = step + 1 == stage.steps
            if held and ((step + 1) % stage.eval_every == 0 or last):
                metrics |= _evaluate(engine, tokenizer, held, stage)
            keys = ("reward", "accuracy", "completion_tokens", "eval_accuracy", "eval_tokens")
            summary |= {k: metrics[k] for k in keys if k in metrics}
            run.log.step(step + 1, stage.steps, metrics, SHOWN)
            if (step + 1) % stage.checkpoint_every == 0 and not last:
                kept = {"buffer": source.buffer()}
                state.save(run.folder / "state", step + 1, model, optimizer, summary | kept)
    finally:
        source.close()
    checkpoint.save(run.folder / "checkpoint", model, tokenizer)
    card.write(run.folder / "checkpoint", recipe=run.recipe, stage=run.name, summary=summary, data=stage.data)
    return summary


class PromptsThatFit:
    """The problems of each step; those whose prompt is too long are passed over, the same ones in every
    run."""

    def __init__(
        self, problems: Problems, tokenizer: ChatTokenizer, sampling: Any, most: int, count: int
    ) -> None:
        self.problems, self.tokenizer, self.sampling = problems, tokenizer, sampling
        self.most, self.count = most, count

    def of_step(self, step: int) -> list[dict[str, Any]]:
        """`count` problems."""
        return self.places(range(step * self.count, (step + 1) * self.count))

    def places(self, places: Iterable[int]) -> list[dict[str, Any]]:
        """A place whose problem is too long takes a later one from far behind all steps' own."""
        rows = []
        for place in places:
            for again in range(20):
                row = self.problems.item(place + again * 1_000_003)
                if len(prompt_ids(self.tokenizer, row, self.sampling)) <= self.most:
                    rows.append(row)
                    break
            else:
                raise UserError(f"twenty prompts in a row are longer than max_prompt={self.most}; raise it")
        return rows


def refill(
    rollouts: Sequence[ScoredRollout],
    stage: Grpo,
    step: int,
    problems: PromptsThatFit,
    engine: TorchEngine,
    tokenizer: ChatTokenizer,
    seed: int,
) -> list[ScoredRollout]:
    """Further groups for those without signal, up to `stage.refill` times (dynamic sampling, DAPO, arXiv
    2503.14476, section 3.2), drawn with the trainer's weights as they are.  Deviation: the groups without
    signal stay in the record and in the metrics, so that accuracy and reward are those of the prompts, not of
    the chosen ones."""
    more: list[ScoredRollout] = []
    engine.version = step
    for turn in range(stage.refill):
        live = advantages(*reward_table([*rollouts, *more], stage.group_size), stage.loss.advantage)[1]
        missing = stage.prompts - int(live.sum())
        if missing <= 0:
            break
        first = len(live)
        far = (turn + 1) * FAR + step * stage.prompts
        rows = problems.places(range(far, far + missing))
        groups = (stage.group_size, stage.sampling, stage.rewards, seed, step, first)
        more += sample_groups(engine, tokenizer, rows, *groups)[0]
    return more


def reward_table(rollouts: Sequence[ScoredRollout], group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(reward_PG, valid_PG): the rewards by group, and where there is one."""
    rewards = [r.scored.reward for r in rollouts]
    reward_PG = torch.tensor([x if x is not None else 0.0 for x in rewards]).view(-1, group_size)
    return reward_PG, torch.tensor([x is not None for x in rewards]).view(-1, group_size)


def select(
    rollouts: Sequence[ScoredRollout], stage: Grpo, version: int
) -> tuple[list[Sample], list[str], dict[str, float]]:
    """Training samples with advantages; each rollout's fate; and what the rewards look like."""
    G = stage.group_size
    rewards = [r.scored.reward for r in rollouts]
    reward_PG, valid_PG = reward_table(rollouts, G)
    advantage_PG, live_P = advantages(reward_PG, valid_PG, stage.loss.advantage)
    samples, fate = [], []
    for i, r in enumerate(rollouts):
        p = r.prompt
        if rewards[i] is None:
            fate.append("verifier error")
        elif not live_P[p]:
            fate.append("group without signal")
        else:
            fate.append("trained")
            samples.append(
                Sample(
                    r.rollout.prompt_ids,
                    r.rollout.completion_ids,
                    r.rollout.logp_rollout,
                    float(advantage_PG.view(-1)[i]),
                    p,
                    version - r.rollout.weight_version,
                    r.rollout.routes,
                )
            )
    valid = reward_PG[valid_PG]
    all_right = sum(all(r.scored.correct for r in rollouts[p * G : (p + 1) * G]) for p in range(len(live_P)))
    return (
        samples,
        fate,
        {
            "reward": float(valid.mean()) if len(valid) else 0.0,
            "reward_std": float(valid.std(correction=0)) if len(valid) else 0.0,
            "live_groups": float(live_P.float().mean()),
            "groups_all_right": all_right / len(live_P),
            "verifier_errors": float((~valid_PG).sum()),
        },
    )


def rollout_metrics(rollouts: Sequence[ScoredRollout], tokenizer: ChatTokenizer) -> dict[str, float]:
    lengths = torch.tensor([float(len(r.rollout.completion_ids)) for r in rollouts])
    n, judged = len(rollouts), sum(r.scored.judged for r in rollouts)
    return {
        "accuracy": sum(r.scored.correct for r in rollouts) / max(1, judged),
        "completion_tokens": float(lengths.mean()),
        "completion_tokens_p95": float(lengths.quantile(0.95)),
        "truncated": sum(r.rollout.finish_reason == "length" for r in rollouts) / n,
        "thoughts": sum("</think>" in r.text for r in rollouts) / n,
        "tokens": float(lengths.sum()),
    }


def _evaluate(
    engine: TorchEngine, tokenizer: ChatTokenizer, rows: list[dict[str, Any]], stage: Grpo
) -> dict[str, float]:
    got = greedy_accuracy(engine, tokenizer, rows, stage.rewards, stage.sampling)
    return {f"eval_{key}": got[key] for key in ("accuracy", "tokens", "errors")}


@dataclass(slots=True)
class Update:
    """The optimizer steps on one set of samples."""

    model: Any
    reference: Any
    optimizer: Optimizer
    stage: Grpo
    pad_id: int
    device: str

    def __call__(self, samples: list[Sample], factor: float) -> dict[str, float]:
        """`stage.updates` steps, each on its own share of the prompts; metrics are means over the steps."""
        prompts = sorted({s.prompt for s in samples})
        if not prompts:
            return {}
        pieces = min(self.stage.updates, len(prompts))
        shares = [set(prompts[k::pieces]) for k in range(pieces)]
        parts = [
            micro_batches(
                [s for s in samples if s.prompt in mine], self.stage.micro_tokens, self.pad_id, self.device
            )
            for mine in shares
        ]
        mismatch = Mismatch()
        old = [self._old(piece, mismatch) if pieces > 1 else None for piece in parts]
        sums: dict[str, float] = {}
        for k, piece in enumerate(parts):
            step = self._one(piece, old[k], factor, mismatch)
            for name, value in step.items():
                worst = name.endswith("_max")
                sums[name] = (
                    max(sums.get(name, 0.0), value) if worst else sums.get(name, 0.0) + value / pieces
                )
        return sums | mismatch.metrics()

    @torch.no_grad()
    def _old(self, parts: list[MicroBatch], mismatch: Mismatch) -> list[torch.Tensor]:
        """The trainer's log-probabilities before the first of several updates; its routing is compared with
        the engine's."""
        temperature, replay = self.stage.sampling.temperature, self.stage.correction.replay_routes
        logps = []
        for part in parts:
            logp_NT, _, routing = logp_of(self.model, part, temperature, replay)
            if part.route_NTLK is not None:
                mismatch.add_routes(part.route_NTLK, [r.own_NK for r in routing])
            logps.append(logp_NT)
        return logps

    def _one(
        self, parts: list[MicroBatch], old: list[torch.Tensor] | None, factor: float, mismatch: Mismatch
    ) -> dict[str, float]:
        weights = self._weights(parts)
        sums: dict[str, float] = {}
        load: list[torch.Tensor] = []
        temperature, correction = self.stage.sampling.temperature, self.stage.correction
        corrects = correction.method != "none" or correction.stale_negatives is not None
        for n, (part, weight_NT) in enumerate(zip(parts, weights, strict=True)):
            logp_NT, entropy_NT, routing = logp_of(self.model, part, temperature, correction.replay_routes)
            logp_old_NT = logp_NT.detach() if old is None else old[n]
            mismatch.add(logp_old_NT, part.logp_rollout_NT, part.mask_NT, part.staleness_N)
            if part.route_NTLK is not None and old is None:
                mismatch.add_routes(part.route_NTLK, [r.own_NK for r in routing])
            factor_NT = None
            if corrects:
                factor_NT = correction_weight(
                    logp_old_NT, part.logp_rollout_NT, logp_NT.detach(), part.advantage_N, part.mask_NT,
                    correction,
                )  # fmt: skip
            logp_ref_NT = None
            if self.reference is not None:
                with torch.no_grad():
                    logp_ref_NT = logp_of(self.reference, part, temperature)[0]
            value, metrics = policy_loss(
                logp_NT,
                part.logp_rollout_NT,
                part.advantage_N,
                part.mask_NT,
                weight_NT,
                self.stage.loss,
                logp_ref_NT,
                logp_old_NT if correction.method != "none" else None,
                factor_NT,
            )
            value.backward()
            metrics |= {"loss": float(value.detach()), "entropy": float((entropy_NT * weight_NT).sum())}
            for name, x in metrics.items():
                sums[name] = max(sums.get(name, 0.0), x) if name.endswith("_max") else sums.get(name, 0.0) + x
            if routing:
                load.append(torch.stack([r.load_E for r in routing]))
        sums["grad_norm"] = float(self.optimizer.step(factor))
        if load:
            total = torch.stack(load).sum(0).float()
            sums["router_load_max"] = float((total.max(1).values / total.mean(1).clamp(min=1)).mean())
        return sums

    def _weights(self, parts: list[MicroBatch]) -> list[torch.Tensor]:
        """Token weights over all micro-batches together."""
        T = max(p.mask_NT.shape[1] for p in parts)
        mask = torch.zeros(sum(len(p.mask_NT) for p in parts), T, dtype=torch.bool, device=self.device)
        prompt = torch.cat([p.prompt_N for p in parts])
        n = 0
        for p in parts:
            mask[n : n + len(p.mask_NT), : p.mask_NT.shape[1]] = p.mask_NT
            n += len(p.mask_NT)
        whole = token_weights(mask, prompt, self.stage.loss.aggregate)
        return [
            w[:, : p.mask_NT.shape[1]]
            for w, p in zip(whole.split([len(p.mask_NT) for p in parts]), parts, strict=True)
        ]
