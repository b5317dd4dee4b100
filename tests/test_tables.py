"""The makers of reference tables at tiny size: every row is what a stage gives for the parameters that it names."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from rules2ranks import __main__ as rules2ranks_command
from rules2ranks import stages, tables
from rules2ranks.runs import ParameterError, Result
from rules2ranks.stages import inspecting, learning, shapes, subjects, transfer
from rules2ranks.tables import __main__ as command
from rules2ranks.tables import edge, levels, many, plans, recoveries
from rules2ranks.tasks import chess

TINY = {"width": 8, "rows": 20, "ring": 40, "layers": 1, "heads": 2, "hidden": 16, "steps": 4, "rounds": 1}
CHAOS = {
    "rules": [204, 110],
    "seeds": [0, 1],
    "random_seeds": [2],
    "shuffled_rule": 110,
    "pretrain": TINY,
    "tasks": {"reasoning-easy": {"steps": 4, "batch": 2}, "nim": {"steps": 2, "batch": 2}},
    "from_scratch": {"lr": 1e-3},
}
ABLATIONS = {
    "rules": [204, 110],
    "seeds": [0],
    "pretrain": TINY,
    "downstream": {"task": "reasoning-hard", "steps": 4, "batch": 2},
    "variants": {
        "as in the core": {},
        "k = 3": {"pretrain": {"every": 3}},
        "one-hot input": {"downstream": {"board_input": "one-hot"}},
        "weights shuffled": {"downstream": {"start": "shuffled"}},
        "all weights trained": {"downstream": {"train": "all", "lr": 2e-3}},
        "chess": {"downstream": {"task": "chess", "steps": 2}},
        "chess, from scratch": {"downstream": {"task": "chess", "start": "random", "train": "all"}},
        "until": {"downstream": {"evaluate_every": 2, "until": 0.8}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def in_process(tmp_path_factory):
    """A store for this module, with few held-out examples: what is tested is the tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(subjects, "HELD_OUT", 70)
        patch.setattr(transfer, "validation_draw", lambda seed: (12, learning.draw_seed(seed, 1, 0), "validation"))
        yield


def made(name: str, **parameters) -> Result:
    """A result that must be there already."""
    found = getattr(stages, name).find(**parameters)
    assert found is not None, f"{name} was not run with {parameters}"
    return found


# --- the core ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core(in_process):
    return edge.edge_of_chaos(command.checked("edge_of_chaos", CHAOS))


def test_every_network_is_scored_on_every_task_beside_its_controls(core):
    rows = pd.DataFrame(core[0]["edge_of_chaos"])
    kinds = rows.groupby(["start", "source", "seed"], sort=False).task.apply(list)
    taught = [("pretrained", source, seed) for source in (204, 110, "coin") for seed in (0, 1)]
    controls = [
        ("random", "none", 2),
        *(("shuffled", 110, s) for s in (0, 1)),
        *(("scratch", "none", s) for s in (0, 1)),
    ]
    assert list(kinds.index) == taught + controls
    assert all(of == ["reasoning-easy", "nim"] for of in kinds)


def test_rows_of_the_core_are_the_results_of_their_stages(core):
    train = {"scratch": "all"}
    for row in core[0]["edge_of_chaos"]:
        start = row["start"] if row["start"] != "scratch" else "random"
        source = row["source"] if row["source"] != "none" else 204  # random weights are the same whatever the rule
        result = made(
            "downstream",
            **{"body": {"source": source, "seed": row["seed"], **TINY}, "start": start, "seed": row["seed"]},
            **{"train": train.get(row["start"], "paper"), "task": row["task"], **CHAOS["tasks"][row["task"]]},
            **({"lr": 1e-3} if row["start"] == "scratch" else {}),
        )
        for name in ("accuracy", "loss", "step_at_80"):
            assert row[name] == result.metrics[name]
        assert row["failures_mean"] == result.metrics["failures"]["mean"]
        assert row["failures_variance"] == result.metrics["failures"]["variance"]
        assert row["step"] == CHAOS["tasks"][row["task"]]["steps"]


