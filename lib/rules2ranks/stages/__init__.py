"""The steps of the walk on plain parameters, each found in `runs/` or made: what notebooks and Snakemake call."""

import importlib

#: The stages, and the modules they live in.
HOMES = {
    "pretrain": "learning",
    "downstream": "transfer",
    "inspect": "inspecting",
    "in_context": "contexts",
    "language": "language_suite",
    "prune": "compressing",
    "levels": "cutting",
    "judge": "shapes",
    "recover": "compressing",
    "fragility": "compressing",
    "limits": "bearing",
    "retrain": "retraining",
    "benchmark": "own_model",
    "pairs": "minimal_pairs",
    "gemma": "real_models",
    "prose": "real_models",
    "vocabulary": "real_models",
    "query_heads": "heads",
}


def __getattr__(name: str):
    # A stage is imported when first asked for, so that what needs no torch does not wait for it.
    if name in HOMES:
        return getattr(importlib.import_module(f"rules2ranks.stages.{HOMES[name]}"), name)
    raise AttributeError(f"module 'rules2ranks.stages' has no attribute {name!r}; its stages are {', '.join(HOMES)}")
