"""What most often followed the last few values: the n-gram baseline of every task.

It backs off as Katz (1987) does, but needs no smoothing, as only the likeliest continuation counts: the longest context
that training has seen decides, down to the empty one.
"""

import numpy as np

ORDER = 3
"""Values in the longest context, the present one included."""


def predict(trained: tuple[np.ndarray, np.ndarray], x: np.ndarray, order: int = ORDER) -> np.ndarray:
    """Predicts at each place what in training followed its last values most often.

    Args:
        trained: x and y of training sequences, as a task's `batch` gives them: tokens (m, length), or boards
            (m, length, cells), where each cell is counted and predicted on its own; y is -100 where nothing is counted.
        x: (n, length) or (n, length, cells) integers ≥ 0, with as many cells as in training.
        order: values in the longest context. Places with fewer values before them have shorter contexts only.

    Returns:
        Predictions in the shape of `x`, int64. Of equally frequent values the smallest; 0 for a cell that training
        never scored.

    Raises:
        ValueError: a negative order, shapes that do not fit, negative values, or too many values to count.
    """
    past, then = trained
    if order < 0:
        raise ValueError(f"order must be at least 0, got {order}")
    if past.shape != then.shape or past.ndim not in (2, 3) or past.shape[2:] != x.shape[2:] or x.ndim != past.ndim:
        raise ValueError(f"expected x and y of one shape and x of as many cells, got {past.shape, then.shape, x.shape}")
    base = 1 + max(int(part.max(initial=0)) for part in (past, then, x))
    if min(past.min(initial=0), x.min(initial=0)) < 0 or _cells(x) * base ** (order + 1) >= 2**63:
        raise ValueError(f"{_cells(x)} cells of 0 … {base - 1} cannot be counted in contexts of {order} values")
    predicted, undecided = np.zeros(x.size, dtype=np.int64), np.arange(x.size)
    for counted, asked in zip(_contexts(past, order, base), _contexts(x, order, base), strict=True):
        known, best = _likeliest(counted, then, base)
        asked = asked.reshape(-1)[undecided]
        place = np.searchsorted(known, asked)
        # A last context that is never asked for, so that every place is one of the list.
        seen = np.append(known, np.iinfo(np.int64).max)[place] == asked
        predicted[undecided[seen]] = best[place[seen]]
        undecided = undecided[~seen]
    return predicted.reshape(x.shape)


def _cells(x: np.ndarray) -> int:
    return x.shape[2] if x.ndim == 3 else 1


def _contexts(x: np.ndarray, order: int, base: int) -> list[np.ndarray]:
    """Each place's cell and its last `order`, …, 1, 0 values as one number ≥ 0; -1 where there are not so many.

    Returns:
        `order` + 1 arrays in the shape of `x`.
    """
    codes = [np.broadcast_to(np.arange(_cells(x)) if x.ndim == 3 else np.int64(0), x.shape)]
    for back in range(order):
        code = np.full(x.shape, -1, dtype=np.int64)
        code[:, back:] = codes[-1][:, back:] * base + x[:, : max(x.shape[1] - back, 0)]
        codes.append(code)
    return codes[::-1]


def _likeliest(contexts: np.ndarray, then: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """The contexts that occur where `then` is scored, in ascending order, and what follows each most often."""
    counted = (then >= 0) & (contexts >= 0)
    pairs, counts = _counts(contexts[counted] * base + then[counted])
    context, value = np.divmod(pairs, base)
    # Within each context the most frequent first; the sort is stable, so of equals the smallest value.
    ranked = np.lexsort((-counts, context))
    first = np.diff(context, prepend=-1) > 0
    return context[first], value[ranked][first]


def _counts(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different numbers, ascending, and how often each occurs; many small ones are counted without sorting."""
    if numbers.max(initial=0) < numbers.size:
        counts = np.bincount(numbers)
        return np.nonzero(counts)[0], counts[counts > 0]
    return np.unique(numbers, return_counts=True)
