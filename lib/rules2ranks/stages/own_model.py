"""A causal language model of your own: what the stages made of it as one folder to use, and on public benchmarks.

`stages.prune(base={"model": ..., "data": ...}, ratio=...)` and `stages.recover(pruned=...)` take it as they take any
base: see `own_texts.OwnModel`. `demo` makes a small model and texts to try all this on.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import PreTrainedTokenizerFast

from rules2ranks import checkpoints, models, pruning, quantisation, recovery, runs, training
from rules2ranks.evaluation import benchmarks
from rules2ranks.pruning.portable import CODE
from rules2ranks.recovery.methods import IN_PLACE
from rules2ranks.runs import stage
from rules2ranks.stages.compressing import Pruned, Pruning, Recovery, begun, load_pruned, pruned_shapes, recover
from rules2ranks.stages.cutting import Cut
from rules2ranks.stages.own_texts import OwnModel, tokenizer_of
from rules2ranks.stages.ranges import Seed, Size
from rules2ranks.stages.subjects import shipped_model, subject
from rules2ranks.tasks import language as suite

ADAPTER = "adapter"
#: What file browsers and network disks leave in any folder.
_OF_SYSTEMS = (".DS_Store", ".nfs")


# --- one folder -------------------------------------------------------------------------------------------------


def export(recovered: Mapping[str, Any] | Recovery, folder: str | Path, merged: bool = True) -> Path:
    """Write what `recover` made of a model of your own as one folder that needs nothing of `runs/`; returns it.

    The folder holds the weights as safetensors, the configuration, the sizes of all layers, the tokenizer, and a
    README. Merged, the adapter is in the weights, and two lines load it, where this package is not installed, too:

        model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    `trust_remote_code` is for the modelling file that lies there; where all layers have the same sizes there is none
    (see `pruning.portable`). `pruning.load_pruned(folder)` loads it without running any file.
    Otherwise the adapter lies beside them, in PEFT's own format: `recovery.load_adapter(model, folder / "adapter")`
    puts it on. So it does, whatever `merged` says, where a matrix with an adapter has fewer than 16 bits: it is packed,
    and its few bits cannot say the sum. Packed matrices are for `load_pruned` alone.
    `recovered` are the parameters of a recovery, made if need be (`stages.recover(...).params`, for example). The
    folder appears whole or not at all; one that an earlier export wrote is replaced.

    Raises:
        ValueError: the recovered model is none of your own, or the folder holds something else.
    """
    recovered = Recovery.check(recovered)
    base = _own(recovered)
    folder = Path(folder).expanduser()
    if other := _others(folder):
        raise ValueError(f"{folder} holds something else than an exported model ({other}): name another folder")
    result = recover(recovered)
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    apart = bool(recovered.ranks) and not (merged and _merges(recovered))
    pruning.save_pruned(_frozen(recovered) if apart else recovered_model(recovered), beside)
    if apart:
        (beside / ADAPTER).mkdir()
        for file in (*result.folder.glob("adapter_*"), *result.folder.glob("correction.safetensors")):
            shutil.copyfile(file, beside / ADAPTER / file.name)
    for file in checkpoints.tokenizer_files(checkpoints.find(base.model)):
        shutil.copyfile(file, beside / file.name)
    ordinary = pruning.make_portable(beside) if not recovered.bits else None
    (beside / "README.md").write_text(_readme(recovered, result.metrics, apart, ordinary), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)
    return folder


def _others(folder: Path) -> str:
    """What lies in a folder and is of no export, which would be lost if it were replaced; "" if there is nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return ""
    if not (folder / "pruning.json").is_file():
        return "no pruning.json"
    tokenizer = {path.name for path in checkpoints.tokenizer_files(folder)}
    ours = {"config.json", "generation_config.json", "pruning.json", "README.md", "model.safetensors", CODE, ADAPTER}
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(name for name in names if name not in ours | tokenizer and not name.startswith(_OF_SYSTEMS))


def recovered_model(recovered: Recovery) -> nn.Module:
    """The model of a recovery, made if need be: the adapter is added to the weights, or lies on those of few bits."""
    adapter, model = recover(recovered).folder, _frozen(recovered)
    if not recovered.ranks:
        return model
    adapted = recovery.load_adapter(model, adapter)
    return recovery.merge(adapted) if _merges(recovered) else adapted


def _merges(recovered: Recovery) -> bool:
    """Whether no matrix has both an adapter and few bits, which cannot say the sum."""
    return recovered.bits.keys().isdisjoint(recovered.ranks)


