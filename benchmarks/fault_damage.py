"""Fault kinds that damage files of a finished run: flipped bits, changed lines, changed files.

After the damage, the run is reported and resumed. Each command must either name the damaged file or
produce the same output as without the damage.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import fault_runs
from fault_kinds import Lab, Verdict
from fault_runs import REPORT, TRAIN, Outcome, difference, run


def damage(
    rng: random.Random, lab: Lab, folder: Path, do: Callable[[random.Random, Path], str | None]
) -> Verdict:
    """Damages one file of a copy of a finished run; then reports and resumes the run."""
    whole = lab.commands["train"]
    shutil.copytree(whole.folder / "run", folder / "run", dirs_exist_ok=True)
    every = [p for p in sorted((folder / "run").rglob("*")) if p.is_file() and p.stat().st_size]
    every = [p for p in every if p.name not in (".lock", "report.html")]
    path = rng.choice(every)
    if do is edit_lines:
        path = rng.choice([p for p in every if p.suffix == ".jsonl"])
    done = do(rng, path)
    if done is None:
        return "survived", ""
    what = f"{done} {path.relative_to(folder / 'run')}"
    names = [path.name, path.parent.name] if path.parent.name != "run" else [path.name]
    verdicts = []
    page = run(REPORT, folder)
    if page.code == 0:
        same = (folder / "run" / "report.html").read_text() == lab.page
        verdicts.append(("survived", "") if same else ("lost", f"{what}: reported all the same"))
    else:
        verdicts.append(said(page, names, f"{what}: report"))
    outcome = run(TRAIN, folder)
    if outcome.code == 0:
        changed = difference(folder, whole.expected)
        verdicts.append(
            ("lost", f"{what}: resumed, but {changed}") if changed else ("survived", "")
        )
    else:
        verdicts.append(said(outcome, names, f"{what}: resuming"))
    return min(verdicts, key=lambda verdict: ("lost", "refused", "survived").index(verdict[0]))


def said(outcome: Outcome, names: list[str], what: str) -> Verdict:
    """`refused` if an error names the file in one line, else `lost`."""
    if outcome.is_refusal and fault_runs.named(names, outcome):
        return "refused", ""
    return "lost", f"{what}: {outcome}"


def flip(rng: random.Random, path: Path) -> str | None:
    """Flips a bit."""
    whole = bytearray(path.read_bytes())
    at = rng.randrange(len(whole))
    whole[at] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(whole))
    return f"flipped byte {at} of"


def edit_lines(rng: random.Random, path: Path) -> str | None:
    """Removes a line, repeats one, or swaps two."""
    lines = path.read_bytes().splitlines(keepends=True)
    before, at = list(lines), rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            done = "a line removed from"
            del lines[at]
        case 1:
            done = "a line repeated in"
            lines.insert(at, lines[at])
        case _:
            done = "two lines swapped in"
            lines[at], lines[0] = lines[0], lines[at]
    path.write_bytes(b"".join(lines))
    return None if before == lines else done


def spoil(rng: random.Random, path: Path) -> str | None:
    """Deletes, truncates or empties a file, or replaces it by another."""
    match rng.randrange(4):
        case 0:
            path.unlink()
            return "deleted"
        case 1:
            os.truncate(path, rng.randrange(path.stat().st_size))
            return "cut"
        case 2:
            path.write_bytes(b"")
            return "emptied"
    others = [p for p in path.parent.parent.rglob(f"*{path.suffix}") if p.is_file() and p != path]
    others = [p for p in others if p.read_bytes() != path.read_bytes()]
    if not others:
        return None
    other = rng.choice(sorted(others))
    shutil.copyfile(other, path)
    return f"{other.parent.name}/{other.name} put in place of"


def flipped_bits(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """A flipped bit in a file of a finished run."""
    return damage(rng, lab, folder, flip)


def changed_lines(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """Missing, repeated or swapped JSON lines in a finished run."""
    return damage(rng, lab, folder, edit_lines)


def spoilt_files(rng: random.Random, lab: Lab, folder: Path) -> Verdict:
    """Missing, truncated, empty or replaced files of a finished run."""
    return damage(rng, lab, folder, spoil)
