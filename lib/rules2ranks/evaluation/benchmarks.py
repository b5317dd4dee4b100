"""A bridge to lm-eval: public language-model benchmarks on a model in memory (the optional extra ``llm``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import pandas as pd


class Benchmark(NamedTuple):
    """Scores per task (acc, acc_norm and their standard errors, n, few-shot examples, the task's version), and the
    versions of the libraries that made them."""

    scores: pd.DataFrame
    versions: dict[str, str]


def benchmark(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | dict[str, Any]],
    *,
    fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Benchmark:
    """Public language-model benchmarks through lm-eval, on a transformers model in memory (pruned or not).

    `tasks` are lm-eval's names or task configurations; `fewshot` None leaves each task's own number; `limit` takes
    the first examples only; `seed` draws the few-shot examples. Both acc and acc_norm (likelihood per character of
    the answer) are returned, NaN where a task does not define one. The model stays where it is, in evaluation mode.
    Raises ValueError for no tasks, ImportError without the extra ``llm``.
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks must be a list with at least one task, got {tasks!r}")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            "the public benchmarks need lm-eval: pip install -e '.[llm]' in the project's folder"
        ) from error
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        num_fewshot=fewshot,
        limit=limit,
        log_samples=False,
        # Global random states are the caller's.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        fewshot_random_seed=seed,
    )
    metrics = ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr")
    rows = {
        name: {metric: _number(scores.get(f"{metric},none")) for metric in metrics}
        | {
            "n": results["n-samples"][name]["effective"],
            "fewshot": results["n-shot"][name],
            "version": str(results["versions"][name]),
        }
        for name, scores in results["results"].items()
        if name in results["n-samples"]
    }
    versions = {package: metadata.version(package) for package in ("lm_eval", "transformers", "torch")}
    return Benchmark(pd.DataFrame.from_dict(rows, orient="index").rename_axis("task"), versions)


def _number(value: Any) -> float:
    """lm-eval writes a standard error that it cannot tell as the text "N/A"."""
    return float(value) if isinstance(value, int | float) else math.nan
