"""A model with fewer query heads for each key/value head: a step before pruning, as a smaller vocabulary is."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator
from torch import Tensor
from transformers import PreTrainedConfig

from rules2ranks import decoders, importance, models, runs, training
from rules2ranks.importance import Kind
from rules2ranks.runs import stage
from rules2ranks.stages.own_texts import OwnModel, tokenizer_of
from rules2ranks.stages.ranges import Seed, Size
from rules2ranks.stages.subjects import subject


class QueryHeads(runs.Params):
    """Keep `keep` query heads for each key/value head, in all layers, the most important ones."""

    base: Annotated[OwnModel, BeforeValidator(OwnModel.nested)]
    keep: Size
    importance: Kind = "taylor"
    seed: Seed = 0


@stage(version=1)
def query_heads(work: Path, given: QueryHeads) -> dict:
    """An ordinary checkpoint with fewer query heads, and its tokenizer; the result's folder is a `model` for the rest.

    Structured pruning takes attention in whole groups, a key/value head with all its query heads, of which a small
    model may have one. This takes single query heads, the same number from each group.

    Metrics: query heads for each key/value head before and after, parameters and their share that went, and the scores
    on held-out texts before and after.

    Raises:
        ValueError: as `decoders.query_heads`; or no fewer query heads, or a number that the architecture does not take.
    """
    about = subject(given.base)
    empty = about.skeleton()
    layers, parts = decoders.groups(empty), decoders.query_heads(empty)
    heads = min(part.count // layer.attention.count for layer, part in zip(layers, parts, strict=True))
    possible = [number for number in range(1, heads) if _loads(empty.config, number * layers[0].attention.count)]
    if given.keep not in possible:
        raise ValueError(
            f"of {heads} query heads for each key/value head {' or '.join(map(str, possible)) or 'all'} can be kept "
            f"(transformers refuses to load other numbers), got {given.keep}"
        )
    with training.reproducible(given.seed):
        model, batches = about.model, about.calibration(given.seed)
        before, count = about.evaluate("report"), models.parameter_count(model)
        heads_of = decoders.query_heads(model)
        how = (given.importance, given.seed, about.positions)
        scores, _ = importance.scored(model, heads_of, batches, about.loss, *how)
        kept = [_most(score, layer.attention.count, given.keep) for score, layer in zip(scores, layers, strict=True)]
        smaller = decoders.keep_query_heads(about.load(), kept)
        after = about.evaluate("report", smaller)
    smaller.save_pretrained(work)
    tokenizer_of(given.base.model).save_pretrained(work)
    left = models.parameter_count(smaller)
    return {
        "heads_before": heads,
        "heads_after": given.keep,
        "parameters_before": count,
        "parameters_after": left,
        "parameters_removed": 1 - left / count,
        "before": before,
        "after": after,
    }


def _loads(config: PreTrainedConfig, heads: int) -> bool:
    """Whether transformers takes a configuration with so many query heads: some must divide the hidden size."""
    try:
        type(config).from_dict(config.to_dict() | {"num_attention_heads": heads})
    except Exception:  # in words and classes of its own
        return False
    return True


def _most(score: Tensor, keys: int, keep: int) -> list[int]:
    """The most important query heads of each key/value head, ascending; of equals the first."""
    each = score.unflatten(0, (keys, -1))
    best = each.argsort(dim=1, descending=True, stable=True)[:, :keep] + torch.arange(keys)[:, None] * each.shape[1]
    return sorted(best.flatten().tolist())
