"""What is seen inside a tiny network, beside the same worked out by hand."""

import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rules2ranks import probes, stages
from rules2ranks.stages import inspecting, learning
from rules2ranks.stages.learning import Pretraining
from tiny_rows import TINY

pytestmark = pytest.mark.usefixtures("store")


def test_what_is_seen_inside_a_network():
    asked = {**TINY, "source": 204, "rows": 24, "steps": 20}
    body = Pretraining(**asked)
    result, learnt = stages.inspect(body=asked), stages.pretrain(body)
    model, m = learning.pretrained(body), result.metrics
    with torch.no_grad():
        x = model.input(torch.from_numpy(learning.held_out(body)[:, :-1]).float()) + model.body.wpe.weight
        q, k, _ = model.body.h[0].attn.c_attn(model.body.h[0].ln_1(x)).chunk(3, -1)
    shares = []
    for head in range(2):
        own = slice(16 * head, 16 * head + 16)
        scores = (q[..., own] @ k[..., own].mT / 4).numpy()
        for t in range(19, 24):  # the positions that see twenty rows and more
            weight = np.exp(scores[:, t, : t + 1])
            shares.append((weight[:, -10:].sum(-1) / weight.sum(-1)).mean())
    assert m["attention"]["last_10"] == pytest.approx(np.mean(shares), abs=1e-5)
    assert m["attention"]["by_layer"] == [pytest.approx(m["attention"]["last_10"])]
    # Weights this small attend nearly evenly before they learn: ten of 20 to 24 rows.
    assert m["attention"]["untrained"] == pytest.approx(probes.attention_spread_evenly(24), abs=0.02)
    assert m["targets_per_step"] == 16 * 24 * 8
    excess = [value - learnt.metrics["loss"] for _, value in learnt.metrics["history"]["loss"]]
    assert len(excess) == learnt.metrics["steps"]  # an entry a step, so that the area is their sum
    assert m["epiplexity"] == pytest.approx(sum(excess) / math.log(2), rel=1e-9)
    seen = load_file(result.file("activations.safetensors"))["seen"]
    assert seen.shape == (16 * 12, 32)
    assert seen.std() > 0.1
    # From behind the last norm: the output layer makes logits of them.
    coins = np.random.Generator(np.random.Philox(0)).random((16, 24, 8)) < 0.5
    with torch.no_grad():
        logits = model(torch.from_numpy(coins).float())[:, 12:].flatten(0, 1)
        np.testing.assert_allclose(model.output(torch.from_numpy(seen)), logits, atol=1e-5)  # single precision


def test_too_few_rows_show_no_attention_to_the_last_ten():
    assert stages.inspect(body={"source": 204, **TINY}).metrics["attention"] is None


def test_likeness_of_networks_is_the_mean_over_unlike_seeds():
    small = {**TINY, "steps": 2, "rounds": 1}
    bodies = [[Pretraining(**small, source=source, seed=seed) for seed in range(3)] for source in (204, 90)]
    seen = [
        [load_file(stages.inspect(body=body).file("activations.safetensors"))["seen"] for body in row] for row in bodies
    ]
    pairs = [(s, t) for s in range(3) for t in range(3) if s != t]
    by_hand = [[np.mean([probes.cka(a[s], b[t]) for s, t in pairs]) for b in seen] for a in seen]
    found = inspecting.similarity(bodies)
    # Double precision on activations of single precision, the same in both.
    np.testing.assert_allclose(found, by_hand, rtol=1e-9)
    np.testing.assert_allclose(found, found.T, rtol=1e-9)
    # After two steps two networks of one seed are nearly the same, which is why such pairs do not count.
    assert probes.cka(seen[0][0], seen[1][0]) > found[0, 1] + 0.1
