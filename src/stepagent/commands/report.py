"""`stepagent report`: writes an HTML report of one or several runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import run_command
from stepagent.experiment.run_folder import DEMONSTRATIONS, REPORT, SUMMARY, UNITS
from stepagent.experiment.run_json import shown
from stepagent.report.page import GENERATOR, write_report
from stepagent.report.runs import PARTS, ReportError


def report(
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")],
    /,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a self-contained HTML page that shows one run or compares several.

    Reads the run folders, finished or not, without changing them; writes OUT. An older report is
    always replaced, since everything in it comes from the runs.

    For example: stepagent report runs/seed-0 runs/seed-1 --out report.html

    Args:
        runs: The run folders.
        out: The HTML file; by default report.html, for a single run in its folder.
        overwrite: Replace OUT even if it is not a report.
    """
    page = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    check_page(runs, page, overwrite=overwrite)
    write_report(runs, page)
    print(f"Report: {page}")


def check_page(runs: Sequence[Path], page: Path, *, overwrite: bool = False) -> None:
    """Raises `UsageError` unless the report may be written; an older report may be replaced.

    Raises `ReportError` if a run folder does not exist.
    """
    for run in runs:
        if not run.is_dir():
            raise ReportError(f"{shown(run)}: no such folder; expected a run folder")
    parts = (*PARTS, UNITS, DEMONSTRATIONS, SUMMARY)
    inputs = [run / part for run in runs for part in parts]
    check_file(page, inputs=inputs, overwrite=overwrite or _is_report(page))


def _is_report(page: Path) -> bool:
    if not page.is_file():
        return False
    with open(page, "rb") as file:
        return GENERATOR in file.read(4096)


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(report, "report", args)
