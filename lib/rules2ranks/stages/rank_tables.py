"""The reference tables of RankAdaptor: who decides the ranks, at equal trainable parameters, on fresh seeds."""

from typing import Any, NamedTuple

from rules2ranks import runs, stages
from rules2ranks.stages.many import measure, seconds_of, stage_jobs

Rows = list[dict[str, Any]]


class Chosen(NamedTuple):
    """A rank vector (as `recover` takes it), who chose it, with which search seed or as which of several, and what
    else its recoveries take."""

    allocator: str
    which: int | None
    ranks: Any
    method: dict[str, Any]


def table(name: str, settings: dict, workers: int) -> tuple[dict[str, Rows], float]:
    """Every allocator in every setting: the searches' histories, and all choices recovered again under report seeds.

    Each setting is a `ranks.Question` and may name allocators, methods and numbers of its own.
    """
    problems = _problems(settings)
    pruned = [problem.question.pruned.model_dump() for problem in problems.values()]
    measure(stage_jobs("prune", pruned), workers, "pruning")
    searched = _searched(settings, workers)
    asked = [
        (setting, choice, seed)
        for setting, own in _settings(settings).items()
        for choice in _choices(problems[setting], searched[setting], own)
        for seed in own["report_seeds"]
    ]
    jobs = [problems[setting].recovery(choice.ranks, seed) | choice.method for setting, choice, seed in asked]
    results = measure(stage_jobs("recover", jobs), workers, "report")
    rows = [
        {"setting": setting, **_row(problems[setting], choice, seed, result)}
        for (setting, choice, seed), result in zip(asked, results, strict=True)
    ]
    history = [row for setting in searched for row in searched[setting]]
    found = [_found(problems[row["setting"]], row) for row in history]
    return {name: rows, f"{name}_search": history}, seconds_of([*results, *found])


def recovery_rates(settings: dict, workers: int) -> tuple[dict[str, Rows], float]:
    """What the learning rates were chosen by: uniform ranks and methods at several rates, on the search's examples."""
    kinds = [("lora", rank, settings["rates"]) for rank in settings["ranks"]]
    kinds += [(method, settings["rank"], settings["rates"] + settings["more"]) for method in settings["methods"]]
    asked = [
        {"pruned": settings["pruned"], "method": method, "ranks": rank, "lr": rate, "seed": seed}
        for method, rank, rates in kinds
        for rate in rates
        for seed in settings["seeds"]
    ]
    results = measure(stage_jobs("recover", asked), workers, "learning rates")
    rows = [
        {name: job[name] for name in ("method", "ranks", "lr", "seed")}
        | {name: result.metrics[name] for name in ("search_loss", "search_accuracy", "search_kl")}
        for job, result in zip(asked, results, strict=True)
    ]
    return {"recovery_rates": rows}, seconds_of(results)


def _settings(settings: dict) -> dict[str, dict]:
    """What every setting shares, under what it says itself."""
    shared = {key: value for key, value in settings.items() if key != "settings"}
    return {name: shared | own for name, own in settings["settings"].items()}


def _problems(settings: dict) -> dict[str, Any]:
    from rules2ranks.stages import ranks  # brings torch along, which who only reads tables does not need

    names = ranks.Question.model_fields
    return {
        setting: ranks.Problem(ranks.Question.check({name: own[name] for name in names if name in own}))
        for setting, own in _settings(settings).items()
    }


def _searched(settings: dict, workers: int) -> dict[str, Rows]:
    """The histories of all searches, and what uniform scores under their seeds, by setting."""
    jobs = [
        (history, {"setting": setting, "allocator": kind, "seed": seed, "settings": settings})
        for setting, own in _settings(settings).items()
        for kind in ("uniform", *own["searchers"])
        # Seeds side by side: searchers of one seed begin with the same vectors and would wait for each other.
        for seed in own["search_seeds"]
    ]
    found: dict[str, Rows] = {setting: [] for setting in settings["settings"]}
    for rows in measure(jobs, workers, "searches"):
        found[rows[0]["setting"]] += rows
    return found


