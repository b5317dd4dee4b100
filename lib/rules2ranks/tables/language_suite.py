"""The shipped model of the language suite, trained anew: on request only, as all results on it would be new too."""

import shutil

from rules2ranks.stages.language_suite import LanguageTraining
from rules2ranks.stages.subjects import SHIPPED
from rules2ranks.tables import Rows
from rules2ranks.tables.many import measure, seconds_of, stage_jobs


def language_suite(settings: LanguageTraining) -> tuple[dict[str, Rows], float]:
    """Train the model and ship it: a row for each step at which its loss was noted or its answers were scored."""
    results = measure(stage_jobs("language", [settings]), "language suite")
    SHIPPED.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(results[0].file(name), SHIPPED / name)
    history = results[0].metrics["history"]
    rows = {step: {"step": step, "training_loss": loss} for step, loss in history["loss"]}
    for scores in history["evaluations"]:
        rows.setdefault(scores["step"], {}).update(scores)
    return {"language_suite": [rows[step] for step in sorted(rows)]}, seconds_of(results)
