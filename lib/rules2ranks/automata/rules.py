"""The 256 rules: numbers, tables, polynomials, and the 88 families that left-right and 0-1 exchange leave.

Sources: S. Wolfram, Statistical mechanics of cellular automata, Rev. Mod. Phys. 55, 601 (1983), for the numbering and
the equivalences; C. G. Langton, Computation at the edge of chaos, Physica D 42, 12 (1990), for lambda.
"""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]


def rule_table(rule: int) -> Bits:
    """``(8,)`` uint8: the new cell for the neighbourhoods 000, 001, 010, ..., 111, **000 first**.

    Index ``4 * left + 2 * centre + right``. (Wolfram's drawings show the same eight, 111 first.)
    ValueError for a rule outside 0 to 255.
    """
    return (integer("rule", rule, 0, 255) >> np.arange(8) & 1).astype(np.uint8)


def algebraic_normal_form(rule: int) -> Bits:
    """``(8,)`` uint8: the coefficients of the rule as a polynomial over the field of two elements.

    Coefficient ``4 * i + 2 * j + k`` belongs to ``left**i * centre**j * right**k``; sums are exclusive or. A rule is
    additive when only coefficients 1, 2 and 4 occur. ValueError for a rule outside 0 to 255.
    """
    coefficients = rule_table(rule).reshape(2, 2, 2)
    for _ in range(3):  # the Moebius transform, one variable after the other; three turns of the axes restore them
        coefficients = np.stack([coefficients[0], coefficients[0] ^ coefficients[1]], axis=-1)
    return coefficients.reshape(8)


def langton_lambda(rule: int) -> float:
    """Langton's lambda: the share of the eight neighbourhoods that give a 1, from 0 to 1 in eighths.

    The quiescent state is 0. ValueError for a rule outside 0 to 255.
    """
    return integer("rule", rule, 0, 255).bit_count() / 8


def equivalents(rule: int) -> dict[str, int]:
    """The rules that do the same with left and right exchanged, with 0 and 1 exchanged, or with both.

    Keys ``mirror``, ``complement`` and ``both``; a rule may be its own equivalent.
    ValueError for a rule outside 0 to 255.
    """
    table = rule_table(rule)
    mirrored = table.reshape(2, 2, 2).transpose(2, 1, 0).reshape(8)
    # Exchanging 0 and 1 complements the result and sends neighbourhood n to 7 - n.
    tables = {"mirror": mirrored, "complement": 1 - table[::-1], "both": 1 - mirrored[::-1]}
    return {name: int(np.packbits(bits, bitorder="little")[0]) for name, bits in tables.items()}


def representative(rule: int) -> int:
    """The smallest rule number among a rule and its equivalents. ValueError for a rule outside 0 to 255."""
    return min(integer("rule", rule, 0, 255), *equivalents(rule).values())


def representatives() -> tuple[int, ...]:
    """The 88 rules, in rising order, that are the smallest of their equivalence class."""
    return tuple(rule for rule in range(256) if representative(rule) == rule)


def integer(name: str, value: int, low: int, high: int | None = None) -> int:
    """The value as an int; ValueError, which says what was expected of ``name``, unless it is one in this range."""
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {expected}; got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {expected}; got {number}")
    return number
