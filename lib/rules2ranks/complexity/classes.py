"""Wolfram's classes: a reading by eye, from the literature, and where it is disputed."""

from __future__ import annotations

from functools import cache

import pandas as pd

from rules2ranks import automata, published


@cache
def _wolfram_table() -> pd.DataFrame:
    return pd.read_csv(published.shipped("wolfram_classes.csv"), index_col="rule")


def wolfram_classes() -> pd.DataFrame:
    """The Wolfram class of all 256 rules: index ``rule``, columns ``representative``, ``class``, ``disputed``.

    ``class`` is 1 (uniform), 2 (periodic), 3 (chaotic) or 4 (complex); ``disputed`` marks rules that other authors
    class otherwise. Source: G. J. Martinez, A note on elementary cellular automata classification,
    arXiv 1306.5577 (2013).
    """
    return _wolfram_table().copy()


def wolfram_class(rule: int) -> int:
    """Wolfram class of a rule, 1 to 4 (`wolfram_classes`). ValueError for a rule outside 0 to 255."""
    return int(_wolfram_table()["class"].loc[automata.representative(rule)])
