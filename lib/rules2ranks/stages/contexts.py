"""The stage that learns many rules at once: a network that is told the rule by the rows that it has seen."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy import stats
from torch import Tensor, nn

from rules2ranks import automata, complexity, models, probes, runs, training
from rules2ranks.stages.learning import CHECKPOINT, WEIGHTS, draw_seed, floats
from rules2ranks.stages.ranges import Rate, Rule, Seed, Size, Steps
from rules2ranks.tasks import columns

#: Columns of each rule that scores are taken on, and the row from which on the layers are looked at.
SHOWN, LATE = 32, 20
#: How sure a network must be of each cell on the way to go on to the next: 1 - this is the error that it admits.
SURE = 0.95
#: Rows back in which a stretch's neighbourhoods are counted.
STRETCH = 8


class InContext(runs.Params):
    """A network that learns the columns of many rules, and looks `horizon` rows ahead.

    Raises:
        ParameterError: a hidden size that is no multiple of the heads.
    """

    rules: Annotated[list[Rule], Field(min_length=1)]
    horizon: Annotated[int, Field(ge=1, le=4, description="rows ahead")] = 1
    rows: Annotated[int, Field(ge=LATE + 2, le=900)] = 30
    layers: Size = 2
    heads: Size = 4
    hidden: Size = 64
    steps: Steps = 1000
    batch: Size = 64
    lr: Rate = 3e-3
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self


def network(given: InContext) -> models.RowGPT:
    """The network before training, on the device: a row's 2 · horizon + 1 cells in, later rows' middle cells out."""
    shape = {name: getattr(given, name) for name in ("layers", "heads", "hidden", "rows", "seed")}
    return models.RowGPT(2 * given.horizon + 1, given.horizon, **shape).to(training.device())


@runs.stage(version=1)
def in_context(work: Path, given: InContext) -> dict:
    """Train a network on columns of many rules, a rule drawn anew for each, and ask what it makes of every rule.

    The rule is given by nothing but the rows above. A cell is *known* when what determines it stood in an earlier row:
    then a network that looks it up is right, whatever the rule.

    Metrics: `rules`, for the smallest rule of each of the 88 kinds: the share of known cells predicted right, by rows
    ahead; the mean `step` (as many rows ahead as the network is sure of at 95 %, one at least), how many of the cells
    at that step are right (`sound`), and Spearman's correlation of the step with the number of different
    neighbourhoods in the last eight rows (`steady`, None where either is constant). `depth`: by what is asked, how well
    that is read off each layer, 0.5 to 1, on rules that were not learnt, for this network and an untrained one (see
    `depths`; None where too few rules are left). The history. Files: `model.safetensors`.
    """
    model = network(given)
    with training.reproducible(given.seed):
        history = training.train(
            model,
            lambda step: _batch(given, step),
            _loss,
            training.Schedule(given.steps, given.lr),
            seed=given.seed,
            checkpoint=work / CHECKPOINT,
            label=f"{len(given.rules)} rules in context",
        )
        models.save_weights(model, work / WEIGHTS)
        metrics = {
            "rules": [rule_scores(model, given, rule) for rule in automata.representatives()],
            "depth": depths(given, {"trained": model, "untrained": network(given).eval()}),
            "history": asdict(history),
        }
    (work / CHECKPOINT).unlink(missing_ok=True)
    return metrics


def _batch(given: InContext, step: int) -> tuple[Tensor, Tensor]:
    seed = draw_seed(given.seed, 0, step)
    rules = np.random.Generator(np.random.Philox(seed + 1)).choice(given.rules, given.batch)
    return _pair(columns.columns_of(rules, given.rows, given.horizon, seed=seed), given.horizon)


def _pair(drawn: np.ndarray, horizon: int) -> tuple[Tensor, Tensor]:
    return floats(drawn[:, :-horizon]), floats(columns.ahead(drawn, horizon))


def _loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(pair[0]), pair[1])


def rule_scores(model: nn.Module, given: InContext, rule: int) -> dict[str, Any]:
    """What a network makes of a rule's columns that it never saw: one entry of the metrics' `rules`."""
    drawn = columns.columns_of(np.full(SHOWN, rule), given.rows, given.horizon, seed=draw_seed(given.seed, 1, rule))
    x, y = _pair(drawn, given.horizon)
    with torch.no_grad():
        logits = model(x)
    right = ((logits > 0) == (y > 0.5)).cpu().numpy()
    known = columns.seen(drawn, given.horizon)
    step = steps_ahead(logits.sigmoid().cpu().numpy())
    sound = np.take_along_axis(right, step[..., None] - 1, -1)[..., 0]
    return {
        "rule": rule,
        "right": [float(right[..., k][known[..., k]].mean()) for k in range(given.horizon)],
        "step": float(step.mean()),
        "sound": float(sound.mean()),
        "steady": _rank_correlation(step[:, STRETCH:], _busy(drawn, given.horizon)),
    }


def steps_ahead(chance: np.ndarray) -> np.ndarray:
    """How many rows ahead a network goes, given its chances of a 1 `(…, horizon)`: `(…,)`, one at least.

    As far as it is sure of every middle cell on the way (`SURE`).
    """
    sure = np.maximum(chance, 1 - chance) >= SURE
    sure[..., 0] = True
    return np.logical_and.accumulate(sure, -1).sum(-1)


def _busy(drawn: np.ndarray, horizon: int) -> np.ndarray:
    """Different neighbourhoods of the middle cell in the last `STRETCH` rows, for rows from there on."""
    near = columns.neighbourhoods(drawn, horizon)
    windows = np.lib.stride_tricks.sliding_window_view(near[:, 1:], STRETCH, axis=1)
    return (windows[..., None] == np.arange(8)).any(-2).sum(-1)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return None if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.spearmanr(a.ravel(), b.ravel()).statistic)


def depths(given: InContext, networks: dict[str, models.RowGPT]) -> dict[str, dict[str, list[float | None]]] | None:
    """By network and by what is asked, how well it is read off each layer by a linear function (`probes.read_off`).

    Asked are the next cell; the rule's own table, an entry at a time, as far as it was seen; and whether the rule is of
    Wolfram's class III or IV. On rules not learnt, fitted on some kinds of them and tested on others. None where fewer
    than 20 kinds are left, or an answer is missing among them.
    """
    classes = complexity.wolfram_classes()["class"]
    kinds = set(automata.representatives()) - {automata.representative(rule) for rule in given.rules}
    if len(kinds) < 20:
        return None
    # By class, so that the folds have as many of each.
    kinds = sorted(kinds, key=lambda rule: (classes[rule], rule))
    rules = np.repeat([rule for rule in range(256) if automata.representative(rule) in kinds], 4)
    drawn = columns.columns_of(rules, given.rows, given.horizon, seed=draw_seed(given.seed, 1, 256))
    asked = _asked(rules, drawn, given.horizon)
    groups = np.repeat([kinds.index(automata.representative(rule)) for rule in rules], given.rows - LATE)
    found = {}
    for name, model in networks.items():
        layers = probes.residuals(model, floats(drawn[:, : given.rows]))[:, :, LATE:].flatten(1, 2).cpu().numpy()
        found[name] = {
            what: [_mean_score(layer, answers, groups) for layer in layers] for what, answers in asked.items()
        }
    return found


def _asked(rules: np.ndarray, drawn: np.ndarray, horizon: int) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """What is asked of late rows: yes or no, and of which rows it is asked, each (columns · late rows,)."""
    near = columns.neighbourhoods(drawn, horizon)
    met = np.logical_or.accumulate(near[..., None] == np.arange(8), 1)
    # What follows a neighbourhood is seen a row later.
    met = np.concatenate([np.zeros_like(met[:, :1]), met[:, :-1]], 1)[:, LATE:].reshape(-1, 8)
    wide = (len(rules), near.shape[1] - LATE)
    table = np.array([automata.rule_table(rule) for rule in rules]).astype(bool)
    classes = complexity.wolfram_classes()["class"].loc[rules].to_numpy()
    always = np.ones(np.prod(wide), bool)
    return {
        "next cell": [(columns.ahead(drawn, horizon)[:, LATE:, 0].ravel().astype(bool), always)],
        "rule's table": [(np.broadcast_to(table[:, [b]], wide).ravel(), met[:, b]) for b in range(8)],
        "class III or IV": [(np.broadcast_to(classes[:, None] >= 3, wide).ravel(), always)],
    }


def _mean_score(
    layer: np.ndarray, answers: Sequence[tuple[np.ndarray, np.ndarray]], groups: np.ndarray
) -> float | None:
    score = float(np.mean([probes.read_off(layer[of], answer[of], groups[of]) for answer, of in answers]))
    return None if np.isnan(score) else score
