"""Does a run of token ids repeat itself, with a short period, too many times?

The check of OLMo-core's InstanceFilterConfig (github.com/allenai/OLMo-core, data/numpy_dataset.py: periods 1
to 13, more than 32 repeats).  Such text (a forum of nothing but "mmmm...") made a known model's loss explode,
and no filter on characters sees what a tokenizer makes of it.  Deviation: OLMo masks the instance's loss;
here the document is left out before it is packed.

    a block of p ids stands R + 1 times in a row  <=>  ids[j] == ids[j + p] for p * R indices j in a row
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def repeating_period(ids: NDArray[np.integer], most_period: int = 13, most_repeats: int = 32) -> int | None:
    """The shortest period p <= most_period whose block stands more than `most_repeats` times in a row; None
    where there is none.

    A run of p * R equalities holds one at a multiple of p * R, so only these are looked at first: the cost is
    about N / R comparisons for each period, all of them only where one hits.
    """
    for p in range(1, most_period + 1):
        need = p * most_repeats
        if len(ids) < need + p:
            return None  # longer periods need still more ids
        if (ids[p::need] != ids[:-p:need]).all():
            continue
        unequal = np.flatnonzero(ids[p:] != ids[:-p])
        edges = np.concatenate([[-1], unequal, [len(ids) - p]])
        if (np.diff(edges) - 1).max() >= need:
            return p
    return None