def test_what_was_learnt_stands_beside_what_is_seen_inside(core):
    rows = core[0]["pretraining"]
    assert [(row["source"], row["seed"]) for row in rows] == [(s, k) for s in (204, 110, "coin") for k in (0, 1)]
    for row in rows:
        body = {"source": row["source"], "seed": row["seed"], **TINY}
        learnt, inside = made("pretrain", **body).metrics, made("inspect", body=body).metrics
        names = set(row) - {"source", "seed", "epiplexity", "attention_last_10", "attention_untrained"}
        assert {name: row[name] for name in names} == {name: learnt[name] for name in names}
        assert names >= {"loss", "floor", "determined", "learnt", "steps", "weight_rms"}
        assert row["epiplexity"] == inside["epiplexity"]
        assert row["attention_last_10"] == inside["attention"]["last_10"]
        assert row["attention_untrained"] == inside["attention"]["untrained"]


def test_likeness_stands_once_for_each_pair_of_rules(core):
    rows = core[0]["similarity"]
    bodies = [[learning.Pretraining(source=r, seed=s, **TINY) for s in (0, 1)] for r in (204, 110)]
    found = inspecting.similarity(bodies)
    assert [(row["a"], row["b"]) for row in rows] == [(204, 204), (204, 110), (110, 110)]
    # The same sums in another order.
    np.testing.assert_allclose([row["cka"] for row in rows], found[[0, 0, 1], [0, 1, 1]], rtol=1e-12)
    assert all(0 < row["cka"] < 1 for row in rows)


def test_one_seed_has_no_likeness_and_few_rows_no_attention(core):
    few = {**CHAOS, "seeds": [0], "rules": [204], "pretrain": {**TINY, "rows": 8}, "shuffled_rule": 204}
    made, _ = edge.edge_of_chaos(command.checked("edge_of_chaos", few))
    assert set(made) == {"edge_of_chaos", "pretraining"}
    assert all(row["attention_last_10"] is row["attention_untrained"] is None for row in made["pretraining"])
    assert set(core[0]) == {"edge_of_chaos", "pretraining", "similarity"}


def test_seconds_are_those_of_every_result_once(core):
    """A second call finds everything, and says the same seconds: those that it took to make."""
    again, seconds = edge.edge_of_chaos(command.checked("edge_of_chaos", CHAOS))
    assert again == core[0]
    assert seconds == core[1] > 0
    body = {"source": 204, "seed": 0, **TINY}
    one, other = made("pretrain", **body), made("inspect", body=body)
    expected = one.provenance["seconds"] + other.provenance["seconds"]
    assert many.seconds_of([one, other, one, one]) == pytest.approx(expected, abs=1e-9)


# --- ablations --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablations(in_process):
    return edge.edge_ablations(command.checked("edge_ablations", ABLATIONS))[0]["edge_ablations"]


def test_each_variant_has_its_rules_and_its_controls(ablations):
    found = (
        pd.DataFrame(ablations)
        .groupby("variant", sort=False)[["start", "source"]]
        .apply(lambda rows: list(rows.itertuples(index=False, name=None)))
    )
    taught = [("pretrained", 204), ("pretrained", 110), ("pretrained", "coin")]
    full = [*taught, ("random", "none")]
    assert found.to_dict() == {
        **dict.fromkeys(["as in the core", "k = 3", "one-hot input", "chess", "until"], full),
        "weights shuffled": [("shuffled", 204), ("shuffled", 110)],
        "all weights trained": [*taught, ("scratch", "none")],
        "chess, from scratch": [("scratch", "none")],
    }
    assert list(found.index) == list(ABLATIONS["variants"])


def test_rows_of_a_variant_are_the_results_of_its_changes(ablations):
    for row in ablations:
        variant = ABLATIONS["variants"][row["variant"]]
        body = {"source": 204 if row["source"] == "none" else row["source"], "seed": 0, **TINY}
        body |= variant.get("pretrain", {})
        start = {"scratch": "random"}.get(row["start"], row["start"])
        asked = {"body": body, "seed": 0, **ABLATIONS["downstream"], **variant.get("downstream", {}), "start": start}
        result = made("downstream", **asked)
        assert (row["accuracy"], row["loss"]) == (result.metrics["accuracy"], result.metrics["loss"])
        assert row["task"] == asked["task"]
        assert row["step"] == asked["steps"]  # none is right so soon that it ends early
        names = ("loss", "floor", "learnt", "steps")
        if row["source"] == "none":
            assert all(row[f"pretrain_{name}"] is None for name in names)
        else:
            learnt = made("pretrain", **body).metrics
            assert {name: row[f"pretrain_{name}"] for name in names} == {name: learnt[name] for name in names}
        if row["task"] != "chess":
            assert row["legal"] is None


