"""The compiled loop of `order.Interleave`. Import it inside functions: numba takes half a second.

Letters: D datasets; n samples.
"""

import numpy as np

from quadpipe.compiled import compiled


@compiled
def take_turns(
    shares: np.ndarray,
    taken: np.ndarray,
    credits: np.ndarray,
    datasets: np.ndarray,
    numbers: np.ndarray,
) -> None:
    """Fill datasets and numbers, int64 `[n]`, with the next n samples; update taken and credits.

    shares, taken, credits: int64 `[D]`. taken: samples so far. credits: shares times all samples so
    far, less the sum of the shares times `taken`. A dataset may take a turn if it has less than its
    share; of these the one does that would be the first to be a whole sample behind its share. That
    is earliest deadline first with the windows of P-fair scheduling (Baruah et al., 1996), which
    keeps every dataset less than one sample from its share at all times.
    """
    total = shares.sum()
    for place in range(len(datasets)):
        chosen, soonest = -1, np.inf
        for dataset in range(len(shares)):
            credits[dataset] += shares[dataset]
            if credits[dataset] > 0:
                deadline = (total - credits[dataset]) / shares[dataset]
                if deadline < soonest:
                    chosen, soonest = dataset, deadline
        credits[chosen] -= total
        datasets[place], numbers[place] = chosen, taken[chosen]
        taken[chosen] += 1
