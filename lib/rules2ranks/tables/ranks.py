"""The reference tables of RankAdaptor: who decides the ranks, at equal trainable parameters, on fresh seeds."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rules2ranks import runs, search
from rules2ranks.configuration import Configuration
from rules2ranks.stages import ranks
from rules2ranks.stages.compressing import HowRecovered, Recovery, prune, recover
from rules2ranks.stages.ranges import Seed, Size
from rules2ranks.stages.ranks import Problem, Question
from rules2ranks.tables import ALONE, Rows, read_choice, shared_settings, written
from rules2ranks.tables.many import Job, measure, seconds_of, stage_jobs

#: The controls of many vectors: reported under fewer seeds where a setting says so.
MANY = ("random vectors", "uniform grid")


class Setting(Question):
    """A question, and who is to answer it: controls and searchers, under which seeds.

    Random vectors and the uniform grid are reported under `random_seeds` (None: all of `report_seeds`). `variants` are
    searchers with settings of their own, by their name in the table: `searcher`, and what is other. `others` are the
    uniform rank recovered otherwise, or another uniform rank, by its name there.
    """

    controls: list[Literal[*ranks.CONTROLS]]
    random: Size
    random_seeds: list[Seed] | None = None
    searchers: list[Literal[*search.SEARCHERS]]
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    offline: Size
    rounds: Size
    candidates: Size
    search_seeds: list[Seed]
    report_seeds: list[Seed]
    others: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _others_fit(self) -> Self:
        for name in self.variants:  # told now, not after the searches
            try:
                self.searcher(name)
            except (KeyError, TypeError) as error:
                raise ValueError(f"variant {name!r} is no searcher with these settings: {error}") from None
        for how in self.others.values():
            if self.pruned.base == "gemma":  # its matrices' names would be its packages', which may not be here
                HowRecovered.check({**dict(self.recover), **{k: how[k] for k in how.keys() - {"ranks", "bits"}}})
            else:
                Recovery.check({**dict(self.recover), "pruned": self.pruned, **how})
        if not set(self.random_seeds or ()) <= set(self.report_seeds):
            raise ValueError("random_seeds must be among report_seeds, under which uniform is reported")
        return self

    def seeds(self, allocator: str) -> list[Seed]:
        """Those under which an allocator is reported."""
        return (self.random_seeds if allocator in MANY else None) or self.report_seeds

    def searcher(self, name: str) -> search.Searcher:
        """The searcher or variant of that name with this setting's sizes, as far as it has any."""
        own = {"searcher": name, **self.variants.get(name, {})}
        kind = search.SEARCHERS[own.pop("searcher")]
        known = signature(kind).parameters
        return kind(**{size: getattr(self, size) for size in ("offline", "candidates") if size in known} | own)

    @property
    def all_searchers(self) -> list[str]:
        """Searchers and variants."""
        return [*self.searchers, *self.variants]


class RankTable(runs.Params):
    """Settings by name; what they share may stand beside them once, and each may say otherwise."""

    settings: dict[str, Setting]

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return shared_settings(values, Setting)


class Chosen(NamedTuple):
    """Ranks, who chose them, with which search seed or as which of several, and what is other in their recoveries."""

    allocator: str
    which: int | None
    ranks: Configuration | int
    other: dict[str, Any]


def table(name: str, settings: RankTable) -> tuple[dict[str, Rows], float]:
    """Every allocator in every setting: the searches' histories, and all choices recovered again under report seeds."""
    problems = {name: Problem(setting) for name, setting in settings.settings.items()}
    measure(stage_jobs("prune", [problem.question.pruned for problem in problems.values()]), "pruning")
    controls = _controls(settings)
    searched = _searched(settings)
    asked = [
        (setting, choice, seed)
        for setting, problem in problems.items()
        for choice in _choices(problem, controls[setting], searched[setting])
        for seed in problem.question.seeds(choice.allocator)
    ]
    jobs = [problems[setting].recovery(choice.ranks, seed).but(**choice.other) for setting, choice, seed in asked]
    results = measure(stage_jobs("recover", jobs), "report")
    rows = [{"setting": name, **_alone(problem)} for name, problem in problems.items()]
    rows += [
        {"setting": setting, **_row(problems[setting], choice, seed, result)}
        for (setting, choice, seed), result in zip(asked, results, strict=True)
    ]
    history = [row for setting in searched for row in searched[setting]]
    found = [recover(_measured(problems[row["setting"]], row)) for row in history]
    return {name: rows, f"{name}_search": history}, seconds_of([*results, *found])


def _measured(problem: Problem, row: Mapping[str, Any]) -> Recovery:
    """The recovery behind a row of a search's history."""
    return problem.recovery(
        read_choice(row["ranks"], problem.shapes.names), row["search_seed"], row.get("fidelity", 1.0)
    )


class Control(runs.Params):
    """A control of a setting, one of `ranks.CONTROLS`."""

    setting: Setting
    kind: str


def control(given: Control) -> list[Configuration]:
    """The choices of one control."""
    return Problem(given.setting).control(given.kind, given.setting.random)


def _controls(settings: RankTable) -> dict[str, dict[str, list[Configuration]]]:
    """The choices of all controls, by setting and kind."""
    asked = [(name, kind) for name, setting in settings.settings.items() for kind in setting.controls]
    jobs = [Job(control, Control(setting=settings.settings[name], kind=kind)) for name, kind in asked]
    found: dict[str, dict[str, list[Configuration]]] = {name: {} for name in settings.settings}
    for (name, kind), choices in zip(asked, measure(jobs, "controls"), strict=True):
        found[name][kind] = choices
    return found