def test_the_share_of_legal_moves_is_that_of_the_predictions(ablations):
    task = chess.Chess()
    games = task.moves(12, learning.draw_seed(0, 1, 0), "validation")
    checked = 0
    for row in ablations:
        if row["task"] == "chess" and row["source"] in (204, "none"):
            variant = ABLATIONS["variants"][row["variant"]]["downstream"]
            start = {"scratch": "random"}.get(row["start"], row["start"])
            asked = {**ABLATIONS["downstream"], **variant, "start": start}
            result = made("downstream", body={"source": 204, "seed": 0, **TINY}, seed=0, **asked)
            predicted = load_file(result.file("predictions.safetensors"))["predicted"]
            assert predicted.shape == (12, 60)
            guesses = [[task.words[predicted[n, place]] for place in range(len(game))] for n, game in enumerate(games)]
            assert row["legal"] == chess.legal_share(games, guesses)
            assert 0 <= row["legal"] < 1
            checked += 1
    assert checked == 3


def test_without_the_rules_of_chess_nothing_is_begun(monkeypatch):
    monkeypatch.setattr(chess, "_extra", lambda name: (_ for _ in ()).throw(ImportError("the extra chess")))
    monkeypatch.setattr(edge, "measure", lambda *given: pytest.fail("work has begun"))
    with pytest.raises(ImportError, match="the extra chess"):
        edge.edge_ablations(command.checked("edge_ablations", ABLATIONS))


# --- the shipped entry point ------------------------------------------------------------------------------------

RANKS = {
    "pruned": {"ratio": 0.5, "spread": "uniform"},
    "mean_rank": 2,
    "recover": {"steps": 2, "examples": 56},
    "controls": ["uniform", "uniform, twice the rank", "random vectors", "CFSP"],
    "random": 2,
    "searchers": ["RankAdaptor", "random search", "additive"],
    "offline": 2,
    "rounds": 1,
    "candidates": 4,
    "search_seeds": [0],
    "report_seeds": [7],
}
#: Bits of layers within the bytes of uniform 4 bits.
BITS = RANKS | {
    "settings": {"4 bits": {"memory": 225_076, "bits": [2, 4, 8], "grid": [2], "ends": "searched"}},
    "controls": ["uniform", "random vectors"],
    "searchers": ["random search"],
    "variants": {"no trust region": {"searcher": "AutoQRA", "trust_region": False, "population": 3}},
    "rounds": 2,
    "others": {"uniform 2 bits": {"bits": 2}},
}
#: Ranks too, from the grid of all uniform choices to weights that are not quantised.
TOGETHER = BITS | {
    "settings": {"rank 2": {"memory": 225_076, "bits": [4, 8], "grid": [0, 2], "ends": "searched"}},
    "controls": ["uniform", "uniform grid"],
    "searchers": [],
    "variants": {},
    "others": {"16 bits, rank 2": {"method": "lora"}},
    "recover": {"steps": 2, "examples": 56, "method": "loftq"},
}
#: Who decides the levels.
LEVELS = {
    "settings": {"50 %": {"ratio": 0.5}},
    "database": {"steps": 4},
    "judged": 8,
    "recover": RANKS["recover"],
    "slices": {"global": {"spread": "global"}},
    "controls": ["even", "random levels"],
    "many": 2,
    "shares": [0.5],
    "variants": {
        "evolution": {"searcher": "DarwinLM", "offspring": 2, "survivors": [1], "shares": [0.0], "judging": 0.3},
        "from errors": {
            "searcher": "DarwinLM",
            "offspring": 1,
            "survivors": [1],
            "shares": [0.5],
            "start": "errors",
            "spent": 1,
        },
    },
    "limit": 3,
    "rates": [1e-3, 1e-2],
    "rate_seeds": [0],
    "search_seeds": [0],
    "report_seeds": [7, 8],
    "few_seeds": [8],
}
#: Levels, bits and ranks within bytes.
JOINT = LEVELS | {
    "settings": {"half at 4 bits": {"memory": 230_000}},
    "bits": [3, 4, 8],
    "grid": [0, 2],
    "fill": 0.95,
    "recover": TOGETHER["recover"],
    "slices": {},
    "controls": ["alike"],
    "variants": {
        "joint": {"searcher": "DarwinLM", "offspring": 1, "survivors": [1], "shares": [0.5], "start": "alike"},
        "in turn": {"searcher": "bits, then ranks", "settled": "alike"},
    },
    "limit": 8,
    "rates": [1e-3],
    "report_seeds": [7],
    "few_seeds": [],
}
ALL = {
    "edge_of_chaos": CHAOS,
    "edge_ablations": ABLATIONS,
    "compression": {"rules": [204], "seeds": [0], "pretrain": TINY, "fragility": {"ratios": [0.3]}},
    "rank_adaptor": RANKS | {"settings": {"50 %": {}}, "others": {"uniform, best rate": {"lr": 1e-3}}},
    "rank_settings": RANKS | {"settings": {"per kind": {"per": "kind"}}, "searchers": ["additive"]},
    "mixed_bits": BITS,
    "bits_and_ranks": TOGETHER,
    "levels": LEVELS,
    "joint": JOINT,
    "recovery_rates": {
        "prunings": {"50 %": RANKS["pruned"]},
        "rank": 2,
        "ways": {
            "lora": {"rates": [1e-3, 1e-2], "steps": [2, 61]},
            "adalora": {"rates": [1e-2], "steps": [4]},
            "all weights": {"rates": [1e-3], "steps": [2]},
        },
        "seeds": [0],
        "scratch": {"prunings": ["50 %"], "steps": 3, "batch": 4, "rates": [1e-3, 1e-2], "seeds": [0]},
    },
    "recoveries": {
        "prunings": {"50 %": RANKS["pruned"]},
        "ways": ["lora", "all weights"],
        "rank": 2,
        "seeds": [7],
        "scratch": {"prunings": ["50 %"], "steps": 3, "batch": 4, "seeds": [7, 8]},
    },
}


