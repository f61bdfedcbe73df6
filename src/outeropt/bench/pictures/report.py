"""One self-contained interactive HTML page from archives and, where there is one, a leaderboard.

The page is a single file that needs no network: style, script and numbers are inside it, and its content
security policy forbids every request and every script but its own. `docs/report.md` says how to read it.
"""

import base64
import datetime
import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jinja2
from markupsafe import Markup

from outeropt.bench.leaderboard import Leaderboard
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import report_data, report_tables, series, style
from outeropt.bench.pictures.contestants import contestants
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    archives: Sequence[Archive],
    leaderboard: Leaderboard | None,
    path: str | Path,
    *,
    title: str = "Optimizer leaderboard",
    normalizer: Normalizer | None = None,
) -> Path:
    """Writes the report page.

    Args:
      archives: one for each set and task.
      leaderboard: scores of them, or None: the page then has final losses only.
      path: the file to write (its folder is created), or a folder, which gets an `index.html`.
      title: the page's heading.
      normalizer: the leaderboard's reference, for performance profiles and tunability in speed-ups.

    Returns:
      The file written.

    Raises:
      OuteroptError: there are no archives, or two of one set on one task, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "index.html"
    page = render(archives, leaderboard, title=title, normalizer=normalizer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OuteroptError(f"The report cannot be written to {path}: {error.strerror or error}.") from None
    return path


def render(
    archives: Sequence[Archive],
    leaderboard: Leaderboard | None,
    *,
    title: str = "Optimizer leaderboard",
    normalizer: Normalizer | None = None,
) -> str:
    """The page of `write_report` as text."""
    if not archives:
        raise OuteroptError("There are no archives to report on; run a sweep first.")
    everyone = contestants(archives, leaderboard)
    known = {(row.optimizer, row.ruleset) for row in leaderboard.rows} if leaderboard else set()
    scored = [entry for entry in everyone if (entry.label, entry.ruleset) in known]
    tasks = sorted(series.tasks(archives))
    curve = leaderboard.curve if leaderboard else "train/loss"
    charts = report_data.charts(everyone, tasks, normalizer, curve)
    final = charts["final"]
    script = Markup("\n".join((TEMPLATES / name).read_text("utf-8") for name in ("chart.js", "report.js")))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            charts=charts,
            everyone=everyone,
            tasks=tasks,
            final=final,
            tunable=any(len(archive.settings) > 1 for archive in archives),
            summary=report_tables.summary(everyone, tasks),
            leaderboard=leaderboard,
            ranking=report_tables.ranking(leaderboard, everyone) if leaderboard else [],
            scored=scored,
            speedups=report_tables.heat_of_scores(leaderboard, scored) if leaderboard else [],
            losses=report_tables.heat_of_losses(everyone, tasks, final),
            ends=report_tables.ends(everyone),
            restarts=report_tables.restart_rows(everyone),
            details=report_tables.details(everyone, tasks, final),
            provenance=report_tables.provenance(everyone),
            palettes={"light": style.LIGHT, "dark": style.DARK},
            css=Markup((TEMPLATES / "report.css").read_text("utf-8")),
            script=script,
            script_hash=f"sha256-{digest}",
            made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=metadata.version("outeropt"),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment
