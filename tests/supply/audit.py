"""Asks which of the pinned versions have known vulnerabilities, and says so where nobody answers.

python tests/supply/audit.py     # within the environment that `make audit` sets up
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
#: Where versions are pinned; optional ones stand in pyproject.toml.
FILES = ("requirements.lock", "requirements.txt", "site/requirements.txt", "tests/supply/requirements.txt")
PIN = re.compile(r"^[A-Za-z0-9._-]+==[^\s;#\\]+", re.M)
#: The exit status of what could not be done here.
SKIPPED = 77


def pins() -> list[str]:
    """All versions that are pinned anywhere, as `name==version`."""
    text = "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in FILES)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text += "\n" + "\n".join(line for extra in project["optional-dependencies"].values() for line in extra)
    found = {re.sub("[-_.]+", "-", pin.partition("==")[0].lower()): pin for pin in PIN.findall(text)}
    return [found[name] for name in sorted(found)]


def ask(pinned: list[str]) -> list[dict]:
    """What pip-audit found out of each; nothing if it could not ask."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pins.txt"
        file.write_text("\n".join(pinned) + "\n", encoding="utf-8")
        command = ["pip-audit", "--requirement", str(file), "--no-deps", "--disable-pip", "--format", "json"]
        run = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
    return json.loads(run.stdout)["dependencies"] if run.stdout else []


def told(pinned: list[str], found: list[dict]) -> tuple[list[str], int]:
    """What to say, and the exit status: 1 for a known vulnerability, 77 if not all could be asked for."""
    asked = [each for each in found if "vulns" in each]
    lines = [
        f"{each['name']} {each['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for each in asked
        for known in each["vulns"]
    ]
    if lines:
        return lines, 1
    if len(asked) < len(pinned):
        unasked = len(pinned) - len(asked)
        return [f"PyPI's list of vulnerabilities could not be asked for {unasked} of {len(pinned)} packages."], SKIPPED
    return [f"No known vulnerability in {len(pinned)} pinned packages."], 0


if __name__ == "__main__":
    pinned = pins()
    lines, status = told(pinned, ask(pinned))
    print("\n".join(lines))
    sys.exit(status)
