"""The model's shape, in the names of the `deepseek_v3` Hugging Face config (DeepSeek-V3, arXiv 2412.19437,
section 4.2).

One deviation in names: none.  Fields that the format has and that onebase does not vary (`hidden_act`,
`moe_layer_freq`, `topk_method`, `scoring_func`, ...) are written by `to_hf` and checked by `from_hf`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from onebase.errors import UserError

FIXED = {
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "rope_interleave": True,
    "attention_dropout": 0.0,
}


# Fields whose absence means the same to transformers as our default
OPTIONAL = {
    "q_lora_rank",
    "attention_bias",
    "tie_word_embeddings",
    "num_nextn_predict_layers",
    "initializer_range",
    "rope_theta",
    "rms_norm_eps",
    "max_position_embeddings",
}


class YarnConfig(BaseModel):
    """YaRN context extension (arXiv 2309.00071) as DeepSeek-V3 uses it, on the RoPE dimensions only."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    type: Literal["yarn"] = "yarn"
    factor: float = 40.0
    """How many times longer the context becomes."""
    original_max_position_embeddings: int = 4096
    """Context length of the training before the extension."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


class ModelConfig(BaseModel):
    """Shape of a DeepSeek-V3-style model.  Defaults are a laptop's; V3's own values are in the field's
    documents."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    vocab_size: int = 512
    """V: rows of the embedding and of the head.  Set from the tokenizer when a recipe trains one."""
    hidden_size: int = 128
    """D: width of the residual stream."""
    num_hidden_layers: int = 4
    """Layers, the multi-token prediction layer not counted."""
    num_attention_heads: int = 4
    """H: heads; in MLA every head has its own key and value, made from one shared latent."""
    q_lora_rank: int | None = None
    """Rank of the compressed query; null: one plain projection."""
    kv_lora_rank: int = 64
    """Rank of the latent that is cached for keys and values (512 where vLLM's MLA kernels are to serve
    it)."""
    qk_nope_head_dim: int = 24
    """Dimensions per head without position."""
    qk_rope_head_dim: int = 8
    """Dimensions per head that RoPE rotates; the key's are shared by all heads."""
    v_head_dim: int = 32
    """Dimensions of a head's value."""
    intermediate_size: int = 256
    """Width of the SwiGLU of the first, dense layers."""
    first_k_dense_replace: int = 1
    """How many first layers are dense."""
    moe_intermediate_size: int = 64
    """F: width of one routed expert; the shared experts together have n_shared_experts times this."""
    n_routed_experts: int = 8
    """E: routed experts of a layer."""
    n_shared_experts: int = 1
    """Experts that see every token."""
    num_experts_per_tok: int = 2
    """Routed experts that a token is sent to."""
    n_group: int = 1
    """Groups of experts for the group-limited choice; 1 turns it off."""
    topk_group: int = 1
    """Groups that a token may choose from."""
    norm_topk_prob: bool = True
    """Whether the chosen experts' scores are normalised to sum 1."""
    routed_scaling_factor: float = 1.0
    """Factor on the normalised scores (2.5 in V3)."""
    rope_theta: float = 10000.0
    rope_scaling: YarnConfig | None = None
    """YaRN; leave it null until a long-context stage."""
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    """Biases on q_a_proj, kv_a_proj_with_mqa and o_proj."""
    num_nextn_predict_layers: int = 1
    """Multi-token prediction depth: 0 or 1."""
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    """Standard deviation of the initial weights (0.006 in V3)."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        E, G = self.n_routed_experts, self.n_group
        assert E % G == 0 and (G == 1 or E // G >= 2), f"{E} experts do not make {G} groups of at least two"
        assert self.topk_group <= G, f"topk_group={self.topk_group} > n_group={G}"
        allowed = E // G * self.topk_group
        assert self.num_experts_per_tok <= allowed, (
            f"num_experts_per_tok={self.num_experts_per_tok}, but only {allowed} experts can be chosen"
        )
        assert self.qk_rope_head_dim % 2 == 0, f"qk_rope_head_dim={self.qk_rope_head_dim} is odd"
        assert self.num_nextn_predict_layers in (0, 1), "num_nextn_predict_layers is 0 or 1"
        assert self.rms_norm_eps == 1e-6, (
            f"rms_norm_eps={self.rms_norm_eps}: transformers keeps 1e-6 in the latents' norms whatever this "
            "field says, so another value would make one folder two models"
        )
        assert self.n_shared_experts >= 1, "n_shared_experts is at least 1"
        return self

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def to_hf(self, *, bos_token_id: int, eos_token_id: int, pad_token_id: int, dtype: str) -> dict[str, Any]:
        """The content of config.json that transformers and vLLM load as DeepseekV3ForCausalLM."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **self.model_dump(),
            **FIXED,
            "num_key_value_heads": self.num_attention_heads,
            "moe_router_dtype": "float32",  # otherwise vLLM runs the gate in the model's dtype
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "torch_dtype": dtype,
            "use_cache": True,
        }

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str) -> ModelConfig:
        """Read a deepseek_v3 config.json, of transformers 4 or 5.  `where` names the file in errors."""
        if config.get("model_type") != "deepseek_v3":
            raise UserError(f"{where}: model_type is {config.get('model_type')!r}, expected 'deepseek_v3'")
        if "quantization_config" in config:
            raise UserError(
                f"{where}: the folder is quantised; onebase trains bf16 or fp32 weights. Convert it first."
            )
        for key, value in FIXED.items():
            if config.get(key) not in (None, value):
                raise UserError(f"{where}: {key} is {config[key]!r}; onebase's model has {value!r}")
        fields = {k: config[k] for k in cls.model_fields if k in config}
        heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
        if kv_heads not in (None, heads):
            raise UserError(
                f"{where}: num_key_value_heads is {kv_heads}; in MLA it equals num_attention_heads, {heads}"
            )
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise UserError(f"{where}: rope_scaling is {rope!r}; expected null or the fields of YaRN")
        if "rope_theta" in rope:
            fields["rope_theta"] = rope["rope_theta"]
        kind = rope.get("type", rope.get("rope_type", "default"))
        if kind not in ("default", "yarn"):
            raise UserError(f"{where}: rope scaling {kind!r} is unknown here; allowed: none, 'yarn'")
        known = YarnConfig.model_fields
        unknown = {k for k, v in rope.items() if v is not None} - set(known) - {"rope_type", "rope_theta"}
        if kind == "yarn" and unknown:
            raise UserError(f"{where}: rope_scaling field {sorted(unknown)[0]!r} is not part of this model")
        fields["rope_scaling"] = (
            {k: rope[k] for k in known if k in rope} | {"type": "yarn"} if kind == "yarn" else None
        )
        if fields["rope_scaling"]:  # left out means off to transformers, not our default
            fields["rope_scaling"] = {"mscale": 0.0, "mscale_all_dim": 0.0} | fields["rope_scaling"]
        missing = [f for f in cls.model_fields if f not in fields and f not in OPTIONAL]
        if missing:
            raise UserError(
                f"{where}: {missing[0]} is missing; the format's default is not a shape of this model"
            )
        try:
            return cls(**fields)
        except ValueError as e:
            raise UserError(f"{where}: {e}") from e