def by_the_workflow(makers, place):
    """Make tables as the workflow does: list what is missing, measure each part, and so on."""
    words = [*makers, "--part", "5"]
    for number in range(1, 8):
        file = place / f"{number}.json"
        command.main([*words, "--missing", str(file)])
        if not (parts := json.loads(file.read_text())["parts"]):
            return
        for part in range(len(parts)):
            assert rules2ranks_command.main(["measure", str(file), str(part)]) == 0
        words = [*makers, "--part", "5", "--measured", str(file)]
    raise AssertionError("there is no end of measurements")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes tables with their notes, as the workflow does and then by the command, at tiny size; gives those asked for.

    Whatever is measured comes back from a list as what it was.
    """
    monkeypatch.setattr(command, "profile_settings", lambda profile: ALL)
    monkeypatch.setattr(tables, "place", lambda name: tmp_path / f"{name}.csv")

    def made_by(makers: list[str], names: list[str]) -> list[tables.Reference]:
        by_the_workflow(makers, tmp_path)
        before = [tables.place(name).read_bytes() for name in names]
        command.main(makers)
        assert [tables.place(name).read_bytes() for name in names] == before
        return [tables.read(name) for name in names]

    return made_by


@pytest.mark.slow
def test_the_core_s_tables_are_written_with_their_notes(make):
    makers = ["edge_of_chaos", "edge_ablations", "compression"]
    names = ["edge_of_chaos", "pretraining", "similarity", "edge_ablations", "compression"]
    chaos, *others = make(makers, names)
    assert chaos.note["settings"] == CHAOS
    assert chaos.note["command"] == "python -m rules2ranks.tables edge_of_chaos --profile laptop"
    assert sorted(chaos.table.start) == ["pretrained"] * 12 + ["random"] * 2 + ["scratch"] * 4 + ["shuffled"] * 4
    for (table, note), maker in zip(others, ["edge_of_chaos", "edge_of_chaos", *makers[1:]], strict=True):
        assert note["rows"] == len(table)
        assert note["command"].split()[3] == maker
    assert others[2].table.legal.notna().sum() == 5
    assert others[3].table.ratio.tolist() == [0, 0.3]


@pytest.mark.slow
def test_choices_of_ranks_are_written(make):
    names = ["rank_adaptor", "rank_adaptor_search", "rank_settings"]
    (report, _), (searched, note), (settings, _) = make(["rank_adaptor", "rank_settings"], names)
    assert sorted(report.allocator) == sorted(
        [*RANKS["controls"], "random vectors", *RANKS["searchers"], "uniform, best rate", "pruned only"]
    )
    equal = report[~report.allocator.isin(["pruned only", "uniform, twice the rank"])]
    assert (equal.trained_parameters <= report[report.allocator == "uniform"].trained_parameters.item()).all()
    sizes = {"RankAdaptor": 3, "random search": 3, "additive": 4, "uniform": 1}
    assert searched.groupby("allocator").size().to_dict() == sizes
    assert np.isfinite(searched.measured).all()
    assert note["rows"] == 11
    assert "q_proj=" in settings.query("allocator == 'additive'").ranks.item()


@pytest.mark.slow
def test_the_grid_holds_every_uniform_choice_whatever_its_bytes(make):
    ((report, _),) = make(["bits_and_ranks"], ["bits_and_ranks"])
    grid = report[report.allocator == "uniform grid"]
    assert grid.ranks.str.split().str[0].tolist() == ["4:0", "4:2", "8:0", "8:2"]
    (fit,) = grid[(grid.ranks == report.set_index("allocator").ranks["uniform"])].index
    assert grid.loss[fit] == report.set_index("allocator").loss["uniform"]
    full = report[report.allocator == "16 bits, rank 2"].iloc[0]
    assert full.method == "lora" and full.memory > grid.memory.max()
    same = made("recover", pruned=RANKS["pruned"], ranks=2, seed=7, **RANKS["recover"]).metrics
    assert full.loss == same["loss"] and full.search_loss == same["search_loss"]


@pytest.mark.slow
def test_what_a_search_for_levels_found_is_recovered_at_its_better_rate(make):
    (report, _), (searched, _), (judged, _) = make(["levels"], ["levels", "levels_search", "levels_judged"])
    assert report.groupby("allocator").report_seed.agg(list).to_dict() == {
        "global": [7, 8], "even": [7, 8], "random levels": [8, 8], "evolution": [7, 8], "from errors": [7, 8]
    }  # fmt: skip
    for name, own in searched.groupby("allocator"):
        best = own[own.fidelity == own.fidelity.max()].measured.idxmin()
        assert own.chosen.idxmax() == best and own.chosen.sum() == 1
        assert set(report[report.allocator == name].levels) == {own.levels[best]}
        spent = (own.fidelity + (0.3 if name == "evolution" else 0.025)).sum()
        assert spent <= (3 if name == "evolution" else 2)
    pruned = {
        "database": LEVELS["database"],
        "levels": levels.read(report.levels.iloc[-1], subjects.subject("language").shapes).levels,
    }
    asked = {"pruned": pruned, "ranks": 2, **LEVELS["recover"]}
    rates = {lr: made("recover", **asked, lr=lr, seed=0).metrics["search_loss"] for lr in LEVELS["rates"]}
    last = report.iloc[-1]
    assert (last.lr, last.search_loss) == min(rates.items(), key=lambda item: item[1])
    assert last.loss == made("recover", **asked, lr=last.lr, seed=last.report_seed).metrics["loss"]
    assert judged[judged.share == 0].allocator.tolist() == [
        "global", "even", "random levels", "random levels", "evolution", "from errors"
    ]  # fmt: skip
    assert judged[judged.share > 0].allocator.tolist() == ["random levels"] * 2
    assert report.removed.between(0.5, 0.52).all()


@pytest.mark.slow
def test_levels_bits_and_ranks_are_within_the_bytes_and_what_is_settled_stays(make):
    (report, _), (searched, _) = make(["joint"], ["joint", "joint_search"])
    assert report.memory.between(0.95 * 230_000, 230_000).all()
    chosen = {row.allocator: levels_of(row.levels) for row in report.itertuples()}
    assert chosen["in turn"] == chosen["alike"]
    own = searched[searched.allocator == "in turn"]
    assert all(levels_of(text) == chosen["alike"] for text in own.levels)
    assert len({levels_of(text) for text in searched[searched.allocator == "joint"].levels}) > 1
    problem = shapes.Problem(command.checked("joint", JOINT).settings["half at 4 bits"])
    last = report.iloc[-1]
    choice = levels.read(last.levels, problem.question.shapes)
    assert levels.written(choice, problem.question.shapes) == last.levels
    again = made("recover", **problem.recovery(choice, 7).but(lr=last.lr).model_dump(mode="json"))
    assert again.metrics["loss"] == last.loss


def levels_of(text: str) -> tuple[str, ...]:
    """Which parts lose how much, whatever the bits and ranks of what is left."""
    return tuple(part.split(":")[0] for part in text.replace("+", " ").split())


@pytest.mark.slow
def test_all_is_within_the_bytes_and_low_fidelities_are_in_the_searches_only(make):
    (report, _), (searched, _) = make(["mixed_bits"], ["mixed_bits", "mixed_bits_search"])
    assert report.set_index("allocator").memory["uniform 2 bits"].item() == 164_548
    assert report.memory.dropna().le(225_076).all() and report.query("allocator == 'uniform'").memory.item() == 225_076
    own = searched[searched.allocator == "no trust region"]
    assert set(own.fidelity) == {0.25, 1.0} and set(own.phase) == {"importance", "evolution", "promoted"}
    best = own[own.fidelity == 1].sort_values("measured").iloc[0]
    assert report[report.allocator == "no trust region"].ranks.item() == best.ranks
    layers = subjects.subject("language").shapes.names
    for row in own.itertuples():
        choice = tables.read_choice(row.ranks, layers)
        asked = {"pruned": RANKS["pruned"], "bits": choice.bits, "ranks": choice.ranks, "seed": 0, **RANKS["recover"]}
        metrics = made("recover", **asked, stop=max(1, round(row.fidelity * 2))).metrics
        assert metrics["search_loss"] == row.measured


@pytest.mark.slow
def test_every_run_of_the_grid_stands_and_each_way_at_its_best(make):
    (tuned, _), (report, _) = make(["recovery_rates", "recoveries"], ["recovery_rates", "recoveries"])
    assert tuned.groupby("way").size().to_dict() == {
        "pruned only": 1, "lora": 4, "adalora": 1, "all weights": 1, "from scratch": 2,
    }  # fmt: skip
    pruned = stages.prune(**RANKS["pruned"]).metrics["after"]
    assert report[report.way == "pruned only"].loss.item() == pruned["loss"]
    within = tuned[(tuned.way == "lora") & (tuned.steps == 2)]  # 61 steps are more than the others may have
    best = within.loc[within.search_loss.idxmin()]
    own = report[report.way == "lora"]
    assert (own.lr.item(), own.steps.item()) == (best.lr, best.steps) == recoveries.best(tuned, "50 %", "lora")
    same = made("recover", pruned=RANKS["pruned"], ranks=2, lr=best.lr, steps=2, seed=7).metrics
    assert own.loss.item() == same["loss"]
    new = report[report.way == "from scratch"]
    assert new.seed.tolist() == [7, 8] and new.trained_parameters.nunique() == 1
    again = made(
        "retrain", pruned=RANKS["pruned"], start="scratch", steps=3, batch=4, examples=None, lr=new.lr.iloc[0], seed=8
    )
    assert new.loss.iloc[1] == again.metrics["loss"]


def test_a_table_is_made_from_its_plan(tmp_path, monkeypatch):
    text = (plans.place("rank_settings")).read_text()
    monkeypatch.setattr(plans, "place", lambda name: tmp_path / f"{name}.yaml")
    monkeypatch.setattr(tables, "place", lambda name: tmp_path / f"{name}.csv")
    run = RANKS | {"settings": {"50 %": {}}, "searchers": ["additive"]}
    stated = yaml.safe_load(text) | {"run": run}
    plans.place("rank_settings").write_text(yaml.safe_dump(stated))
    monkeypatch.setattr(command, "profile_settings", lambda profile: {"rank_settings": {"plan": "rank_settings"}})
    command.main([])
    found = tables.read("rank_settings")
    assert found.note["settings"] == run
    assert found.note["plan"] == "data/plans/rank_settings.yaml"
    assert found.note["plan_sha256"] == hashlib.sha256(plans.place("rank_settings").read_bytes()).hexdigest()
    plans.place("rank_settings").write_text(yaml.safe_dump(stated | {"margins": 0.1}))
    with pytest.raises(ParameterError, match="did you mean 'margin'"):
        command.checked("rank_settings", {"plan": "rank_settings"})


def test_another_profile_has_files_of_its_own_and_only_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "profile_settings", lambda profile: {"compression": ALL["compression"]})
    monkeypatch.setattr(tables, "place", lambda name: tmp_path / f"{name}.csv")
    command.main(["--profile", "gpu"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compression_gpu.csv", "compression_gpu.json"]
    assert json.loads((tmp_path / "compression_gpu.json").read_text())["command"].endswith("compression --profile gpu")
    with pytest.raises(SystemExit):
        command.main(["edge_of_chaos", "--profile", "gpu"])
    assert "profile gpu has no settings for edge_of_chaos" in capsys.readouterr().err


def test_reference_settings_are_those_of_the_profile():
    """The committed tables were made with the settings that the profile has now."""
    settings = command.profile_settings("laptop")
    for name in command.MAKERS:
        table, note = tables.read(name)
        given, plan = command.planned(settings[name])
        assert note["settings"] == given, f"{name}: `make reference` has not run since its settings changed"
        assert plan.items() <= note.items(), f"{name} was not made from the committed plan"
        assert note["rows"] == len(table)
    with pytest.raises(FileNotFoundError, match="make reference"):
        tables.read("nothing")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "rank_adaptor",
            RANKS | {"settings": {"50 %": {}}, "mean_rnk": 8},
            "did you mean 'mean_rank'",
        ),
        ("rank_adaptor", RANKS | {"settings": {"50 %": {"grid": [0]}}}, "grid"),
        ("rank_adaptor", RANKS | {"settings": {"50 %": {}}, "searchers": ["Rank Adaptor"]}, "'RankAdaptor'"),
        ("rank_settings", RANKS | {"settings": {"50 %": {"recover": {"lrr": 1}}}}, "did you mean 'lr'"),
        ("compression", ALL["compression"] | {"rules": [256]}, "less than or equal to 255"),
        ("edge_of_chaos", CHAOS | {"shufled_rule": 110}, "did you mean 'shuffled_rule'"),
        ("edge_ablations", ABLATIONS | {"variants": {"a": {"pretrian": {}}}}, "pretrian"),
        ("rank_adaptor", RANKS | {"settings": {"50 %": {}}, "others": {"pissa": {"lrr": 1}}}, "did you mean 'lr'"),
        ("rank_adaptor", RANKS | {"settings": {"50 %": {"random_seeds": [8]}}}, "must be among report_seeds"),
        ("recovery_rates", ALL["recovery_rates"] | {"ways": {"lora": {"rates": [2.0], "steps": [1]}}}, "or equal to 1"),
        ("recovery_rates", ALL["recovery_rates"] | {"ways": {}}, "at least 1"),
        ("mixed_bits", BITS | {"variants": {"mine": {"searcher": "AutoQRA", "lo": 0.1}}}, "'mine' is no searcher"),
        ("mixed_bits", BITS | {"variants": {"mine": {"searcher": "AutoQR"}}}, "'mine' is no searcher"),
        ("mixed_bits", BITS | {"settings": {"x": {"bits": [2]}}}, "give memory"),
        ("recoveries", ALL["recoveries"] | {"ways": ["lorra"]}, "'lora'"),
        ("levels", LEVELS | {"slices": {"mine": {"spred": "global"}}}, "did you mean 'spread'"),
        ("levels", LEVELS | {"variants": {"mine": {"searcher": "DarwinLM", "start": "best"}}}, "no control best"),
        ("levels", LEVELS | {"few_seeds": [9]}, "must be among report_seeds"),
        ("language_suite", {"step": 3}, "did you mean 'steps'"),
        ("compresion", {}, "unknown table 'compresion': choose from"),
    ],
)
def test_a_mistake_in_a_table_s_settings_is_named_before_any_work(name, settings, said):
    with pytest.raises(ParameterError, match=said):
        command.checked(name, settings)


def test_a_profile_s_mistakes_are_told_by_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(command, "data_folder", lambda: tmp_path / "data")
    (tmp_path / "profiles" / "mine.yaml").write_text("reference:\n  compression: {rules: [30], seedz: [0]}\n")
    for asked, said in ((["--profile", "mine"], "did you mean 'seeds'"), (["--profile", "my"], "there are mine")):
        with pytest.raises(SystemExit):
            command.main(asked)
        assert said in capsys.readouterr().err
