"""DeepSeekMoE: routed and shared experts, balanced by a selection bias (V3, arXiv 2412.19437, section 2.1.2).

    s_e   = sigmoid(u . w_e)                                   affinity, float32 (equation 15)
    chosen = top-k of s + b, within the topk_group best groups   b steers the choice only (equation 16)
    g_e   = s_e / sum of the chosen s * routed_scaling_factor    gates (equations 13, 14)
    y     = sum g_e FFN_e(u) + FFN_shared(u)                     (equation 12)

A group's score is the sum of its two best biased scores; experts outside the chosen groups are masked with
-inf (zero would win against negative biases).  No token is dropped: rows are sorted by expert and multiplied
group by group; an expert may have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebase.kernels.expert_rows import Rows, by_expert
from onebase.kernels.grouped_linear import grouped_linear
from onebase.kernels.router import choose, gates_ref
from onebase.kernels.router_logits import router_logits
from onebase.kernels.swiglu import swiglu
from onebase.model.config import ModelConfig

if TYPE_CHECKING:
    from onebase.train.context import Context


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        # float32 always: in bf16 the small updates would vanish
        self.register_buffer(
            "e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32)
        )
        self.K, self.groups, self.topk_group = config.num_experts_per_tok, config.n_group, config.topk_group
        self.normalise, self.factor = config.norm_topk_prob, config.routed_scaling_factor

    def scores(self, x_ND: Tensor) -> Tensor:
        """score_NE, float32."""
        return router_logits(x_ND, self.weight).sigmoid()

    def choose(self, score_NE: Tensor) -> tuple[Tensor, Tensor]:
        """(index_NK, gate_NK) without gradient."""
        return choose(
            score_NE,
            self.e_score_correction_bias,
            self.K,
            self.groups,
            self.topk_group,
            self.normalise,
            self.factor,
        )

    def forward(self, x_ND: Tensor, route_NK: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(gate_NK, index_NK, score_NE, own_NK).  `route_NK` replays choices made elsewhere (R3, arXiv
        2510.11370: own scores, restricted to those experts), but for tokens whose first entry is negative;
        own_NK is what this router would have chosen."""
        score_NE = self.scores(x_ND)
        with torch.no_grad():
            own_NK = index_NK = self.choose(score_NE.detach())[0]
            if route_NK is not None:
                index_NK = torch.where(route_NK[:, :1] < 0, own_NK, route_NK)
        return gates_ref(score_NE, index_NK, self.normalise, self.factor), index_NK, score_NE, own_NK


class Routing(NamedTuple):
    """What one layer's router did in a forward pass."""

    load_E: Tensor
    """Tokens per expert, int64."""
    balance: Tensor
    """Sequence-wise balance loss before alpha, float32 scalar (equations 17 to 20)."""
    own_NK: Tensor
    """This router's own choice for the N = B T tokens, whatever was replayed."""


