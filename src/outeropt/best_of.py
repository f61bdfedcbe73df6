"""The best of k draws: which of n it is, and how likely."""

import numpy as np
from jaxtyping import Float


def chances(n: int, most: int | None = None) -> Float[np.ndarray, "ks n"]:
    """`[k - 1, i - 1]`: the chance that place i of n (1 is best) is the best of k drawn without replacement.

    `C(n - i, k - 1) / C(n, k)`, for k from 1 to `most` (n if None). The mean of sorted values by these
    weights is the unbiased estimate of the best of k trials of a random search of which n have been run (Tang
    et al. 2020, "Showing Your Work Doesn't Always Work", arXiv 2004.13705).
    """
    # By logarithms: binomials of a thousand are no floating numbers.
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k, worse = np.arange(1, (n if most is None else most) + 1)[:, None], n - np.arange(1, n + 1)[None]
    possible = worse >= k - 1
    others = np.where(possible, worse - k + 1, 0)
    ways = factorial[worse] - factorial[k - 1] - factorial[others]
    return np.where(possible, np.exp(ways - (factorial[n] - factorial[k] - factorial[n - k])), 0.0)
