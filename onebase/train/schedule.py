"""Warm-up, stable, decay: the learning rate's shape over a stage (MiniCPM, arXiv 2404.06395, section 4)."""


def wsd(step: int, total: int, warmup: int, decay: float, final: float) -> float:
    """Factor on the learning rate at `step` (0-based): linear up over `warmup` steps, 1, then linear down to
    `final` over the last `decay` share of the steps."""
    if step < warmup:
        return (step + 1) / warmup
    start = min(total * (1 - decay), total - 1)  # a decay of less than one step is one step
    if decay == 0 or step < start:
        return 1.0
    done = min(1.0, (step + 1 - start) / max(1.0, total - start))
    return 1.0 + (final - 1.0) * done