def _frozen(recovered: Recovery) -> nn.Module:
    """The pruned model as it lies beneath its adapter."""
    if not recovered.bits:
        return load_pruned(recovered.pruned)
    if not recovered.ranks:
        return quantisation.pack(load_pruned(recovered.pruned), recovered.bits, recovered.group)
    return begun(recovered, packed=True).unload()  # some methods choose the bits with the ranks in view


_README = """# A pruned language model

Made of {name} by rules2ranks: {ratio:.0%} of all parameters removed, then {how}.
On {texts} texts or so that neither training nor a search saw: {loss:.4f} nats per token, perplexity {perplexity:.4g}.

{loads}

```python
{code}
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")
```

How it was made:

```json
{parameters}
```
"""


_PLAIN = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
#: What a reader is told of loading, and the lines for it: of an ordinary checkpoint, one with code, a packed one.
_LOADING = {
    True: (
        "It is an ordinary checkpoint of transformers:",
        f'{_PLAIN}model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")',
    ),
    False: (
        f"Its layers have sizes of their own, which the file {CODE} makes. Read it before you trust it: transformers\n"
        "runs it, and nothing else is needed. (`rules2ranks.pruning.load_pruned` loads the folder without running it.)",
        f'{_PLAIN}model = AutoModelForCausalLM.from_pretrained("THIS FOLDER", trust_remote_code=True)',
    ),
    None: (
        "Some of its matrices are packed in few bits, which only rules2ranks knows:",
        "from rules2ranks import pruning\nfrom transformers import AutoTokenizer\n\n"
        'model = pruning.load_pruned("THIS FOLDER")',
    ),
}


def _readme(recovered: Recovery, scores: Mapping[str, Any], apart: bool, ordinary: bool | None) -> str:
    loads, code = _LOADING[ordinary]
    if apart and ordinary is not None and recovered.method not in {each.name for each in IN_PLACE}:
        code = f'from peft import PeftModel\n{code}\nmodel = PeftModel.from_pretrained(model, "THIS FOLDER/{ADAPTER}")'
    elif apart:
        code = (
            f'from rules2ranks import recovery\n{code}\nmodel = recovery.load_adapter(model, "THIS FOLDER/{ADAPTER}")'
        )
    where = f"lies in the folder {ADAPTER}" if apart else "is in the weights"
    steps = [f"{len(recovered.bits)} matrices put into few bits"] if recovered.bits else []
    steps += [f"recovered ({recovered.method}; what that adds {where})"] if recovered.ranks else []
    return _README.format(
        name=Path(recovered.pruned.base.model).name,
        ratio=1 - pruned_shapes(recovered.pruned).parameters / subject(recovered.base).shapes.parameters,
        how=", then ".join(steps) or "left so",
        texts=recovered.pruned.base.held_out,
        loss=scores["loss"],
        perplexity=scores["perplexity"],
        loads=loads,
        code=code,
        parameters=json.dumps(_portable(recovered), indent=1),
    )


def _portable(recovered: Recovery) -> dict[str, Any]:
    """The parameters of a recovery with the names of model and texts, wherever they lie: the fingerprint says which."""
    base = _own(recovered)

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: named(each) for name, each in value.items()}
        return Path(value).name if value in (base.model, base.data) else value

    return named(recovered.model_dump(mode="json"))


def _own(given: Pruning | Cut | Recovery | OwnModel) -> OwnModel:
    base = given if isinstance(given, OwnModel) else given.base
    if not isinstance(base, OwnModel):
        raise ValueError(f"expected a base with a model of your own (model, data), got {base!r}: it has no tokenizer")
    return base


# --- public benchmarks ------------------------------------------------------------------------------------------


