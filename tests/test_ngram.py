"""The n-gram baseline against a slow dictionary."""

import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks.tasks import ngram


def slowly(trained: tuple[np.ndarray, np.ndarray], x: np.ndarray, order: int) -> np.ndarray:
    """The same with a dictionary, for tokens (n, length)."""
    follow = defaultdict(Counter)
    for past, then in zip(*(part.tolist() for part in trained), strict=True):
        for t, value in enumerate(then):
            for length in range(min(order, t + 1) + 1):
                if value != -100:
                    follow[tuple(past[t + 1 - length : t + 1])][value] += 1

    def likeliest(values):
        for length in range(min(order, len(values)), -1, -1):
            if counts := follow.get(tuple(values[len(values) - length :])):
                return min(counts, key=lambda value: (-counts[value], value))
        return 0

    return np.array([[likeliest(row[: t + 1]) for t in range(len(row))] for row in x.tolist()]).reshape(x.shape)


def games(rng: np.random.Generator, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = rng.integers(classes, size=(2, *shape))
    return x, np.where(rng.random(shape) < 0.3, -100, y)


@given(
    seed=st.integers(0, 2**63),
    order=st.integers(0, 4),
    length=st.integers(0, 7),
    n=st.integers(0, 30),
    classes=st.sampled_from([1, 2, 3, 50]),
)
def test_tokens_are_predicted_as_by_a_dictionary(seed, order, length, n, classes):
    rng = np.random.Generator(np.random.Philox(seed))
    trained, x = games(rng, (n, length), classes), rng.integers(classes + 1, size=(9, length))
    predicted = ngram.predict(trained, x, order)
    assert predicted.dtype == np.int64
    assert np.array_equal(predicted, slowly(trained, x, order))


@given(seed=st.integers(0, 2**63), order=st.integers(0, 3), cells=st.integers(1, 4))
def test_cells_of_boards_are_predicted_each_on_its_own(seed, order, cells):
    rng = np.random.Generator(np.random.Philox(seed))
    past, then = games(rng, (8, 5, cells), 3)
    x = rng.integers(3, size=(4, 5, cells))
    alone = [slowly((past[..., cell], then[..., cell]), x[..., cell], order) for cell in range(cells)]
    assert np.array_equal(ngram.predict((past, then), x, order), np.stack(alone, axis=-1))


def test_the_longest_known_context_decides():
    past = np.array([[1, 2, 3], [4, 2, 5], [6, 2, 5], [7, 7, 7]])
    trained = past[:, :-1], past[:, 1:]
    # After 1 2 comes 3, although 5 follows 2 more often; 8 is unknown, and 2 and 5 … 7 follow anything: 2 most often.
    assert ngram.predict(trained, np.array([[1, 2], [9, 2], [8, 8]])).tolist() == [[2, 3], [2, 5], [2, 2]]


def test_large_vocabularies_and_many_cells_are_quick():
    rng = np.random.Generator(np.random.Philox(0))
    words, boards = games(rng, (2000, 160), 454), games(rng, (512, 60, 100), 5)
    for trained in (words, boards):
        start = time.perf_counter()
        ngram.predict(trained, trained[0])
        # 0.2 s and 0.8 s on one free core.
        assert time.perf_counter() - start < 6


@pytest.mark.parametrize(
    ("shapes", "order", "message"),
    [
        (((2, 3), (2, 3), (2, 3)), -1, "order must be at least 0"),
        (((2, 3), (2, 4), (2, 3)), 3, "one shape"),
        (((2, 3), (2, 3), (2, 3, 4)), 3, "as many cells"),
        (((2, 3, 5), (2, 3, 5), (2, 3, 4)), 3, "as many cells"),
        (((3,), (3,), (3,)), 3, "one shape"),
        (((2, 3), (2, 3), (2, 3)), 70, "contexts of 70 values"),
    ],
)
def test_what_cannot_be_counted_is_refused(shapes, order, message):
    past, then, x = (np.ones(shape, dtype=np.int64) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        ngram.predict((past, then), x, order)


def test_negative_values_are_refused():
    values = np.array([[1, -1]])
    with pytest.raises(ValueError, match="cannot be counted"):
        ngram.predict((values, values), values)
