"""Ridge regression by conjugate gradients, cross-validated: each value is also predicted by weights that were fitted without it.

    w = argmin |X w + b - y|^2 + penalty * |w|^2

No matrix of the features' products is made, so a million sparse columns cost what their entries cost. The sums are made one after the other
by SciPy and NumPy, not by a BLAS in threads, so that the same values give the same weights.

Shapes: N rows, F columns, K folds, C right-hand sides solved together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

# Beside rows of length 1. Smallest last: a fit that cannot be told from a stronger penalty's is not looked for further.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
NUM_FOLDS = 5
# A relative residual of 1e-4 moves a prediction less than a hundredth of what it is wrong by.
_TOLERANCE = 1e-4
_MOST_ITERATIONS = 200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ridge:
    """`weights` (F,) and `bias` of all rows; `held_out` (N,): what each row is predicted to be by the weights of the folds that it is not in."""

    weights: Floats
    bias: float
    penalty: float
    held_out: Floats


def fit_ridge(features: sp.csr_matrix, values: Floats, folds: NDArray[np.integer[Any]]) -> Ridge:
    """The fit of values (N,) by features (N, F) with the penalty under which rows are predicted best by the folds (N,) that they are not in."""
    # Columns that no row has keep weight 0: of a million few are used by a small sample.
    used = np.unique(features.indices)
    narrow = features[:, used].tocsr()
    # A column for each fold that is left out, then one for all rows.
    kept = np.stack([folds != fold for fold in range(NUM_FOLDS)] + [np.ones(len(values), dtype=bool)], axis=1).astype(np.float64)
    means = (kept * values[:, None]).sum(axis=0) / np.maximum(kept.sum(axis=0), 1)
    centred = kept * (values[:, None] - means[None, :])
    best: tuple[float, float, Floats, Floats] | None = None
    weights = np.zeros((len(used), NUM_FOLDS + 1))
    for penalty in PENALTIES:
        weights = _solve(narrow, kept, centred, penalty, weights)
        predicted = np.asarray(narrow @ weights[:, :NUM_FOLDS]) + means[:NUM_FOLDS]
        held_out = np.take_along_axis(predicted, folds[:, None].astype(np.int64), axis=1)[:, 0]
        error = float(np.square(held_out - values).mean())
        if best is None or error < best[0]:
            best = (error, penalty, held_out, weights[:, NUM_FOLDS].copy())
        elif error > 1.1 * best[0]:
            break
    assert best is not None
    _, penalty, held_out, chosen = best
    whole = np.zeros(features.shape[1])
    whole[used] = chosen
    return Ridge(whole, float(means[NUM_FOLDS]), penalty, held_out)


def _solve(features: sp.csr_matrix, kept: Floats, values: Floats, penalty: float, start: Floats) -> Floats:
    """Weights (F, C) with (X' M X + penalty) w = X' y for each column of rows kept (N, C) and values (N, C), from weights `start` (F, C)."""
    transposed = features.T.tocsr()

    def multiply(weights_FC: Floats) -> Floats:  # (F, C)
        product: Floats = np.asarray(transposed @ (kept * np.asarray(features @ weights_FC))) + penalty * weights_FC
        return product

    goal = np.asarray(transposed @ values)
    weights = start.copy()
    residual = goal - multiply(weights)
    direction, square = residual.copy(), np.square(residual).sum(axis=0)
    enough = np.square(goal).sum(axis=0) * _TOLERANCE**2
    for _ in range(_MOST_ITERATIONS):
        if (square <= enough).all():
            break
        image = multiply(direction)
        # A column that is solved has no direction any more.
        step = square / np.maximum((direction * image).sum(axis=0), 1e-300)
        weights += step * direction
        residual -= step * image
        before, square = square, np.square(residual).sum(axis=0)
        direction = residual + (square / np.maximum(before, 1e-300)) * direction
    return weights
