"""Seven symbolic tasks in one small language, for a model that is small enough to train in minutes.

Every sequence has 20 tokens: the task's own token, the prompt, `=`, the answer, padding. Only the answer is scored, and
the prompt determines it:

| task | prompt | answer |
|---|---|---|
| automaton | a row of 9 cells on a ring | its successor under rule 110 |
| copy | 8 letters | the same |
| sort | 6 different numbers of 0 … 12 | in ascending order |
| addition | two numbers of 0 … 12 | their sum modulo 13 |
| brackets | 8 brackets of three kinds, four of them still open | what closes these |
| nim | three heaps of 1 … 7 | heap and number of the first heap's move that leaves a nim-sum of zero |
| facts | one of 192 pairs of letters | the pair that a fixed random table gives it |

Four tasks hold a fifth of their prompts back for validation. The others do not (`HOLDS_OUT`): addition and nim have
too few prompts to learn the rule from a part of them, and facts are there to be memorised; for these validation
measures recall.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from math import comb, perm

import numpy as np

from rules2ranks.tasks import nim as nim_game
from rules2ranks.tasks import splits

LENGTH = 20
TASKS = ("automaton", "copy", "sort", "addition", "brackets", "nim", "facts")
_NUMBERS = tuple(str(number) for number in range(13))
_LETTERS = tuple("abcdefghijklmnopqrstuv")
_PADDING = "."
WORDS = (_PADDING, "=", *TASKS, *_NUMBERS, *"([{", *")]}", *_LETTERS)
"""What each token id stands for."""
VOCABULARY = len(WORDS)
RULE = 110
IGNORED = -100

_PAD, _EQUALS, _TASK, _NUMBER, _OPEN, _CLOSE, _LETTER = map(WORDS.index, (".", "=", TASKS[0], "0", "(", ")", "a"))
_FACTS = 192
_FACTS_KEY = 1729

Pair = tuple[np.ndarray, np.ndarray]


def _letters(m: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(len(_LETTERS), size=(m, 8))


def _copied(letters: np.ndarray) -> Pair:
    return _LETTER + letters, _LETTER + letters


def _cells(m: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(2, size=(m, 9))


def _stepped(row: np.ndarray) -> Pair:
    neighbourhood = 4 * np.roll(row, 1, axis=1) + 2 * row + np.roll(row, -1, axis=1)
    return _NUMBER + row, _NUMBER + (RULE >> neighbourhood & 1)


def _different_numbers(m: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permuted(np.tile(np.arange(13), (m, 1)), axis=1)[:, :6]


def _sorted(numbers: np.ndarray) -> Pair:
    return _NUMBER + numbers, _NUMBER + np.sort(numbers, axis=1)


def _two_numbers(m: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(13, size=(m, 2))


def _added(numbers: np.ndarray) -> Pair:
    return _NUMBER + numbers, _NUMBER + numbers.sum(axis=1, keepdims=True) % 13


@cache
def _bracket_patterns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 20 ways to open six brackets and close two of them again.

    Returns:
        number (20, 8): which of the six is opened or closed at each place; closed (20, 8): whether it is closed there;
        open_ones (20, 4): the four that stay open, the last opened first.
    """
    patterns = []
    for closing in combinations(range(8), 2):
        stack: list[int] = []
        number, opened = [], 0
        for place in range(8):
            if place not in closing:
                stack.append(opened)
                number.append(opened)
                opened += 1
            elif stack:
                number.append(stack.pop())
        if len(number) == 8:
            patterns.append((number, [place in closing for place in range(8)], stack[::-1]))
    number, closed, open_ones = zip(*patterns, strict=True)
    return np.array(number), np.array(closed), np.array(open_ones)


def _pattern_and_kinds(m: int, rng: np.random.Generator) -> np.ndarray:
    patterns = len(_bracket_patterns()[0])
    return np.concatenate([rng.integers(patterns, size=(m, 1)), rng.integers(3, size=(m, 6))], axis=1)


def _closed(rows: np.ndarray) -> Pair:
    number, closed, open_ones = (table[rows[:, 0]] for table in _bracket_patterns())
    kinds = rows[:, 1:]
    prompt = np.take_along_axis(kinds, number, axis=1) + np.where(closed, _CLOSE, _OPEN)
    return prompt, _CLOSE + np.take_along_axis(kinds, open_ones, axis=1)


@cache
def _won_positions() -> np.ndarray:
    """The positions (k, 3) of three heaps of 1 … 7 that the player to move wins."""
    every = np.array(list(product(range(1, 8), repeat=3)))
    return every[nim_game.nim_sum(every) != 0]


