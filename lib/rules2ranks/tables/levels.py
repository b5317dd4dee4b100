"""The reference table of levels: who decides how much of each attention and MLP goes, before and after recovery."""

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rules2ranks import runs, search
from rules2ranks.configuration import Configuration, Shapes
from rules2ranks.stages import shapes
from rules2ranks.stages.compressing import Pruned, Pruning, Recovery, pruned_shapes
from rules2ranks.stages.ranges import Rate, Seed, Size
from rules2ranks.stages.shapes import Problem, Question
from rules2ranks.stages.subjects import subject
from rules2ranks.tables import Rows, shared_settings
from rules2ranks.tables.many import Job, measure, seconds_of, stage_jobs

#: The controls that are many choices: reported under fewer seeds.
MANY = ("random levels", "neighbours")
#: What the unpruned model is called.
WHOLE = "whole"


class Setting(Question):
    """A question, and who is to answer it.

    `slices` are prunings by importance, without a database, by their name in the table. With `whole` the unpruned model
    stands beside, recovered as all the others: what training alone does. `controls` are of
    `shapes.CONTROLS`; `many` of the random ones and neighbours, reported under `few_seeds`, and judged after each share
    of `shares`. `variants` are searchers with settings of their own: `searcher`, `start` (a control), `settled` (a
    control, whose levels stay), `spent` (of `limit`, before the search begins), and what is other. Each choice is
    recovered at the rate that has the lowest mean loss on the search's examples under `rate_seeds`.
    """

    slices: dict[str, dict[str, Any]] = Field(default_factory=dict)
    whole: bool = False
    controls: list[Literal[*shapes.CONTROLS]]
    many: Size = 1
    shares: list[Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=list)
    variants: dict[str, dict[str, Any]]
    limit: Size
    search_seeds: list[Seed]
    rates: Annotated[list[Rate], Field(min_length=1)]
    rate_seeds: Annotated[list[Seed], Field(min_length=1)]
    report_seeds: list[Seed]
    few_seeds: list[Seed] = Field(default_factory=list)

    @model_validator(mode="after")
    def _told_now(self) -> Self:
        for name in self.slices:
            self.slice(name)
        for name in self.variants:
            try:
                self.searcher(name, None)
            except (KeyError, TypeError) as error:
                raise ValueError(f"variant {name!r} is no searcher with these settings: {error}") from None
        if not set(self.few_seeds) <= set(self.report_seeds):
            raise ValueError("few_seeds must be among report_seeds, under which all others are reported")
        return self

    @property
    def shapes(self) -> Shapes:
        """The unpruned model's."""
        return subject(self.database.base).shapes

    def slice(self, name: str) -> Pruning:
        """A pruning by importance, of as much of the same model."""
        return Pruning.check({"base": self.database.base, "ratio": self.ratio, **self.slices[name]})

    def searcher(self, name: str, problem: Problem | None) -> search.Searcher:
        """The variant of that name; where it has a start, that of this problem."""
        own = {key: value for key, value in self.variants[name].items() if key != "spent"}
        kind, start = search.SEARCHERS[own.pop("searcher")], own.pop("start", None)
        for each in (start, own.pop("settled", None)):
            if each is not None and each not in shapes.CONTROLS:
                raise KeyError(f"no control {each}")
        if start is not None and problem is not None:
            own["start"] = shapes.CONTROLS[start](problem, 1, 0)[0]
        return kind(**own)


class LevelTable(runs.Params):
    """Settings by name; what they share may stand beside them once, and each may say otherwise."""

    settings: dict[str, Setting]

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: dict[str, Any]) -> dict[str, Any]:
        return shared_settings(values, Setting)


class Chosen(NamedTuple):
    """What is recovered, who chose it, with which search seed or as which of several; and the choice, if there is one,
    with its bits and ranks, also as the table holds it.
    """

    setting: str
    allocator: str
    which: int | None
    pruned: Pruned
    choice: Configuration = Configuration()
    text: str | None = None


def levels(settings: LevelTable) -> tuple[dict[str, Rows], float]:
    """Who decides the levels: choices recovered under report seeds, the searches, and judgings before that.

    Tables: `levels` (a row a choice and report seed), `levels_search` (a row a judging of a search), `levels_judged` (a
    row a choice as it is cut, at share 0, and a judging of the many after each share of the schedule).
    """
    return _table("levels", settings)


def real_model(settings: LevelTable) -> tuple[dict[str, Rows], float]:
    """The same of a real language model, beside the unpruned one: needs the extra ``gemma``."""
    return _table("real_model", settings)


def real_shares(settings: LevelTable) -> tuple[dict[str, Rows], float]:
    """The real model at other shares, and DarwinLM's choice: needs the extra ``gemma``."""
    return _table("real_shares", settings)


