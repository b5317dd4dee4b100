"""The smallest pretraining that learns an easy rule within seconds."""

TINY = {"width": 8, "rows": 12, "ring": 64, "layers": 1, "heads": 2, "hidden": 32, "steps": 60, "lr": 1e-2}