class Folder(runs.OfFiles):
    """A folder for lm-eval, of task configurations in YAML or of data; its content decides which result is found."""

    folder: str

    @property
    def place(self) -> Path:
        return Path(self.folder).expanduser()

    def fingerprints(self) -> dict[str, str]:
        if not self.place.is_dir():
            raise ValueError(f"there is no folder {self.place.absolute()}")
        files = (p for p in sorted(self.place.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
        text = "".join(f"{path.relative_to(self.place)} {checkpoints.sha256(path)}\n" for path in files)
        return {"content": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _kind(of: Any) -> str:
    keys = of.keys() if isinstance(of, Mapping) else type(of).model_fields.keys() if isinstance(of, runs.Params) else ()
    return "(recovered)" if "pruned" in keys else "(whole)" if "model" in keys else "(pruned)"


#: A model of your own as it is, pruned, or recovered.
Of = Annotated[
    Annotated[OwnModel, BeforeValidator(OwnModel.nested), Tag("(whole)")]
    | Annotated[Pruned, Tag("(pruned)")]
    | Annotated[Recovery, BeforeValidator(Recovery.nested), Tag("(recovered)")],
    Discriminator(_kind),
]


class Benchmarking(runs.Params):
    """A model of your own on public benchmarks: `tasks` are lm-eval's names, `task_folder` holds further ones.

    Data are those of the hub or its cache, or files of a `data_folder` laid out as the hub has them: see
    `evaluation.benchmarks.load_tasks`. `fewshot` None leaves each task's own number (0 for the seven); `limit` takes
    the first examples only. Python that a `task_folder` names runs only with `run_code`.
    """

    of: Of
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = benchmarks.SEVEN
    task_folder: Folder | None = None
    data_folder: Annotated[Folder | None, Field(exclude_if=lambda folder: folder is None)] = None
    run_code: Annotated[bool, Field(exclude_if=lambda given: not given)] = False
    fewshot: Annotated[int, Field(ge=0, le=100)] | None = None
    limit: Size | None = None
    batch: Size = 8
    seed: Seed = 0


@stage(version=1)
def benchmark(work: Path, given: Benchmarking) -> dict:
    """A model of your own (as it is, pruned or recovered) on public benchmarks through lm-eval: the extra ``llm``.

    Metrics: per task acc and acc_norm (None where a task does not define it) with their standard errors, n, few-shot
    examples and the task's version; the means over tasks of acc, and of acc_norm with acc in its stead where there is
    none; the versions of lm-eval and of the libraries beneath it.

    Raises:
        ImportError, ValueError, OSError: as `evaluation.benchmarks.load_tasks`, before the model is loaded.
        ValueError: the model is none of your own, so it has no tokenizer.
    """
    base = _own(given.of)
    places = [folder and folder.place for folder in (given.task_folder, given.data_folder)]
    tasks = benchmarks.load_tasks(given.tasks, *places, run_code=given.run_code)
    how = {"fewshot": given.fewshot, "limit": given.limit, "batch_size": given.batch, "seed": given.seed}
    with training.reproducible(given.seed):
        found = benchmarks.benchmark(_model(given.of), tokenizer_of(base.model), tasks, **how)
    scores = found.scores
    return {
        "tasks": {
            task: {name: None if _nan(value) else value for name, value in row.items()}
            for task, row in scores.to_dict("index").items()
        },
        "mean_acc": _finite(scores.acc.mean()),
        "mean_acc_norm": _finite(scores.acc_norm.fillna(scores.acc).mean()),
        "versions": found.versions,
    }


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _finite(value: float) -> float | None:
    return None if _nan(float(value)) else float(value)


def _model(of: OwnModel | Pruning | Cut | Recovery) -> nn.Module:
    """The model to measure, on the device; an adapter is merged where `export` merges it."""
    match of:
        case OwnModel():
            return models.load_causal_lm(of.model, of.dtype).to(training.device())
        case Pruning() | Cut():
            return load_pruned(of)
        case Recovery():
            return recovered_model(of)


# --- to try it on -----------------------------------------------------------------------------------------------


def demo(folder: str | Path, examples: int = 1400, seed: int = 0) -> dict[str, str]:
    """Write a small model and texts as you would bring them, and return their places as `model` and `data`.

    The model is the language suite's, with its words as a tokenizer; the texts are prompts and answers of its seven
    tasks, `examples` draws of which some occur twice.
    """
    folder = Path(folder)
    place = folder / "model"
    place.mkdir(parents=True, exist_ok=True)
    for file in shipped_model().iterdir():
        shutil.copyfile(file, place / file.name)
    words = Tokenizer(WordLevel({word: token for token, word in enumerate(suite.WORDS)}, unk_token=suite.WORDS[0]))
    words.pre_tokenizer = WhitespaceSplit()
    # lm-eval asks every tokenizer for a start token; no text begins with it.
    special = {"unk_token": suite.WORDS[0], "bos_token": suite.WORDS[0]}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(place)
    rows = []
    for tokens, labels in zip(*suite.batch(examples, seed), strict=True):
        given = labels == suite.IGNORED
        prompt, answer = (suite.decode(np.where(mask, tokens, 0)) for mask in (given, ~given))
        rows.append({"prompt": f"{prompt} ", "completion": answer})
    (folder / "texts.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    return {"model": str(place), "data": str(folder / "texts.json")}