def joint(settings: LevelTable) -> tuple[dict[str, Rows], float]:
    """The same of levels, bits and ranks within bytes: all at once, or one after the other."""
    return _table("joint", settings)


def _table(table: str, settings: LevelTable) -> tuple[dict[str, Rows], float]:
    asked = settings.settings
    _prepare(asked)
    history = _searched(asked)
    chosen = [each for name, setting in asked.items() for each in _choices(name, setting, history)]
    judged = _judged(chosen, asked)
    tuned, tries = _tuned(chosen, asked)
    jobs = [
        (each, tuning, seed)
        for each, tuning in zip(chosen, tuned, strict=True)
        for seed in (asked[each.setting].few_seeds if each.allocator in MANY else asked[each.setting].report_seeds)
    ]
    recoveries = [_recovery(each, asked[each.setting], lr, seed) for each, (lr, _), seed in jobs]
    results = measure(stage_jobs("recover", recoveries), "report")
    rows = [
        _about(each, asked[each.setting])
        | {"report_seed": seed, "lr": lr, "steps": asked[each.setting].recover.steps, "search_loss": search_loss}
        | {name: found.metrics[name] for name in ("loss", "accuracy", "trained_parameters")}
        for (each, (lr, search_loss), seed), found in zip(jobs, results, strict=True)
    ]
    behind = [_measured(asked[row["setting"]], row) for row in history] + [*tries, *results]
    return {table: rows, f"{table}_search": history, f"{table}_judged": judged}, seconds_of(behind)


def _prepare(asked: dict[str, Setting]) -> None:
    """Databases, prunings and judgings of single parts, for which searches side by side would wait on each other."""
    slices = [setting.slice(name) for setting in asked.values() for name in setting.slices]
    measure(stage_jobs("prune", slices), "pruning")
    bases = {setting.database.model_dump_json(): setting for setting in asked.values()}
    measure(stage_jobs("levels", [setting.database for setting in bases.values()]), "databases")
    for some, kind, uses in ((bases, "divergences", {"divergences", "neighbours"}), (asked, "alike", {"alike"})):
        settings = [setting for setting in some.values() if uses & set(setting.controls)]
        measure([Job(control, Control(setting=setting, kind=kind)) for setting in settings], kind)


class Control(runs.Params):
    """A control of a setting, one of `shapes.CONTROLS`."""

    setting: Setting
    kind: str


def control(given: Control) -> list[Configuration]:
    """The choices of one control."""
    return Problem(given.setting).control(given.kind, given.setting.many)


def _searched(asked: dict[str, Setting]) -> Rows:
    jobs = [
        Job(history, Searched(name=name, setting=setting, variant=variant, seed=seed))
        for name, setting in asked.items()
        for variant in setting.variants
        for seed in setting.search_seeds
    ]
    return [row for rows in measure(jobs, "searches") for row in rows]


class Searched(runs.Params):
    """A search of one of a setting's variants under a seed; `name` is what the table calls the setting."""

    name: str
    setting: Setting
    variant: str
    seed: Seed


def history(given: Searched) -> Rows:
    """One search."""
    setting, variant = given.setting, given.variant
    problem, own = Problem(setting), setting.variants[variant]
    asked, searcher = setting, setting.searcher(variant, problem)
    if "settled" in own:
        asked = setting.but(levels=problem.control(own["settled"])[0].levels)
        problem = Problem(asked)
    found = shapes.search(asked, searcher, limit=setting.limit - own.get("spent", 0), seed=given.seed)
    chosen = found.trials.index(found.chosen)
    return [
        {
            "setting": given.name,
            "allocator": variant,
            "search_seed": given.seed,
            "order": order,
            "levels": written(problem.space.configuration(trial.point), setting.shapes),
            "measured": trial.scores[0],
            "fidelity": trial.fidelity,
            "phase": trial.proposer,
            "chosen": order == chosen,
        }
        for order, trial in enumerate(found.trials)
    ]


def _measured(setting: Setting, row: dict[str, Any]) -> runs.Result:
    """What is behind a row of a search's history."""
    problem = Problem(setting)
    return problem.measured(read(row["levels"], setting.shapes), row["search_seed"], setting.trained * row["fidelity"])


