"""The stage that looks inside a pretrained network."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from safetensors.torch import save_file

from rules2ranks import automata, models, probes, runs, training
from rules2ranks.stages.learning import Pretraining, floats, held_out, pretrain, pretrained, untrained

ACTIVATIONS = "activations.safetensors"
#: Coin flips that every network is shown: the same for all, and from no rule.
_SHOWN = 16
_LAST = 10


class Inspection(runs.Params):
    """The network to look into."""

    body: Pretraining


@runs.stage(version=1)
def inspect(work: Path, given: Inspection) -> dict:
    """Look inside the network that learnt from a rule.

    Metrics: the share of attention that goes to the last ten rows, on validation windows of its own rule (mean, by
    layer, and that of the untrained network), and the prequential epiplexity of its training in bits × steps per
    target bit; no attention (None) where there are fewer than twenty rows. Files:
    `activations.safetensors`, what the blocks make of the second half of 16 windows of coin flips, `(n, hidden)`.
    """
    body, learnt = given.body, pretrain(given.body).metrics
    model, shown = pretrained(body), floats(automata.random_states((_SHOWN, body.rows), body.width, seed=0))
    with training.reproducible(0):
        seen = probes.activations(model, shown)[:, body.rows // 2 :]
        # (shown, second half of the rows, hidden) to (n, hidden)
        save_file({"seen": seen.flatten(0, 1).cpu().contiguous()}, work / ACTIVATIONS)
        attention = _attention(model, body) if body.rows >= 2 * _LAST else None
    return {
        "attention": attention,
        "epiplexity": probes.epiplexity(learnt["history"]["loss"], learnt["loss"]),
        "targets_per_step": body.batch * body.rows * body.width,
    }


def _attention(model: models.RowGPT, body: Pretraining) -> dict[str, Any]:
    own = floats(held_out(body))[:, :-1]
    by_head, before = (
        probes.attention_to_last(probes.attention(m, own), _LAST) for m in (model, untrained(body).eval())
    )
    return {
        "last_10": by_head.mean().item(),
        "by_layer": by_head.mean(1).tolist(),
        "untrained": before.mean().item(),
    }


def similarity(bodies: list[list[Pretraining]]) -> np.ndarray:
    """Linear CKA between the networks of several rules, `(rules, rules)`: the mean over all pairs of unlike seeds.

    In `bodies[rule][seed]` networks of one seed begin with the same weights, which alone makes them alike, so only
    unlike seeds are compared; the diagonal is how alike two networks of one rule are.
    """
    # Each side's own norm is needed again and again: made once. (rules, seeds, n, hidden)
    scaled = np.array(
        [[_scaled(load_file(inspect(body=each).file(ACTIVATIONS))["seen"]) for each in row] for row in bodies]
    )
    rules, seeds = scaled.shape[:2]
    found = np.zeros((rules, rules))
    for s, t in permutations(range(seeds), 2):
        for a in range(rules):
            products = np.einsum("np,bnq->bpq", scaled[a, s], scaled[:, t], optimize=True)
            found[a] += np.square(products).sum((1, 2))
    return found / (seeds * (seeds - 1))


def _scaled(features: np.ndarray) -> np.ndarray:
    """Centred, and scaled so that the squared norm of two sets' product is their CKA."""
    features = features.astype(float)
    centred = features - features.mean(axis=0)
    return centred / np.sqrt(np.linalg.norm(centred.T @ centred))
