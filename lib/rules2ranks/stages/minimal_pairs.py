"""Which of two sentences a language model finds likelier: minimal pairs, of which one is good English, as in BLiMP."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from rules2ranks import checkpoints, models, runs, training
from rules2ranks.runs import stage
from rules2ranks.stages.compressing import Recovery
from rules2ranks.stages.own_model import recovered_model
from rules2ranks.stages.ranges import Size
from rules2ranks.stages.subjects import subject


class Pair(NamedTuple):
    """Two sentences that differ in what one of them has wrong, and the field of grammar that this belongs to."""

    field: str
    good: str
    bad: str


def read(path: str | Path) -> list[Pair]:
    """The pairs of a file in BLiMP's form: JSON lines with `field`, `sentence_good` and `sentence_bad`.

    Raises:
        ValueError: a line is no such object: names the file and the line.
    """
    found = []
    for number, line in enumerate(Path(path).expanduser().read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            field = entry["field"].replace("_", "/")  # BLiMP has both spellings of syntax/semantics
            found.append(Pair(field, entry["sentence_good"], entry["sentence_bad"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected an object with field, sentence_good and sentence_bad ({error!r})"
            ) from error
    return found


@torch.no_grad()
def log_likelihoods(model: nn.Module, tokenizer: Any, sentences: Sequence[str], at_once: int = 16) -> list[float]:
    """The log-probability of each sentence in nats; its first token, with which the tokenizer begins it, is given."""
    device, found = next(model.parameters()).device, []
    for place in range(0, len(sentences), at_once):
        encoded = tokenizer(list(sentences[place : place + at_once])).input_ids
        tokens = pad_sequence([torch.tensor(ids, device=device) for ids in encoded], batch_first=True)
        says = model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        each = says.gather(-1, tokens[:, 1:, None])[..., 0]
        found += [row[: len(ids) - 1].sum().item() for row, ids in zip(each, encoded, strict=True)]
    return found


class MinimalPairs(runs.OfFiles):
    """A recovered model (or with ranks of 0 a pruned one, at ratio 0 the whole one) on the pairs of a file."""

    recovered: Annotated[Recovery, BeforeValidator(Recovery.nested)]
    data: str
    at_once: Size = 16

    def fingerprints(self) -> dict[str, str]:
        data = Path(self.data).expanduser()
        if not data.is_file():
            raise ValueError(f"data: there is no file {data.absolute()}; BLiMP is at github.com/alexwarstadt/blimp")
        return {"data": checkpoints.sha256(data)[:16]}


@stage(version=1)
def pairs(work: Path, given: MinimalPairs) -> dict:
    """How often a model of your own finds the good sentence of a minimal pair likelier than the bad one.

    Metrics: `fields`, by name how many of how many; `parameters` of the model. No files.

    Raises:
        ValueError: the model has no tokenizer, or the file holds something else.
    """
    read_pairs = read(given.data)
    tokenizer = getattr(subject(given.recovered.base), "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"a model with a tokenizer is needed, {given.recovered.base!r} has none")
    model = recovered_model(given.recovered).eval()
    with training.reproducible(0):
        good, bad = (
            log_likelihoods(model, tokenizer, [getattr(pair, which) for pair in read_pairs], given.at_once)
            for which in ("good", "bad")
        )
    fields: dict[str, list[int]] = {}
    for pair, one, other in zip(read_pairs, good, bad, strict=True):
        counts = fields.setdefault(pair.field, [0, 0])
        counts[0] += one > other
        counts[1] += 1
    return {"fields": fields, "parameters": models.parameter_count(model)}