def _choices(name: str, setting: Setting, searched: Rows) -> list[Chosen]:
    problem = Problem(setting)
    found = [Chosen(name, kind, None, setting.slice(kind)) for kind in setting.slices]
    if setting.whole:
        found.append(Chosen(name, WHOLE, None, Pruning.check({"base": setting.database.base, "ratio": 0})))
    for kind in setting.controls:
        own = problem.control(kind, setting.many)
        for place, choice in enumerate(own):
            which, text = place if kind in MANY else None, written(choice, setting.shapes)
            found.append(Chosen(name, kind, which, problem.cut(choice), choice, text))
    for row in searched:
        if row["setting"] == name and row["chosen"]:
            text, choice = row["levels"], read(row["levels"], setting.shapes)
            found.append(Chosen(name, row["allocator"], row["search_seed"], problem.cut(choice), choice, text))
    return found


def _tuned(chosen: Sequence[Chosen], asked: dict[str, Setting]) -> tuple[list[tuple[float, float]], list[runs.Result]]:
    """For each choice the best rate of its setting and its mean loss on the search's examples there; and the runs."""
    jobs = [
        (place, lr, _recovery(each, asked[each.setting], lr, seed))
        for place, each in enumerate(chosen)
        for lr in asked[each.setting].rates
        for seed in asked[each.setting].rate_seeds
    ]
    results = measure(stage_jobs("recover", [job for *_, job in jobs]), "rates")
    losses: dict[tuple[int, float], list[float]] = {}
    for (place, lr, _), found in zip(jobs, results, strict=True):
        losses.setdefault((place, lr), []).append(found.metrics["search_loss"])
    means = {key: sum(values) / len(values) for key, values in losses.items()}
    best = [min((loss, lr) for (at, lr), loss in means.items() if at == place) for place in range(len(chosen))]
    return [(lr, loss) for loss, lr in best], results


def _recovery(chosen: Chosen, setting: Setting, lr: float, seed: int) -> Recovery:
    ranks = setting.rank if setting.memory is None else chosen.choice.ranks
    how = dict(setting.recover) | {"lr": lr, "bits": chosen.choice.bits or 16}
    return Recovery(**how, pruned=chosen.pruned, ranks=ranks, seed=seed)


def _judged(chosen: Sequence[Chosen], asked: dict[str, Setting]) -> Rows:
    """The divergence of each choice before training, with its loss, and of the many after each share too."""
    cells = [
        (each, share)
        for each in chosen
        for share in (0.0, *(asked[each.setting].shares if each.allocator in MANY else ()))
    ]
    judgings = [
        asked[each.setting].judging(each.pruned, asked[each.setting].search_seeds[0], share) for each, share in cells
    ]
    bare = [Recovery(pruned=each.pruned, bits=each.choice.bits or 16, ranks=0) for each in chosen]
    found = measure(stage_jobs("judge", judgings) + stage_jobs("recover", bare), "judged")
    losses = iter(found[len(cells) :])
    return [
        _about(each, asked[each.setting])
        | {"share": share, "kl": judged.metrics["kl"]}
        | ({} if share else {"loss": next(losses).metrics["loss"]})
        for (each, share), judged in zip(cells, found, strict=False)
    ]


def _about(chosen: Chosen, setting: Setting) -> dict[str, Any]:
    pruned = chosen.pruned
    sizes = {} if setting.memory is None else {"memory": Problem(setting).memory(chosen.choice)}
    left = pruned_shapes(pruned).parameters
    return {
        "setting": chosen.setting,
        "allocator": chosen.allocator,
        "which": chosen.which,
        "levels": chosen.text,
        "removed": 1 - left / setting.shapes.parameters,
        **sizes,
    }


def written(choice: Configuration, shapes: Shapes) -> str:
    """A choice as a table holds it: the layers apart by blanks, in each its parts apart by `+`, of each how many groups
    are gone; where any matrix has few bits or a rank, `groups gone:bits:rank`.
    """
    first = {matrix.part: matrix.name for matrix in reversed(shapes.matrices.values())}
    several = bool(choice.bits or choice.ranks)

    def said(part: str) -> str:
        options = (choice.levels.get(part, 0), choice.bits.get(first[part], 16), choice.ranks.get(first[part], 0))
        return ":".join(map(str, options[: 3 if several else 1]))

    layers = groupby(shapes.groups, key=lambda part: part.rpartition(".")[0])
    return " ".join("+".join(map(said, parts)) for _, parts in layers)


def read(text: str, shapes: Shapes) -> Configuration:
    """What `written` wrote, as a configuration."""
    found: dict[str, dict[str, int]] = {"levels": {}, "bits": {}, "ranks": {}}
    for part, chosen in zip(shapes.groups, text.replace("+", " ").split(), strict=True):
        found["levels"][part], *both = map(int, chosen.split(":"))
        own = [matrix.name for matrix in shapes.matrices.values() if matrix.part == part]
        for kind, value in zip(("bits", "ranks"), both, strict=False):
            found[kind].update(dict.fromkeys(own, value))
    return Configuration(**found)
