"""The stage that looks inside a pretrained network."""

from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from rules2ranks import automata, probes, training
from rules2ranks.runs import stage
from rules2ranks.stages import learning
from rules2ranks.stages.learning import floats, pretrain

ACTIVATIONS = "activations.safetensors"
#: Coin flips that every network is shown: the same for all, and from no rule.
_SHOWN = 16
_LAST = 10


@stage(version=1, uses=(pretrain,))
def inspect(work: Path, body: pretrain.Params) -> dict:
    """Look inside the network that learnt from a rule.

    Metrics: the share of attention that goes to the last ten rows, on validation windows of its own rule (mean, by
    layer, and that of the untrained network), and the prequential epiplexity of its training in bits × steps per
    target bit; no attention (None) where there are fewer than twenty rows. Files:
    `activations.safetensors`, what the blocks make of the second half of 16 windows of coin flips, `(n, hidden)`.
    """
    result = pretrain(**body.model_dump())
    model, start = learning.pretrained(body), learning.untrained(body).eval()
    own = floats(learning.held_out(body))[:, :-1]
    shown = floats(automata.random_states((_SHOWN, body.rows), body.width, seed=0))
    with training.reproducible(0):
        seen = probes.activations(model, shown)[:, body.rows // 2 :]
        save_file({"seen": seen.flatten(0, 1).cpu().contiguous()}, work / ACTIVATIONS)
        attention = None
        if body.rows >= 2 * _LAST:
            by_head, before = (probes.attention_to_last(probes.attention(m, own), _LAST) for m in (model, start))
            attention = {
                "last_10": by_head.mean().item(),
                "by_layer": by_head.mean(1).tolist(),
                "untrained": before.mean().item(),
            }
    history = result.metrics["history"]
    return {
        "attention": attention,
        "epiplexity": probes.epiplexity(history["loss"], result.metrics["loss"]),
        "targets_per_step": body.batch * body.rows * body.width,
    }


def similarity(bodies: list[list]) -> np.ndarray:
    """Linear CKA between the networks of several rules, `(rules, rules)`: the mean over all pairs of unlike seeds.

    `bodies[rule][seed]` are `pretrain.Params`. Networks of one seed begin with the same weights, which alone makes
    them alike, so only unlike seeds are compared; the diagonal is how alike two networks of one rule are.
    """
    from safetensors.numpy import load_file

    seen = [
        [load_file(inspect(body=each.model_dump()).file(ACTIVATIONS))["seen"].astype(float) for each in row]
        for row in bodies
    ]
    rules, seeds = len(seen), len(seen[0])
    # Each side's own norm is needed again and again: made once.
    scaled = np.array([[_scaled(features) for features in row] for row in seen])
    found = np.zeros((rules, rules))
    for s in range(seeds):
        for t in range(seeds):
            if s != t:
                for a in range(rules):
                    products = np.einsum("np,bnq->bpq", scaled[a, s], scaled[:, t], optimize=True)
                    found[a] += np.square(products).sum((1, 2))
    return found / (seeds * (seeds - 1))


def _scaled(features: np.ndarray) -> np.ndarray:
    """Centred, and scaled so that the squared norm of two sets' product is their CKA."""
    centred = features - features.mean(axis=0)
    return centred / np.sqrt(np.linalg.norm(centred.T @ centred))