class Experts(nn.Module):
    """All routed experts of a layer, stacked: gate and up [E, 2F, D], down [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * width, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, width))

    def forward(self, x_ND: Tensor, gate_NK: Tensor, rows: Rows) -> Tensor:
        """The gates are applied before the down projection, on F numbers per row instead of D: the same sum
        (equation 12), and `down_proj`'s output need not be kept for the backward (SonicMoE, arXiv
        2512.14080)."""
        K = gate_NK.shape[1]
        gate_up = grouped_linear(
            _Rows.apply(x_ND, rows.order_M, rows.back_M, K), self.gate_up_proj, rows.end_E
        )
        gate_M1 = _Rows.apply(gate_NK.view(-1, 1), rows.order_M, rows.back_M, 1)
        hidden = swiglu(gate_up, gate_M1[:, 0])
        out_MD = grouped_linear(hidden, self.down_proj, rows.end_E)
        return _Rows.apply(out_MD, rows.back_M, rows.order_M, 1).unflatten(0, (-1, K)).sum(1)


class _Rows(torch.autograd.Function):
    """x[index // K], where `inverse` undoes the permutation `index`: the backward is a gather and a sum
    over K, much cheaper than the scattered addition that autograd would do, and deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index_M: Tensor, inverse_M: Tensor, K: int) -> Tensor:
        ctx.save_for_backward(inverse_M)
        ctx.K = K
        return x.index_select(0, index_M // K if K > 1 else index_M)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_M,) = ctx.saved_tensors
        grad = grad.index_select(0, inverse_M)
        return (grad.unflatten(0, (-1, ctx.K)).sum(1) if ctx.K > 1 else grad), None, None, None


class MoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = SwiGLU(
            config.hidden_size, config.moe_intermediate_size * config.n_shared_experts
        )
        self.dispatch: Callable[..., Tensor] | None = None  # the way to experts of other processes
        self.context: Context | None = None  # where rows are divided over processes

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor | None = None, route_BTK: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """`mask_BT` marks the tokens that count for load and balance (padding does not); `route_BTK` replays
        choices (`Router.forward`)."""
        x_ND = x_BTD.flatten(0, 1)
        route_NK = None if route_BTK is None else route_BTK.flatten(0, 1)
        gate_NK, index_NK, score_NE, own_NK = self.gate(x_ND, route_NK)
        E = score_NE.shape[1]
        rows = by_expert(index_NK, E)
        if self.dispatch is not None:
            out_ND = self.dispatch(self.experts, self.shared_experts, x_ND, gate_NK, rows)
        else:
            out_ND = self.experts(x_ND, gate_NK, rows) + self.shared_experts(x_ND)
        shape = x_BTD.shape[:2]
        balance, load_E = torch.zeros((), device=x_ND.device), rows.count_E
        if self.training:
            if mask_BT is not None:
                load_E = (mask_BT.float().view(1, -1) @ _chosen(index_NK, E))[0].long()
            balance = sequence_balance(score_NE.view(*shape, E), index_NK.shape[1], mask_BT, self.context)
        routing = Routing(load_E, balance, own_NK)
        return out_ND.view_as(x_BTD), routing

    def decode(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(output, index_BK) of one token per row."""
        index_BK, gate_BK = self.gate.choose(self.gate.scores(x_BD))
        rows = by_expert(index_BK, self.gate.weight.shape[0])
        return self.experts(x_BD, gate_BK, rows) + self.shared_experts(x_BD), index_BK


def _chosen(index: Tensor, E: int) -> Tensor:
    """[..., E], 1.0 where an expert is among [..., K].  Counting by sums over it needs no host
    synchronisation and no atomic additions onto a few numbers."""
    return torch.zeros(*index.shape[:-1], E, device=index.device).scatter_(-1, index, 1.0)


def sequence_balance(
    score_BTE: Tensor, K: int, mask_BT: Tensor | None, context: Context | None = None
) -> Tensor:
    """Sequence-wise balance loss, sum_e f_e P_e per row, averaged over rows (equations 17 to 20); float32
    scalar.

    f_e is E / (K T) times the row's tokens that have e among their K best affinities (equation 18: of s,
    neither the bias nor the groups play a part); P_e the mean of the normalised affinity.  Its minimum is
    1.  Where rows are divided over processes, f_e and the length are the whole row's, and the processes'
    losses add up to the row's."""
    B, T, E = score_BTE.shape
    score_NE = score_BTE.detach().flatten(0, 1)
    index_BTK = choose(score_NE, torch.zeros_like(score_NE[0]), K, 1, 1, False, 1.0)[0].view(B, T, K)
    one_BT = torch.ones(B, T, device=score_BTE.device) if mask_BT is None else mask_BT.float()
    best_BE = torch.bmm(one_BT.unsqueeze(1), _chosen(index_BTK, E))[:, 0]
    length_B1 = one_BT.sum(1, keepdim=True)
    if context is not None:
        best_BE, length_B1 = context.sum(best_BE), context.sum(length_B1)
    length_B1 = length_B1.clamp(min=1)
    f_BE = best_BE * (E / K) / length_B1
    p_BTE = score_BTE / score_BTE.sum(-1, keepdim=True)
    p_BE = torch.bmm(one_BT.unsqueeze(1), p_BTE)[:, 0] / length_B1
    return (f_BE * p_BE).sum(1).mean()


@torch.no_grad()
def update_bias(router: Router, load_E: Tensor, speed: float | Tensor) -> None:
    """Raise the bias of underloaded experts and lower that of overloaded ones by `speed` (section 2.1.2).

    Deviation: the step's mean is taken off (as Moonlight and torchtitan do), so that the bias does not
    drift."""
    step = torch.sign(load_E.float().mean() - load_E.float())
    router.e_score_correction_bias += speed * (step - step.mean())