def _searched(settings: RankTable) -> dict[str, Rows]:
    """The histories of all searches, and what uniform scores under their seeds, by setting."""
    jobs = [
        Job(history, Searched(name=name, setting=setting, allocator=kind, seed=seed))
        for name, setting in settings.settings.items()
        for kind in ("uniform", *setting.all_searchers)
        # Seeds side by side: searchers of one seed begin with the same vectors and would wait for each other.
        for seed in setting.search_seeds
    ]
    found: dict[str, Rows] = {setting: [] for setting in settings.settings}
    for rows in measure(jobs, "searches"):
        found[rows[0]["setting"]] += rows
    return found


class Searched(runs.Params):
    """A search of one of a setting's allocators under a seed; `name` is what the table calls the setting."""

    name: str
    setting: Setting
    allocator: str
    seed: Seed


def history(given: Searched) -> Rows:
    """One search, or the uniform choice under its seed."""
    setting, allocator, seed = given.setting, given.allocator, given.seed
    problem, about = Problem(setting), {"setting": given.name, "allocator": allocator, "search_seed": seed}
    if allocator == "uniform":
        (uniform,) = problem.control("uniform")
        loss = recover(problem.recovery(uniform, seed)).metrics["search_loss"]
        return [about | _trial(problem, 0, uniform, search.Trial((), (loss,), proposer="control"))]
    limit = setting.offline + setting.rounds
    found = ranks.search(setting, setting.searcher(allocator), limit=limit, seed=seed)
    return [
        about | _trial(problem, order, problem.space.configuration(trial.point), trial)
        for order, trial in enumerate(found.trials)
    ]


def _trial(problem: Problem, order: int, choice: Configuration, trial: search.Trial) -> dict[str, Any]:
    return {
        "order": order,
        "ranks": written(choice, problem.shapes.names),
        "measured": trial.scores[0],
        "predicted": trial.predicted[0] if trial.predicted else None,
        "phase": trial.proposer,
        # What is chosen within bytes, and the share of the schedule that a searcher gave it.
        **({} if problem.question.memory is None else {"memory": problem.memory(choice), "fidelity": trial.fidelity}),
    }


def _choices(problem: Problem, controls: Mapping[str, list[Configuration]], searched: Rows) -> list[Chosen]:
    """The controls, the choice of every search, and the uniform rank recovered otherwise."""
    setting, chosen = problem.question, []
    for kind, found in controls.items():
        chosen += [Chosen(kind, k if len(found) > 1 else None, ranks, {}) for k, ranks in enumerate(found)]
    for kind in setting.all_searchers:
        for seed in setting.search_seeds:
            entries = [e for e in searched if (e["allocator"], e["search_seed"]) == (kind, seed)]
            entries = [e for e in entries if e.get("fidelity", 1.0) == 1]
            # A searcher's own choice is "exact"; the others return the best that they measured.
            best = next((e for e in entries if e["phase"] == "exact"), min(entries, key=lambda e: e["measured"]))
            chosen.append(Chosen(kind, seed, read_choice(best["ranks"], problem.shapes.names), {}))
    return chosen + [
        Chosen(name, None, how.get("ranks", setting.mean_rank), how) for name, how in setting.others.items()
    ]


def _alone(problem: Problem) -> dict[str, Any]:
    """The pruned model before any recovery."""
    after = prune(problem.question.pruned).metrics["after"]
    return {"allocator": ALONE} | {name: value for name, value in after.items() if isinstance(value, int | float)}


def _row(problem: Problem, choice: Chosen, seed: int, result: runs.Result) -> dict[str, Any]:
    scores = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
    if problem.question.memory is not None:
        scores["memory"] = problem.memory(
            Configuration(bits=result.params.get("bits", {}), ranks=result.params["ranks"])
        )
    return {
        "allocator": choice.allocator,
        "which": choice.which,
        "ranks": written(choice.ranks, problem.shapes.names),
        "report_seed": seed,
        # Of what is measured on the search's examples the loss alone, by which rates can be chosen.
        **{name: value for name, value in scores.items() if not name.startswith("search_") or name == "search_loss"},
        **{name: result.params[name] for name in ("method", "lr", "steps")},
    }


def rank_adaptor(settings: RankTable) -> tuple[dict[str, Rows], float]:
    """Which layer, which kind of matrix, which matrix: allocators at the best rate and at the one below."""
    return table("rank_adaptor", settings)


def mixed_bits(settings: RankTable) -> tuple[dict[str, Rows], float]:
    """Which layer bears few bits: bits of layers within the bytes of uniform ones, at one rank."""
    return table("mixed_bits", settings)


def rank_settings(settings: RankTable) -> tuple[dict[str, Rows], float]:
    """The ranks of layers again where other shares were pruned, spread otherwise, and of another model."""
    return table("rank_settings", settings)


def bits_and_ranks(settings: RankTable) -> tuple[dict[str, Rows], float]:
    """Bits and ranks of layers within the bytes of uniform 4 bits: together, in parts, in turn."""
    return table("bits_and_ranks", settings)


def real_ranks(settings: RankTable) -> tuple[dict[str, Rows], float]:
    """Ranks of a real language model's layers and kinds of matrices, and bits with them: needs the extra ``gemma``."""
    return table("real_ranks", settings)
