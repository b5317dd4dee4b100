"""Remakes the reference tables of a profile, measuring what is not in `runs/` yet.

    python workflow/reference.py PROFILE CORES EXECUTOR [TABLE ...]

EXECUTOR is a folder of workflow/profiles, whatever is not local takes the number of jobs from its profile there.
However it is ended, what it started ends with it; the same command goes on with what is missing.
"""

from __future__ import annotations

import sys
import time

import reproduce
import results


def mistake(profile: str, cores: str, executor: str, tables: tuple[str, ...]) -> str | None:
    """What is wrong with the arguments, and what is allowed."""
    if said := reproduce.mistake(profile, cores, executor):
        return said
    if not (known := results.tables(profile)):
        having = ", ".join(each for each in results.profiles() if results.tables(each))
        return f"Profile '{profile}' has no reference tables; these have: {having}"
    if unknown := sorted(set(tables) - set(known)):
        return f"Profile '{profile}' has no table '{unknown[0]}'; it has: {', '.join(known)}"
    return None


def main(profile: str, cores: str, executor: str, *tables: str) -> int:
    if said := mistake(profile, cores, executor, tables):
        print(said, file=sys.stderr)
        return 2
    begin = time.monotonic()
    config = [f"profile={profile}"] + ([f"tables={' '.join(tables)}"] if tables else [])
    if code := reproduce.run(["reference"], cores, executor, config):
        return code
    print(f"All tables are made, {round(time.monotonic() - begin)} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
