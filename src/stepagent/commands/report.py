"""`stepagent report`: one page from run folders."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from stepagent.commands.parsing import run_command
from stepagent.report import check_page, write_report


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


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(report, "report", args)
