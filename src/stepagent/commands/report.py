"""`stepagent report`: one page from run folders."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import run_command
from stepagent.experiment.manifest import shown
from stepagent.report.page import GENERATOR, write_report
from stepagent.report.runs import PARTS, ReportError


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Puts one or several runs on one self-contained HTML page.

    Reads run folders, finished or not, and changes nothing in them; writes OUT. An older page of
    StepAgent is replaced, for it holds nothing that the runs do not.

    For example: stepagent report runs/seed-0 runs/seed-1 --out report.html

    Args:
        runs: Run folders.
        out: The page; without it report.html, in the run folder if there is one run only.
        overwrite: Replace OUT if it exists.
    """
    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    check_page(runs, page, overwrite=overwrite)
    write_report(runs, page)
    print(f"Report: {page}")


def check_page(runs: Sequence[Path], page: Path, *, overwrite: bool = False) -> None:
    """Raises `UsageError` unless a report may be put there; an older report may be replaced."""
    for run in runs:
        if not run.is_dir():
            raise ReportError(f"{shown(run)}: no such folder, expected a run folder")
    parts = (*PARTS, "units", "demonstrations.jsonl", "summary.md")
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