def _won_position(m: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(_won_positions(), size=m)


def _moved(heaps: np.ndarray) -> Pair:
    moves = nim_game.winning_moves(heaps)
    heap = np.argmax(moves > 0, axis=1)
    return _NUMBER + heaps, np.stack([_LETTER + heap, _NUMBER + moves[np.arange(len(heaps)), heap]], axis=1)


@cache
def facts() -> tuple[np.ndarray, np.ndarray]:
    """The table of facts: subjects, no two alike, and objects, both (192, 2) token ids."""
    rng = np.random.Generator(np.random.Philox(_FACTS_KEY))
    subject = rng.permutation(len(_LETTERS) ** 2)[:_FACTS]
    value = rng.integers(len(_LETTERS) ** 2, size=_FACTS)
    return tuple(_LETTER + np.stack(np.divmod(pair, len(_LETTERS)), axis=1) for pair in (subject, value))


def _fact(m: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(_FACTS, size=(m, 1))


def _recalled(which: np.ndarray) -> Pair:
    subject, value = facts()
    return subject[which[:, 0]], value[which[:, 0]]


@dataclass(frozen=True)
class _Kind:
    """One of the seven: draws (m, k) rows, spells them out as prompts and answers, and knows how many there are."""

    draw: Callable[[int, np.random.Generator], np.ndarray]
    spell: Callable[[np.ndarray], Pair]
    prompts: int
    answers: int
    holds_out: bool = False


_KINDS = {
    "automaton": _Kind(_cells, _stepped, 2**9, 2**9, holds_out=True),
    "copy": _Kind(_letters, _copied, len(_LETTERS) ** 8, len(_LETTERS) ** 8, holds_out=True),
    "sort": _Kind(_different_numbers, _sorted, perm(13, 6), comb(13, 6), holds_out=True),
    "addition": _Kind(_two_numbers, _added, 13**2, 13),
    "brackets": _Kind(_pattern_and_kinds, _closed, 20 * 3**6, 3**4, holds_out=True),
    "nim": _Kind(_won_position, _moved, 301, 3 * 7),
    "facts": _Kind(_fact, _recalled, _FACTS, len(_LETTERS) ** 2),
}
PROMPTS = {name: kind.prompts for name, kind in _KINDS.items()}
"""How many different prompts each task has."""
HOLDS_OUT = {name: kind.holds_out for name, kind in _KINDS.items()}
"""Whether a task's validation prompts are never trained on; where not, all its prompts occur in both."""


def batch(n: int, seed: int, split: str = "train", tasks: tuple[str, ...] = TASKS) -> Pair:
    """Draws `n` sequences, the tasks taking turns (which is first depends on the seed).

    Returns:
        tokens and labels, both (n, 20) int64. Labels are aligned with tokens, as causal models of transformers take
        them (the model shifts): the token itself in an answer, -100 elsewhere.

    Raises:
        ValueError: for n < 1, a negative seed, an unknown split or task, or no task.
    """
    if not tasks or not set(tasks) <= set(TASKS):
        raise ValueError(f"tasks must be some of {TASKS}, got {tasks!r}")
    if n < 1:
        raise ValueError(f"a batch needs at least one sequence, got n={n}")
    rng = splits.generator(seed, split)
    turn = (np.arange(n) + seed % len(tasks)) % len(tasks)
    tokens = np.full((n, LENGTH), _PAD, dtype=np.int64)
    labels = np.full((n, LENGTH), IGNORED, dtype=np.int64)
    for place, name in enumerate(tasks):
        rows = np.nonzero(turn == place)[0]
        if len(rows) == 0:
            continue
        prompt, answer = _examples(_KINDS[name], len(rows), rng, split)
        start = prompt.shape[1] + 2
        end = start + answer.shape[1]
        tokens[rows, 0] = _TASK + TASKS.index(name)
        tokens[rows, 1 : start - 1] = prompt
        tokens[rows, start - 1] = _EQUALS
        tokens[rows, start:end] = answer
        labels[rows, start:end] = answer
    return tokens, labels


def _examples(kind: _Kind, n: int, rng: np.random.Generator, split: str) -> Pair:
    if kind.holds_out:
        return kind.spell(splits.draw(n, rng, split, lambda m: kind.draw(m, rng)))
    return kind.spell(kind.draw(n, rng))


def decode(tokens: np.ndarray) -> str:
    """A sequence (20,) as readable text, without its padding."""
    return " ".join(WORDS[token] for token in tokens if token != _PAD)


def task_names(tokens: np.ndarray) -> np.ndarray:
    """The task (n,) of each sequence (n, 20)."""
    return np.array(TASKS)[tokens[:, 0] - _TASK]


def score(predicted: np.ndarray, labels: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """For each task that occurs the share of answers (0 … 1) with all tokens right.

    Args:
        predicted: (n, 20) the likeliest next token at each position, `logits.argmax(-1)`: predicted[:, i] is compared
            with labels[:, i + 1], the shift that the model's own loss makes.
        labels, tokens: (n, 20) as `batch` gives them. The right tokens of an answer are given when its next is
            predicted; the whole answer is right just when greedy decoding would find it.

    Raises:
        ValueError: the three shapes differ.
    """
    if not predicted.shape == labels.shape == tokens.shape:
        raise ValueError(f"expected three arrays of one shape, got {predicted.shape}, {labels.shape}, {tokens.shape}")
    right = ((predicted[:, :-1] == labels[:, 1:]) | (labels[:, 1:] == IGNORED)).all(axis=1)
    names = task_names(tokens)
    return {name: float(right[names == name].mean()) for name in TASKS if (names == name).any()}


def baselines(n: int = 7000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Scores of trivial predictors by task.

    "chance": one over the number of answers of the right form; "majority": the most frequent answer among `n` training
    sequences, scored on `n` validation ones.
    """
    tokens, labels = batch(n, seed)
    frequent = np.zeros((len(TASKS), LENGTH), dtype=np.int64)
    for place, name in enumerate(TASKS):
        answers, counts = np.unique(labels[task_names(tokens) == name], axis=0, return_counts=True)
        frequent[place] = answers[counts.argmax()]
    tokens, labels = batch(n, seed, split="validation")
    guess = np.roll(frequent[tokens[:, 0] - _TASK], -1, axis=1)
    return {
        "chance": {name: 1 / kind.answers for name, kind in _KINDS.items()},
        "majority": score(guess, labels, tokens),
    }
