"""The reference tables: what they are made from is measured in parts, each a job; then they are found and written.

    snakemake reference --snakefile workflow/Snakefile --profile workflow/profiles/local --config profile=laptop

What a table measures can depend on what was measured before (a search, then its choice under fresh seeds). So a list of
what is missing is written, all of it is measured, and the next list written, until one is empty. What was measured
stands in `runs/`; the lists are of one walk only.
"""

import json
import shutil

# Whose tables: all of the profile, or those named (`--config tables="levels joint"`).
TABLES = config.get("tables", "").split()
# How many results one job measures at most: minutes at laptop size. One of the paper's size takes an hour or more.
PART = int(config.get("part", 1 if PROFILE == "gpu" else 30))
LISTS = ".reference"


if workflow.is_main_process and not workflow.output_settings.dryrun:
    shutil.rmtree(LISTS, ignore_errors=True)


wildcard_constraints:
    number=r"\d+",
    part=r"\d+",


def listed(number):
    """How many parts there are in a list; asks for the list if it is not written yet."""
    with checkpoints.missing.get(number=number).output[0].open() as file:
        return len(json.load(file)["parts"])


def measured(wildcards):
    """All parts of the list before."""
    before = int(wildcards.number) - 1
    return [f"{LISTS}/{before}.{part}.measured" for part in range(listed(before))] if before else []


def last_list(wildcards):
    """The list that is empty."""
    number = 1
    while listed(number):
        number += 1
    return f"{LISTS}/{number}.json"


localrules:
    reference,
    missing,


rule reference:
    input:
        last_list,


# On the machine that runs Snakemake, beside the tables that it writes.
checkpoint missing:
    input:
        measured,
    output:
        f"{LISTS}/{{number}}.json",
    params:
        tables=TABLES,
        profile=PROFILE,
        part=PART,
        at_once=workflow.resource_settings.nodes or workflow.cores or 1,
        before=lambda wildcards: f"{LISTS}/{int(wildcards.number) - 1}.json",
    shell:
        """
        before=()
        [ {wildcards.number} -eq 1 ] || before=(--measured {params.before})
        TQDM_DISABLE=1 python -m rules2ranks.tables {params.tables:q} --profile {params.profile:q} \
            --missing {output} --part {params.part} --at-once {params.at_once} "${{before[@]}}"
        """


rule measure:
    input:
        f"{LISTS}/{{number}}.json",
    output:
        touch(f"{LISTS}/{{number}}.{{part}}.measured"),
    log:
        f"{LISTS}/{{number}}.{{part}}.log",
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    shell:
        """
        begin=$SECONDS
        if TQDM_DISABLE=1 python -m rules2ranks measure {input} {wildcards.part} > {log} 2>&1
        then
            echo "list {wildcards.number}, part {wildcards.part}: measured, $((SECONDS - begin)) s"
        else
            tail -n 15 {log} >&2
            echo "list {wildcards.number}, part {wildcards.part}: FAILED after $((SECONDS - begin)) s" >&2
            exit 1
        fi
        """
