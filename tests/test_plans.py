"""Plans: the ratio kept to a point, every spread by its definition, and what cannot be planned refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks import pruning
from rules2ranks.models import parameter_count, small_llama
from rules2ranks.spreads import SPREADS
from tiny_decoders import build

LLAMA = small_llama(0)
SCORES = pruning.importance(LLAMA, (), None, "random", seed=0)
BLOCKS = [0.40, 0.16, 0.13, 0.07, 0.09, 0.08, 0.09, 0.11]


@given(
    st.floats(0.02, 0.6),
    st.sampled_from(list(SPREADS)),
    st.integers(0, 1),
    st.integers(0, 1),
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
    st.booleans(),
)
def test_ratio_is_kept_to_a_point(ratio, spread, first, last, blocks, standardise):
    plan = pruning.plan(
        LLAMA, SCORES, ratio, spread=spread, protect=(first, last), blocks=blocks, standardise=standardise
    )
    pruned = pruning.prune(LLAMA, plan)
    really = 1 - parameter_count(pruned) / parameter_count(LLAMA)
    assert abs(really - ratio) <= 0.01 and really == pytest.approx(plan.removed)
    whole = {"attention_groups": 4, "channels": 192}
    sizes = pruning.sizes(pruned)
    assert sizes[:first] == [whole] * first and sizes[8 - last :] == [whole] * last
    assert all(size["attention_groups"] >= 1 and size["channels"] >= 1 for size in sizes)


def size_of(layer):
    """Parameters in groups."""
    return sum(part.count * part.parameters for part in layer.parts)


def losses(plan):
    """Parameters that each layer loses."""
    pruned = pruning.prune(LLAMA, plan)
    return [size_of(a) - size_of(b) for a, b in zip(pruning.groups(LLAMA), pruning.groups(pruned), strict=True)]


def least_important_go(plan, scores=SCORES):
    """Within a layer and a kind nothing that stays is less important than what goes."""
    return all(
        not (gone := sorted(set(range(len(score))) - set(kept))) or score[gone].max() <= score[list(kept)].min()
        for layer, *pair in zip(plan.layers, scores.attention, scores.channels, strict=True)
        for kept, score in zip((layer.attention, layer.channels), pair, strict=True)
    )


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.5])
def test_uniform_takes_the_least_important_in_equal_shares(ratio):
    plan = pruning.plan(LLAMA, SCORES, ratio, protect=(1, 1))
    lost = losses(plan)[1:-1]
    assert max(lost) - min(lost) <= pruning.groups(LLAMA)[0].channels.parameters
    assert len({len(kept.attention) for kept in plan.layers[1:-1]}) == 1
    assert least_important_go(plan)


@pytest.mark.parametrize(("ratio", "protect"), [(0.2, (0, 0)), (0.3, (1, 1)), (0.5, (1, 0))])
def test_importance_keeps_in_proportion_to_a_sigmoid(ratio, protect):
    """What a layer keeps is c · σ(z), cut off at 1, with the same c for all layers that are not cut off."""
    plan = pruning.plan(LLAMA, SCORES, ratio, spread="importance", protect=protect, blocks=BLOCKS)
    free = slice(protect[0], 8 - protect[1])
    size = size_of(pruning.groups(LLAMA)[0])
    kept = 1 - np.array(losses(plan)[free]) / size
    blocks = np.array(BLOCKS)[free]
    sigmoid = 1 / (1 + np.exp(-(blocks - blocks.mean()) / blocks.std()))
    inner = kept < 0.999
    factor = (kept / sigmoid)[inner]
    channel = pruning.groups(LLAMA)[0].channels.parameters / size
    # A layer misses its share by a channel at most: half of its own rounding, half of the layer's before.
    assert np.all(np.abs(kept - np.minimum(factor.mean() * sigmoid, 1)) <= 1.5 * channel)
    assert inner.sum() >= 4 and len(set(np.round(kept, 2))) >= 4
    assert np.all(np.diff(kept[np.argsort(blocks)]) >= -2 * channel)  # what matters more keeps more
    assert least_important_go(plan)


def test_what_a_layer_cannot_lose_or_keep_goes_to_the_others():
    """One block far ahead keeps all, one far behind its last groups only, and the ratio still holds."""
    blocks = [0.0] + [0.5] * 6 + [1.0]
    plan = pruning.plan(LLAMA, SCORES, 0.7, spread="importance", blocks=blocks)
    lost = losses(plan)
    one_of_each = sum(part.parameters for part in pruning.groups(LLAMA)[0].parts)
    assert size_of(pruning.groups(LLAMA)[0]) - lost[0] <= one_of_each + 2 * 192
    light = pruning.plan(LLAMA, SCORES, 0.05, spread="importance", blocks=blocks)
    assert losses(light)[7] <= 192 and max(losses(light)) == losses(light)[0]


def test_global_removes_the_least_important_per_parameter():
    plan = pruning.plan(LLAMA, SCORES, 0.3, spread="global", protect=(1, 1))
    layer = pruning.groups(LLAMA)[0]
    gone, stays = [], []
    for i in range(1, 7):
        for scores, kept, cost in (
            (SCORES.attention[i], plan.layers[i].attention, layer.attention.parameters),
            (SCORES.channels[i], plan.layers[i].channels, layer.channels.parameters),
        ):
            for group, score in enumerate((scores / cost).tolist()):
                (stays if group in kept else gone).append((score, cost))
    # Only the last head that did not fit into what was left may be out of order.
    line = max(score for score, cost in gone if cost == layer.attention.parameters)
    assert line <= min(score for score, cost in stays if cost == layer.channels.parameters)
    assert len({len(kept.channels) for kept in plan.layers}) > 3


def test_standardised_global_ranks_by_how_far_from_the_mean_of_its_matrix():
    generator = torch.Generator().manual_seed(3)
    # Layers and kinds on scales of their own: as they stand, the layer of the smallest numbers would lose everything.
    scores = pruning.Scores(
        "flap",
        [torch.rand(4, generator=generator, dtype=torch.float64) * 10.0**i + 7 for i in range(8)],
        [torch.rand(192, generator=generator, dtype=torch.float64) * 10.0**-i for i in range(8)],
    )
    plan = pruning.plan(LLAMA, scores, 0.3, spread="global", standardise=True)
    gone, stays = [], []
    for i, layer in enumerate(plan.layers):
        for column, kept in ((scores.attention[i], layer.attention), (scores.channels[i], layer.channels)):
            z = (column - column.mean()) / column.std(correction=0)
            for group, value in enumerate(z.tolist()):
                (stays if group in kept else gone).append((value, len(column)))
    line = max(value for value, count in gone if count == 192)
    assert line <= min(value for value, count in stays if count == 192)
    assert max(value for value, count in gone if count == 4) <= line + 0.05  # heads by the same line
    shares = [len(layer.channels) / 192 for layer in plan.layers]
    assert max(shares) - min(shares) < 0.25
    plain = pruning.plan(LLAMA, scores, 0.3, spread="global")
    assert min(len(layer.channels) for layer in plain.layers) == 1


@pytest.mark.parametrize("spread", SPREADS)
def test_unreachable_ratio_names_the_highest_that_can_be_reached(spread):
    choice = {"spread": spread, "protect": (2, 2), "blocks": BLOCKS}
    with pytest.raises(ValueError, match="highest reachable") as error:
        pruning.plan(LLAMA, SCORES, 0.9, **choice)
    highest = float(str(error.value).split()[-1])
    plan = pruning.plan(LLAMA, SCORES, highest, **choice)
    assert plan.removed == pytest.approx(highest, abs=0.01)
    assert all(kept.attention and kept.channels for kept in plan.layers)
    with pytest.raises(ValueError, match="highest reachable"):
        pruning.plan(LLAMA, SCORES, highest + 0.02, **choice)


@pytest.mark.parametrize("spread", SPREADS)
def test_heads_far_larger_than_channels_never_empty_a_layer(spread):
    model = build(kv=3, queries=3, head=8, channels=3, hidden=72)
    scores = pruning.importance(model, (), None, "l2")
    reached = 0
    for ratio in torch.linspace(0.005, 0.65, 130).tolist():
        try:
            plan = pruning.plan(model, scores, ratio, spread=spread, blocks=[0.3, 0.1])
        except ValueError as error:
            assert "cannot be reached" in str(error)
        else:
            reached += 1
            assert all(kept.attention and kept.channels for kept in plan.layers)
    assert reached > 10


def test_too_coarse_a_model_is_told_the_nearest_ratio():
    model = build(kv=1, channels=2, layers=1)  # its only free group, a channel, is 6 % of it
    with pytest.raises(ValueError, match="the nearest is"):
        pruning.plan(model, pruning.importance(model, (), None, "l2"), 0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 0}, "between 0 and 1"),
        ({"ratio": 1}, "between 0 and 1"),
        ({"ratio": 1.2}, "between 0 and 1"),
        ({"ratio": -0.3}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"ratio": "0.3"}, "between 0 and 1"),
        ({"ratio": 0.9}, "cannot be reached .* at least one attention group and one channel in each layer"),
        ({"spread": "even"}, "spread must be one of .*'importance'"),
        ({"protect": (4, 4)}, "unprotected"),
        ({"protect": (-1, 0)}, "unprotected"),
        ({"scores": pruning.Scores("l2", SCORES.attention[:3], SCORES.channels[:3])}, "scores are for"),
        ({"spread": "importance"}, "spread importance needs blocks"),
        ({"spread": "importance", "blocks": [0.1] * 7}, "blocks must be 8 finite numbers"),
        ({"spread": "importance", "blocks": [0.1] * 7 + [float("nan")]}, "blocks must be 8 finite numbers"),
    ],
)
def test_plan_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        pruning.plan(**{"model": LLAMA, "scores": SCORES, "ratio": 0.3, **change})


def test_a_share_of_the_layers_is_a_smaller_share_of_the_model():
    model = build(channels=40, hidden=12, layers=3)
    scores = pruning.importance(model, (), None, "l2")
    cuttable = sum(part.count * part.parameters for layer in pruning.groups(model) for part in layer.parts)
    share = cuttable / parameter_count(model)
    of_layers = pruning.plan(model, scores, 0.3, of="layers")
    of_model = pruning.plan(model, scores, 0.3 * share)
    assert of_layers.removed == of_model.removed == pytest.approx(0.3 * share, abs=0.01)
    assert of_layers.layers == of_model.layers


def test_what_stands_in_the_way_of_more_is_said():
    model = build(kv=1, channels=8, hidden=12, layers=1)
    model.resize_token_embeddings(200, mean_resizing=False)
    scores = pruning.importance(model, (), None, "l2")
    with pytest.raises(ValueError, match=r"outside the layers' groups .*of='layers'.* one key/value head"):
        pruning.plan(model, scores, 0.6)
