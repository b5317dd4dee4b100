"""Knows which notebooks a profile runs, with which parameters, and where each of them wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from rules2ranks import runs
from rules2ranks.stages import parameters

REPOSITORY = Path(__file__).resolve().parents[1]


def values(profile: str) -> dict[str, dict[str, Any]]:
    """The checked parameters of every notebook in `notebooks/`, in order, as plain values.

    Raises:
        ValueError: there is no such profile, or it leaves a notebook out, names one that is not there, or gives a
            parameter that the notebook does not take.
    """
    path = REPOSITORY / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        raise ValueError(
            f"no profile {profile!r}; there are {', '.join(sorted(p.stem for p in path.parent.iterdir()))}"
        )
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = sorted(notebook.stem for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"))
    if odd := sorted(set(names) ^ set(settings)):
        raise ValueError(f"notebooks/ and profiles/{profile}.yaml must name the same notebooks; not in both: {odd}")
    return {name: parameters.NOTEBOOKS[name].check(settings[name]).model_dump(mode="json") for name in names}


def main(profile: str) -> None:
    """Print each executed notebook with its figures, then the scorecard."""
    top = runs.root() / "notebooks"
    print(f"\nExecuted notebooks and their figures, below {top}/")
    scorecard = "none in this profile"
    for name, checked in values(profile).items():
        place = parameters.folder(name, checked)
        figures = " ".join(path.name for path in sorted(place.glob("*.png"))) or "no figures"
        print(f"  {place.relative_to(top)}/{name}.ipynb  {figures}")
        if name == "90_scorecard":
            scorecard = place / f"{name}.ipynb"
    print(f"The scorecard: {scorecard}")


if __name__ == "__main__":
    main(sys.argv[1])
