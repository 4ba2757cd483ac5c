"""The recipe's schema: one YAML file, stages by name, small sections.  `recipe_loader.py` reads it strictly.

Field documents are strings under the field; they also feed `onebase schema` and error messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onebase.model.config import ModelConfig


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class Source(Section):
    """Where rows come from: exactly one of world, path, hub, stage, corpus."""

    world: str | None = None
    """Family of generated problems (`onebase ls worlds`)."""
    path: str | None = None
    """Local file or folder: text, source code, JSONL or Parquet."""
    hub: str | None = None
    """Hugging Face data set id, with `:config` behind it where it has several."""
    stage: str | None = None
    """Another stage whose output rows are used (a reject_sample stage)."""
    corpus: str | None = None
    """Pretrain stages: a folder that `onebase corpus` prepared; its sources keep their weights to each
    other."""
    weight: float = Field(1.0, gt=0)
    """Share of this source among the sources, in documents."""
    split: str = "train"
    """Worlds: train, heldout or ood.  Hub: the split's name.  Corpus: train or heldout."""
    rows: tuple[int, int] | None = None
    """[start, stop) rows of a path or hub source, to hold some out."""
    difficulty: tuple[int, int] | None = None
    """Worlds: inclusive range; null: the family's default."""
    styles: dict[str, float] = {"direct": 1.0}
    """Worlds: how the answer is written, with weights: direct (answer at once) or a trace style inside
    <think>."""
    fields: dict[str, str] = {}
    """Renaming of row fields: ours to theirs, as in {problem: question}."""
    answer_after: str | None = None
    """Keep only what follows this mark in the answer field (GSM8K: '####')."""
    prompt: str = "{problem}"
    """Path and hub: the user's turn, with the row's problem put in for {problem}."""
    glob: str = "**/*"
    """Which files of a folder."""

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        given = [k for k in ("world", "path", "hub", "stage", "corpus") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of world, path, hub, stage, corpus; given: {given or 'none'}")
        return self


class Optim(Section):
    """Optimizer and schedule (warm-up, stable, decay)."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by orthogonalised momentum, all else by AdamW, at one learning rate."""
    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled; on matrices only."""
    warmup: int = 10
    """Steps of linear warm-up."""
    decay: float = Field(0.0, ge=0, le=1)
    """Last share of the steps over which the learning rate falls linearly to `final`."""
    final: float = Field(0.05, ge=0)
    """Learning rate at the end, as a share of `lr`."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""


class Batch(Section):
    """Packed training batches: rows of `length` tokens."""

    rows: int = Field(16, gt=0)
    """Sequences of a step."""
    length: int = Field(256, gt=1)
    """Tokens of a sequence."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches that a step is split into, to save memory; the result is the same."""
    recompute: bool = False
    """Whether the backward pass computes each layer's activations again instead of keeping them: less memory,
    about a third more time, the same result."""


class Stability(Section):
    """What is done about spikes of the loss (rules in onebase/train/spikes.py, docs/stability.md)."""

    skip: float = Field(8.0, ge=0)
    """Fast spikes: an update is skipped whose loss or log gradient norm lies so many robust standard
    deviations above the last `window` steps; 0: only where it is not finite."""
    rollback: float = Field(3.0, ge=0)
    """Slow spikes: the loss stays so many robust standard deviations above its best recent level; training
    returns to an earlier state and leaves the bad data out.  0: never."""
    window: int = Field(128, ge=16)
    """Steps that a loss is compared with."""
    patience: int = Field(32, ge=4)
    """Steps that a loss must stay up to be a slow spike."""
    rollbacks: int = Field(3, ge=0)
    """Most returns of a stage; at the next slow spike it stops."""
    rollback_lr: float = Field(1.0, gt=0, le=1)
    """The learning rate is multiplied by this at every return."""
    logits_every: int = Field(20, ge=0)
    """Steps between measurements of the largest attention logit of each layer and head, on one row of the
    batch; 0: never."""
    qk_clip: float | None = Field(None, gt=0)
    """Largest attention logit allowed; a head beyond it has its query and key weights scaled down when the
    logits are measured (Kimi K2: 100).  null: off."""

    @model_validator(mode="after")
    def _clip_needs_logits(self) -> Stability:
        if self.qk_clip is not None and not self.logits_every:
            raise ValueError("qk_clip: needs measured logits; set logits_every to 1 or more")
        return self


class Sampling(Section):
    """How completions are drawn."""

    max_tokens: int = Field(128, gt=0)
    """Longest completion in tokens."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0 is off."""
    think: Literal["free", "open"] = "free"
    """free: the model decides whether to think; open: the prompt ends with <think>."""


class Term(Section):
    """One term of a reward: weight times the verifier's reward (onebase/rewards.py has the rule).  The first
    term says what is correct."""

    verifier: str
    """Built-in name, entry point or path.py:function."""
    name: str | None = None
    """What gates, records and metrics call the term; null: the verifier (verifier#2 where it is used
    twice)."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """0: judged and told, not counted.  The sum may leave [0, 1]."""
    schedule: list[tuple[int, float]] = []
    """Points [step, share of the weight], in straight lines between and level outside of them; steps from 0.
    [[0, 0], [50, 1]] grows over 50 steps, [[99, 1], [100, 0]] ends with step 99."""
    cap: float | None = Field(None, gt=0, le=1)
    """Largest reward that counts, before the weight."""
    gate: str | None = None
    """NAME: counts only where that term of this list counts and gave more than 0.  NAME.DETAIL: only where
    that detail of its verdict is true.  Where the gate is closed, the verifier is not called."""
    options: dict[str, Any] = {}
    """Row fields handed to the verifier for every completion."""
    timeout: float | None = Field(None, gt=0)
    """Seconds after which one verdict is an error and its process is killed; null: what the verifier asks
    for, else 10."""
    workers: int | None = Field(None, gt=0)
    """Processes for this verifier (on Ray: of each node); null: what it asks for, else one for each core."""

    @model_validator(mode="after")
    def _schedule_rises(self) -> Term:
        steps = [step for step, _ in self.schedule]
        if steps != sorted(set(steps)) or any(s < 0 for s in steps):
            raise ValueError(f"schedule: its steps must rise from 0 on; given: {steps}")
        if not all(abs(share) < float("inf") for _, share in self.schedule):
            raise ValueError("schedule: shares must be finite")
        return self


class Loss(Section):
    """Policy loss (formulas in grpo/loss.py)."""

    name: Literal["cispo", "grpo", "gspo"] = "cispo"
    """cispo: clipped weight, every token keeps its gradient; grpo: PPO's clip per token; gspo: clip per
    sequence."""
    eps_low: float = Field(0.2, ge=0)
    """grpo, gspo: the ratio is clipped below at 1 - eps_low."""
    eps_high: float = Field(0.28, ge=0)
    """grpo, gspo: the ratio is clipped above at 1 + eps_high."""
    cap: float = Field(5.0, gt=0)
    """cispo: largest importance weight."""
    aggregate: Literal["token", "prompt", "sequence"] = "prompt"
    """Mean over all tokens; over prompts of the mean over the prompt's tokens; over sequences of their
    mean."""
    advantage: Literal["batch", "group", "none"] = "batch"
    """Reward less the group's mean, divided by the batch's or the group's standard deviation, or by
    nothing."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL to the reference, the stage's initial model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"


class Engines(Section):
    """Who generates the rollouts."""

    name: Literal["auto", "torch", "vllm"] = "auto"
    """torch: the trainer's own weights in place, no copy and no sync (with replicas: copies of them); vllm;
    auto: torch below a billion parameters or where vLLM is not installed."""
    replicas: int = Field(0, ge=0)
    """Engines as Ray actors; 0: one engine in the trainer's process."""
    staleness: int = Field(0, ge=0)
    """Most weight versions that a rollout may be behind the trainer: engines generate so many steps ahead.
    Needs replicas."""
    mismatch: Literal["stop", "warn"] = "stop"
    """What to do where an engine turns out not to hold the trainer's weights."""

    @model_validator(mode="after")
    def _ahead_needs_engines(self) -> Engines:
        if self.staleness and not self.replicas:
            raise ValueError("staleness: engines in the trainer's process cannot work ahead; set replicas: 1")
        return self


class Correction(Section):
    """Correction for an engine that is not the trainer (formulas in grpo/correction.py)."""

    method: Literal["none", "truncate", "mask"] = "none"
    """none: the loss's ratio is taken against the engine's own log-probabilities; truncate: the weight is at
    most `high` (TIS); mask: outside [low, high] it is 0 (IcePop at token level)."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """Ratio of a token, of the sequence (product), or the product's T-th root."""
    low: float = Field(0.5, ge=0)
    high: float = Field(2.0, gt=0)
    stale_negatives: float | None = None
    """Leave out sequences with a negative advantage whose mean log-ratio engine/trainer is above this."""
    replay_routes: bool = False
    """Train with the experts that the engine chose (R3, arXiv 2510.11370)."""

    @model_validator(mode="after")
    def _ordered(self) -> Correction:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class StageBase(Section):
    init: str | None = None
    """Checkpoint to start from: a stage, a folder or a hub id; null for a new model."""
    seed: int = 0
    """Added to the recipe's seed."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps between saved states."""


class Pretrain(StageBase):
    """Next-token training on packed documents."""

    kind: Literal["pretrain"]
    data: list[Source] = Field(min_length=1)
    heldout: list[Source] = []
    """Sources of the held-out loss."""
    steps: int = Field(gt=0)
    batch: Batch = Batch()
    optim: Optim = Optim()
    document_mask: bool = True
    """Whether documents of one packed row are hidden from each other."""
    balance_speed: float = 1e-3
    """Step of the router's selection bias after each update (V3: 0.001, then 0)."""
    balance_alpha: float = 1e-4
    """Weight of the sequence-wise balance loss (V3: 0.0001)."""
    mtp_weight: float = 0.3
    """Weight of the multi-token prediction loss (V3: 0.3, then 0.1)."""
    prompt_loss: bool = True
    """Whether the user's turn of a world's document is trained, too; its random digits cannot be learned."""
    embedding_std: float | None = None
    """Standard deviation of a new model's embedding; null: the model's initializer_range."""
    stability: Stability = Stability()
    eval_every: int = Field(100, gt=0)


class Sft(StageBase):
    """Supervised training on conversations, loss on the assistant's tokens."""

    kind: Literal["sft"]
    data: list[Source] = Field(min_length=1)
    heldout: list[Source] = []
    steps: int = Field(gt=0)
    batch: Batch = Batch()
    optim: Optim = Optim(lr=1e-4)
    think: Literal["free", "open"] = "free"
    """free: the opening <think> is trained; open: it stands in the prompt and is not."""
    balance_speed: float = 0.0
    balance_alpha: float = 1e-4
    mtp_weight: float = 0.1
    stability: Stability = Stability()
    eval_every: int = Field(100, gt=0)


class Grpo(StageBase):
    """Reinforcement learning with verifiable rewards."""

    kind: Literal["grpo"]
    data: list[Source] = Field(min_length=1)
    steps: int = Field(gt=0)
    prompts: int = Field(32, gt=0)
    """Prompts of a step."""
    group_size: int = Field(8, gt=1)
    """Completions of a prompt."""
    updates: int = Field(1, gt=0)
    """Optimizer steps on one set of rollouts (R1: 16)."""
    micro_tokens: int = Field(16384, gt=0)
    """Largest padded tokens of one forward pass."""
    slots: int = Field(256, gt=0)
    """Completions that are generated at the same time."""
    max_prompt: int = Field(128, gt=0)
    """Longest prompt in tokens; longer ones are passed over."""
    sampling: Sampling = Sampling()
    engines: Engines = Engines()
    rewards: list[Term] = Field(min_length=1)
    bad_gold: Literal["refuse", "drop"] = "refuse"
    """What to do, before a model is loaded, with rows whose own answer a verifier cannot understand."""
    refill: int = Field(0, ge=0)
    """Dynamic sampling (DAPO): how often groups without signal are replaced by other prompts' groups before
    the step is trained."""
    loss: Loss = Loss()
    correction: Correction = Correction()
    optim: Optim = Optim(lr=1e-6, weight_decay=0.0)
    evaluate: list[Source] = []
    """Problems of the held-out greedy accuracy."""
    eval_problems: int = 128
    eval_every: int = Field(20, gt=0)


class RejectSample(StageBase):
    """Sample completions from `init`, keep the verified ones as SFT rows."""

    kind: Literal["reject_sample"]
    data: list[Source] = Field(min_length=1)
    problems: int = Field(gt=0)
    samples: int = Field(4, gt=0)
    """Completions drawn for each problem."""
    keep: int = Field(1, gt=0)
    """Most completions kept of one problem (the shortest correct ones)."""
    slots: int = Field(256, gt=0)
    max_prompt: int = Field(128, gt=0)
    """Longest prompt in tokens; longer ones are passed over."""
    sampling: Sampling = Sampling()
    rewards: list[Term] = Field(min_length=1)
    """Kept where the combined reward is at least `threshold`."""
    bad_gold: Literal["refuse", "drop"] = "refuse"
    """What to do, before a model is loaded, with rows whose own answer a verifier cannot understand."""
    threshold: float = 1.0
    require_think: bool = True
    """Keep only completions with a closed thought."""


class Eval(StageBase):
    """Measure checkpoints on problems."""

    kind: Literal["eval"]
    models: dict[str, str] = Field(min_length=1)
    """Label in the table to stage, folder or hub id."""
    data: list[Source] = Field(min_length=1)
    problems: int = Field(256, gt=0)
    """Problems of each source."""
    samples: int = Field(8, gt=0)
    """Completions of a problem at `sampling`, for pass@k and the majority; greedy comes on top."""
    slots: int = Field(256, gt=0)
    max_prompt: int = Field(128, gt=0)
    """Longest prompt in tokens; longer ones are passed over."""
    sampling: Sampling = Sampling()
    rewards: list[Term] = Field(min_length=1)
    bad_gold: Literal["refuse", "drop"] = "refuse"
    """What to do, before a model is loaded, with rows whose own answer a verifier cannot understand."""


Stage = Annotated[Pretrain | Sft | Grpo | RejectSample | Eval, Field(discriminator="kind")]
TRAINED = ("pretrain", "sft", "grpo")  # kinds whose output is a checkpoint


class TokenizerSection(Section):
    """Byte-level BPE trained on the first pretrain stage's own corpus."""

    vocab_size: int = Field(512, ge=300)
    """Most entries, special tokens included."""
    sample_bytes: int = Field(4_000_000, gt=0)
    """How much of the corpus is read to train it."""


class Parallel(Section):
    """How pretrain and sft stages are divided over processes, one per GPU or several on a CPU; the result is
    the same (docs/parallel.md).  Other kinds of stage run in one process."""

    processes: int = Field(1, gt=0)
    """Processes that `onebase run` starts; under torchrun as many as it started."""
    mode: Literal["data", "fsdp"] = "data"
    """data: every process holds all weights but other processes' experts; fsdp: weights, gradients and
    optimizer state are divided over all."""
    expert: int = Field(1, gt=0)
    """Processes over which the experts of a layer are divided."""
    context: int = Field(1, gt=0)
    """Processes over which the tokens of a row are divided."""

    @model_validator(mode="after")
    def _divisible(self) -> Parallel:
        for key in ("expert", "context"):
            if self.processes % getattr(self, key):
                raise ValueError(f"{key}={getattr(self, key)} does not divide processes={self.processes}")
        return self


class Recipe(Section):
    name: str
    """Folder under `runs/`."""
    seed: int = 0
    hardware: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; master weights and optimizer state are float32."""
    runs: str = "runs"
    """Folder that holds the run's folder."""
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelConfig = ModelConfig()
    parallel: Parallel = Parallel()
    stages: dict[str, Stage] = Field(min_length=1)
