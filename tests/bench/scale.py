"""How cost grows with the number of jobs and of results, and with the size of a result.

    python tests/bench/scale.py [JOBS] [RESULTS] [GIGABYTES]

Up to so many jobs (1,000) and results (10,000), by tens, and a result of 1 GB, or of each of GIGABYTES (such as 1,10).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import pandas as pd
import psutil
from transformers import LlamaConfig

from rules2ranks import runs
from rules2ranks.stages.footprint import Planned, footprint

PROFILE = Path(__file__).resolve().parents[2] / "workflow" / "profiles" / "local"
GB = 10**9
#: Jobs that do nothing, made as `workflow/reference.smk` makes those that measure: one rule, one file each.
JOBS = """
rule all:
    input: [f"done/{{number}}" for number in range({jobs})]
rule one:
    output: touch("done/{{number}}")
    log: "logs/{{number}}.log"
    threads: 1
    resources: mem_mb=100, runtime=30
    shell: "true > {{log}} 2>&1"
"""
#: LLaMA-7B, of which only the sizes are needed.
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
Row = tuple[str, float, str, float, str]


class Trivial(runs.Params):
    """A result that takes no time, with so many bytes in a file."""

    number: int = 0
    size: int = 1000


@runs.stage(version=1)
def trivial(work: Path, given: Trivial) -> dict:
    """Write the bytes; metrics: the number."""
    with (work / "bytes").open("wb") as file:
        block = os.urandom(min(given.size, 2**26))
        for begin in range(0, given.size, len(block)):
            file.write(block[: given.size - begin])
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that what is read again comes from the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"number": given.number}


def clocked(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def jobs(number: int) -> Iterator[Row]:
    """Snakemake with so many jobs on two cores, and once more when there is nothing to do."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Snakefile").write_text(JOBS.format(jobs=number))
        for measure in ("run", "nothing to do"):
            begin = time.perf_counter()
            process = psutil.Popen(
                ["snakemake", "--profile", str(PROFILE), "--cores", "2"],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            )  # fmt: skip
            peak = 0
            while process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak = max(peak, process.memory_info().rss)
                time.sleep(0.1)
            yield "jobs of Snakemake", number, measure, time.perf_counter() - begin, "s"
            assert process.returncode == 0 and len(list(Path(folder, "done").iterdir())) == number
            yield "jobs of Snakemake", number, f"{measure}, peak memory", peak, "bytes"


def results(number: int) -> Iterator[Row]:
    """A store with so many results."""
    what = "results in runs/"
    yield what, number, "making one", clocked(lambda: [trivial(number=k) for k in range(number)]) / number, "s"
    found = sorted(clocked(lambda k=k: trivial.find(number=k)) for k in range(0, number, number // 20))
    yield what, number, "finding one", found[len(found) // 2], "s"
    top = runs.root() / "trivial"
    listing = clocked(lambda: sum(1 for _ in top.glob("[!.]*/provenance.json")))  # as `python -m rules2ranks list`
    yield what, number, "listing", listing, "s"
    table = clocked(lambda: pd.DataFrame([trivial.find(number=k).metrics for k in range(number)]))
    yield what, number, "a table of all", table, "s"


def large(gigabytes: float) -> Iterator[Row]:
    """One result of this size."""
    what, given = "GB in one result", {"size": round(gigabytes * GB)}
    yield what, gigabytes, "write", clocked(lambda: trivial(**given)), "s"
    yield what, gigabytes, "find", clocked(lambda: trivial.find(**given)), "s"
    folder = trivial.find(**given).folder
    yield what, gigabytes, "verify", clocked(lambda: runs.load(folder, again=True)), "s"


def llama() -> Iterator[Row]:
    """The peaks of LLaMA-7B, a fifth removed, by plan: pruned from its files, recovered with recomputation."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(architectures=["LlamaForCausalLM"], **LLAMA).save_pretrained(folder)
        how = {"dtype": "bfloat16", "ratio": 0.2, "importance": "flap", "calibration_length": 128, "from_disk": True}
        found = footprint(Planned(model=folder, gradient_checkpointing=True, **how))
    for step in ("importance", "pruning", "recovery"):
        yield "LLaMA-7B", 0.2, f"{step}, peak memory by plan", found[step]["bytes"], "bytes"
    for step in ("loading", "pruning"):
        yield "LLaMA-7B", 0.2, f"{step}, parameters", found[step]["parameters"], "parameters"


def main(most_jobs: str = "1000", most_results: str = "10000", sizes: str = "1") -> None:
    tens = [10**power for power in range(1, 9)]
    numbers_of = {
        jobs: [number for number in tens if number <= int(most_jobs)],
        results: [number for number in tens[1:] if number <= int(most_results)],
        large: map(float, sizes.split(",")),
    }
    rows: list[Row] = []
    for measure, numbers in numbers_of.items():
        for number in numbers:
            with tempfile.TemporaryDirectory() as store:
                os.environ["RULES2RANKS_RUNS"] = store
                rows += shown(measure(number))
    rows += shown(llama())
    table = pd.DataFrame(rows, columns=["what", "number", "measure", "value", "unit"])
    path = common.FOLDER / "bench_scale.csv"
    table.assign(machine=common.machine()).to_csv(path, index=False, float_format="%.3g")
    print(f"\nWritten to {path}")


def shown(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        what, number, measure, value, unit = row
        print(f"{number:>8,g} {what:<20} {measure:<34} {value:10.3g} {unit}", flush=True)
        yield row


if __name__ == "__main__":
    main(*sys.argv[1:])
