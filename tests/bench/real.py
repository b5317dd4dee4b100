"""Measures what pruning saves of a real language model, into data/reference/bench_real.csv, as pruning.py does.

    make bench EXTRAS=gemma

Gemma 3 270M with its whole vocabulary, and with that of the English texts, from whose layers shares are removed.
"""

from __future__ import annotations

import importlib.util
from functools import partial

from common import FOLDER
from pruning import Case, write

from rules2ranks import models
from rules2ranks.stages import real_models

PROMPTS = (1, 64)


def main() -> None:
    if importlib.util.find_spec(real_models.PACKAGE) is None:
        print("Gemma is not installed (make bench EXTRAS=gemma): bench_real.csv stays as it is")
        return
    whole, smaller = (partial(models.load_causal_lm, folder) for folder in _folders())
    cases = (
        Case("Gemma 3 270M", whole, PROMPTS, "layers", ()),
        Case("Gemma 3 270M, vocabulary of the texts", smaller, PROMPTS, "layers", (0.1, 0.2, 0.3, 0.5)),
    )
    write(cases, FOLDER / "bench_real.csv")


def _folders() -> tuple[str, str]:
    return str(real_models.gemma().folder), real_models.gemma_of_english().model


if __name__ == "__main__":
    main()
