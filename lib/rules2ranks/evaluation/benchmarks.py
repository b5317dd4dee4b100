"""A bridge to lm-eval: public language-model benchmarks on a model in memory (the optional extra ``llm``)."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

#: The seven tasks that LLM-Pruner and its family report, by lm-eval's names.
SEVEN = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
#: How a file of a task's data may end, and what reads it.
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_PACKAGES = ("lm_eval", "datasets", "transformers", "tokenizers", "torch")


class Benchmark(NamedTuple):
    """Scores per task (acc, acc_norm and their standard errors, n, few-shot examples, the task's version), and the
    versions of the libraries that made them."""

    scores: pd.DataFrame
    versions: dict[str, str]


def load_tasks(
    tasks: Sequence[str | dict[str, Any]],
    task_folder: str | Path | None = None,
    data_folder: str | Path | None = None,
    run_code: bool = False,
) -> list[Any]:
    """lm-eval's tasks with their data, by their names or from task configurations; `task_folder` holds further ones.

    Data come from the hub or its cache, or where a `data_folder` is given from there, and nowhere else: it holds the
    hub's repositories under their names, with the files of each split as parquet or JSON lines. For `arc_easy` that is
    `allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet`, as `hf download allenai/ai2_arc --repo-type dataset
    --local-dir FOLDER/allenai/ai2_arc` writes it.

    Task configurations may name Python functions, which lm-eval runs: those of a `task_folder` only with `run_code`.

    Raises:
        ImportError: the extra ``llm`` is not installed.
        ValueError: no tasks, or one that lm-eval does not know; no such folder; code in one that nobody vouches for.
        FileNotFoundError: `data_folder` lacks the split that a task is scored on: says what to put where.
        OSError: their data are neither in the cache nor to be fetched: says what to fetch, and how. Within seconds
            where the hub cannot be reached.
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks must be a list with at least one task, got {tasks!r}")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            "the public benchmarks need lm-eval: pip install -e '.[llm]' in the project's folder"
        ) from error
    if task_folder is not None and not Path(task_folder).is_dir():
        raise ValueError(f"there is no folder of tasks {Path(task_folder).absolute()}")
    if task_folder is not None and (found := _code(Path(task_folder))) and not run_code:
        raise ValueError(f"lm-eval would run the Python of {found}: read it, and pass run_code=True if you trust it")
    names = [name for name in tasks if isinstance(name, str)]
    # Reading the configurations of all of lm-eval's tasks takes seconds: only where one of them is asked for.
    manager = TaskManager(include_path=str(task_folder) if task_folder else None, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=str(task_folder) if task_folder else None)
    if data_folder is not None and (not Path(data_folder).is_dir() or len(names) < len(tasks)):
        raise ValueError(
            f"data_folder {Path(data_folder).absolute()} must be a folder, and tasks be named, not written"
        )
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ValueError(f"lm-eval knows no task {', '.join(unknown)}; the papers' seven are {', '.join(SEVEN)}")
    with tempfile.TemporaryDirectory() as beside:
        if data_folder is not None:
            entries = [manager.task_index[name] for name in names]
            tasks = [_from_files(entry, Path(data_folder), Path(beside)) for entry in entries]
        return _loaded(manager, tasks)


