"""The study's results in a folder: tables as Markdown, and figures."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from outeropt.bench.one_pass import study
from outeropt.bench.one_pass.problems import PROBLEMS
from outeropt.bench.one_pass.tables import KEY, Table, markdown, tables
from outeropt.bench.pictures.restart_figures import save_restarts
from outeropt.store import Archive


__all__ = ["KEY", "about", "write"]


def write(
    found: Mapping[str, Mapping[str, Archive]],
    out: str | Path,
    *,
    methods: Sequence[str] = tuple(study.METHODS),
    threshold: float | None = None,
) -> tuple[list[Table], Path]:
    """Writes `tables.md` and `figures/`.

    Args:
      found: archives by dataset and method, as `study.run` gives them.
      out: the folder; created if missing.
      methods: those to show.
      threshold: as in `study.all_restarts`.

    Returns:
      The tables, and the page.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    made: list[Table] = []
    shown: list[Archive] = []
    for dataset, archives in found.items():
        runs = study.all_restarts(archives, dataset, threshold=threshold)
        ours = study.summaries(runs, threshold=study.limit_of(dataset, threshold))
        made += tables(dataset, {name: one for name, one in ours.items() if name in methods})
        drawn = study.with_derived(archives, dataset, threshold=threshold)
        shown += [archive for name, archive in drawn.items() if name in methods]
    page = out / "tables.md"
    page.write_text(markdown(made, about(found, threshold)), "utf-8")
    tables_alone = all(PROBLEMS[dataset].table for dataset in found)
    save_restarts(shown, out / "figures", "(target's units)" if tables_alone else "(nats)")
    return made, page


def about(found: Mapping[str, Mapping[str, Archive]], threshold: float | None = None) -> str:
    """A sentence on what was run; datasets that were run alike are told together."""
    lines: dict[str, list[str]] = {}
    for dataset, archives in found.items():
        one = next(iter(archives.values()))
        limit = study.limit_of(dataset, threshold)
        lost = "" if limit is None else f"; a final test loss of {limit:g} or more counts as diverged"
        line = f"{len(one.seeds)} restarts of {one.num_steps} steps, evaluated every {one.eval_every}{lost}"
        lines.setdefault(line, []).append(dataset)
    told = "; ".join(f"{', '.join(names)}: {line}" for line, names in lines.items())
    return f"{told}. outeropt {metadata.version('outeropt')}."