def history(setting: str, allocator: str, seed: int, settings: dict) -> Rows:
    """One search, or the uniform rank under its seed: what the workers are asked for."""
    from rules2ranks.stages import ranks

    problem, own = _problems(settings)[setting], _settings(settings)[setting]
    about = {"setting": setting, "allocator": allocator, "search_seed": seed}
    if allocator == "uniform":
        (vector,) = problem.control("uniform")
        found = stages.recover(**problem.recovery(vector, seed)).metrics["search_loss"]
        return [
            {**about, "order": 0, "ranks": written(vector), "measured": found, "predicted": None, "phase": "control"}
        ]
    sizes = {name: own[name] for name in ("offline", "rounds", "candidates")}
    found = ranks.search(problem.question, allocator, seed=seed, **sizes)
    return [
        {**about, "order": order, **entry._asdict(), "ranks": written(problem.spelt(entry.ranks))}
        for order, entry in enumerate(found.history)
    ]


def written(ranks: Any) -> str:
    """Ranks as a table holds them: one number (for all layers, or one a layer), or `matrix=rank`, apart by blanks."""
    if isinstance(ranks, int):
        return str(ranks)
    if isinstance(ranks, dict):
        return " ".join(f"{name}={rank}" for name, rank in ranks.items())
    return " ".join(map(str, ranks))


def read_ranks(text: str) -> int | list[int] | dict[str, int]:
    """What `written` wrote."""
    if "=" not in text:
        ranks = [int(rank) for rank in text.split()]
        return ranks if len(ranks) > 1 else ranks[0]
    return {name: int(rank) for name, _, rank in (part.partition("=") for part in text.split())}


def _choices(problem: Any, searched: Rows, own: dict) -> list[Chosen]:
    """The controls, the vector of every search, and the uniform rank by other methods."""
    chosen = []
    for kind in own["controls"]:
        vectors = problem.control(kind, own["random"])
        chosen += [Chosen(kind, k if len(vectors) > 1 else None, ranks, {}) for k, ranks in enumerate(vectors)]
    for kind in own["searchers"]:
        for seed in own["search_seeds"]:
            entries = [e for e in searched if (e["allocator"], e["search_seed"]) == (kind, seed)]
            # The additive model's own choice is the last of its history; the others return the best they measured.
            best = entries[-1] if kind == "additive" else min(entries, key=lambda entry: entry["measured"])
            chosen.append(Chosen(kind, seed, read_ranks(best["ranks"]), {}))
    rank = problem.question.mean_rank
    methods = own.get("methods", {})
    return chosen + [Chosen(f"uniform, {name}", None, rank, {"method": name, **how}) for name, how in methods.items()]


def _row(problem: Any, choice: Chosen, seed: int, result: runs.Result) -> dict[str, Any]:
    given = problem.question
    scores = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
    return {
        "allocator": choice.allocator,
        "which": choice.which,
        "ranks": written(choice.ranks),
        "report_seed": seed,
        **{name: value for name, value in scores.items() if not name.startswith("search_")},
        "ratio": given.pruned.ratio,
        "spread": given.pruned.spread,
        "mean_rank": given.mean_rank,
        "per": given.per,
    }


def _found(problem: Any, row: dict[str, Any]) -> runs.Result:
    return stages.recover(**problem.recovery(read_ranks(row["ranks"]), row["search_seed"]))


def rank_adaptor(settings: dict, workers: int) -> tuple[dict[str, Rows], float]:
    """The full comparison: every allocator where much is pruned, spread in both ways."""
    return table("rank_adaptor", settings, workers)


def rank_settings(settings: dict, workers: int) -> tuple[dict[str, Rows], float]:
    """Fewer allocators in more settings: other shares, budgets, learning rates, units, and another model."""
    return table("rank_settings", settings, workers)