def _code(folder: Path) -> str:
    """The file in a folder of tasks by which lm-eval would come to run code; "" if there is none."""
    for path in sorted(folder.rglob("*.y*ml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "!function" in text or re.search(r"^\s*[\"']?class[\"']?\s*:", text, re.MULTILINE):
            return str(path)
    return ""


def _loaded(manager: Any, tasks: Sequence[str | dict[str, Any]]) -> list[Any]:
    try:
        with _without_waiting():
            return list(manager.load(list(tasks))["tasks"].values())
    except OSError as error:
        names = [name for name in tasks if isinstance(name, str) and name in manager.all_tasks]
        entries = (manager.task_index[name] for name in names)
        data = sorted({entry.cfg["dataset_path"] for entry in entries if entry.cfg and "dataset_path" in entry.cfg})
        raise OSError(
            f"the data of {', '.join(names)} cannot be had: {error}.\n"
            f"Where the hub can be reached: lm-eval run --model dummy --limit 1 --tasks {' '.join(names)}\n"
            f"It fetches {', '.join(data) or 'them'} into the folder ~/.cache/huggingface (or HF_HOME): bring that "
            "folder here, and set HF_HUB_OFFLINE=1; or bring the data sets' files and name their folder as data_folder."
        ) from error


def _from_files(entry: Any, folder: Path, beside: Path) -> str:
    """The file of a task like lm-eval's, written `beside`, whose data lie in a folder as `load_tasks` describes it."""
    known = entry.cfg or {}
    if "dataset_path" not in known:
        raise ValueError(
            f"{entry.name} is a group of tasks: name the tasks in it, whose data are looked for one by one"
        )
    repository, part = known["dataset_path"], known.get("dataset_name")
    place = folder / repository
    there = [
        path
        for path in sorted(place.rglob("*"))
        if path.suffix in _READERS and (part is None or part in path.relative_to(place).parts[:-1])
    ]
    splits = {split for name, split in known.items() if name.endswith("_split") and split}
    files = {split: [path for path in there if path.stem.split("-")[0] == split] for split in splits}
    scored = known.get("test_split") or known.get("validation_split")
    if not files.get(scored):
        raise FileNotFoundError(
            f"{entry.name}: {place / (part or '')} holds no split {scored!r}, as {scored}.parquet, "
            f"{scored}-00000-of-00001.parquet or {scored}.jsonl. Where the hub can be reached:\n"
            f"hf download {repository} --repo-type dataset --local-dir {place}"
        )
    suffix = files[scored][0].suffix
    alike = {split: [str(path) for path in paths if path.suffix == suffix] for split, paths in files.items()}
    own = {
        "include": str(entry.yaml_path),
        "task": entry.name,
        "dataset_path": _READERS[suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: paths for split, paths in alike.items() if paths}},
        **{name: None for name, split in known.items() if name.endswith("_split") and not alike.get(split)},
    }
    file = beside / f"{entry.name}.yaml"
    file.write_text(json.dumps(own), encoding="utf-8")  # JSON is YAML
    return str(file)


def benchmark(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | dict[str, Any]],
    *,
    task_folder: str | Path | None = None,
    data_folder: str | Path | None = None,
    run_code: bool = False,
    fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Benchmark:
    """Public language-model benchmarks through lm-eval, on a transformers model in memory (pruned or not).

    `tasks` are lm-eval's names, task configurations, or what `load_tasks` gave; `fewshot` None leaves each task's own
    number; `limit` takes the first examples only; `seed` draws the few-shot examples. Both acc and acc_norm (likelihood
    per character of the answer) are returned, NaN where a task does not define one. The model stays where it is, in
    evaluation mode.

    Raises:
        ValueError: the tokenizer has neither a start nor an end token; otherwise as `load_tasks`.
    """
    if not tasks or any(isinstance(task, str | dict) for task in tasks):
        tasks = load_tasks(tasks, task_folder, data_folder, run_code)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has neither a start nor an end token: lm-eval needs one of them")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        task_manager=TaskManager(include_defaults=False),  # the tasks are loaded
        num_fewshot=fewshot,
        limit=limit,
        log_samples=False,
        # Global random states are the caller's.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        fewshot_random_seed=seed,
    )
    return Benchmark(_scores(results), {package: metadata.version(package) for package in _PACKAGES})


def _scores(results: dict[str, Any]) -> pd.DataFrame:
    """The table of `Benchmark` from what lm-eval returns, groups of tasks left out."""
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
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def _number(value: Any) -> float:
    """lm-eval writes a standard error that it cannot tell as the text "N/A"."""
    return float(value) if isinstance(value, int | float) else math.nan


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Take data from the cache at once where the hub does not answer: by themselves the libraries retry for long."""
    import datasets
    import huggingface_hub

    from rules2ranks import checkpoints

    switches = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(*switch) for switch in switches]
    offline = not checkpoints.hub_answers()
    try:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, offline or value)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)
