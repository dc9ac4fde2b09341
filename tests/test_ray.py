"""Processes that Ray starts: the same files as by torchrun, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from fakes import demonstrations, random_policy
from stepagent import cli
from stepagent.commands import launching
from stepagent.trajectories import write_jsonl
from test_pipeline import assert_same
from test_ranks import ENVIRONMENT, KILLS, STEPAGENT, TOGETHER, ended, succeed, together_in

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install 'stepagent[ray]'"
)
WITH_RAY = ("--launcher", "ray", "--num-workers", "2")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--num-workers", "2"], "--num-workers: only for --launcher ray"),
        (["--max-restarts=2"], "--max-restarts: only for --launcher ray"),
        (["--ray-address", "auto"], "--ray-address: only for --launcher ray"),
        (["--launcher", "slurm"], "--launcher slurm: expected ray"),
        (["--launcher", "ray"], "--launcher ray: expected --num-workers N too"),
        (["--launcher", "ray", "--num-workers"], "--num-workers: expected one argument"),
        ([*WITH_RAY[:3], "two"], "--num-workers: invalid int value: 'two'"),
        ([*WITH_RAY[:3], "0"], "--num-workers must be at least 1, not 0"),
        ([*WITH_RAY, "--max-restarts", "-1"], "--max-restarts must be at least 0, not -1"),
    ],
)
def test_wrong_options_of_the_launcher_are_one_line(
    options: Sequence[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended_with:
        cli.main(["train", "scienceworld-demo", "--out", "run", *options])
    assert ended_with.value.code == 2
    assert capsys.readouterr().err == f"stepagent: {fault}\n"


def test_a_command_that_cannot_be_shared_is_not_launched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tasks", *WITH_RAY])
    said = capsys.readouterr().err
    assert said.startswith("stepagent: tasks: works in one process; --launcher ray can start train")


def test_without_ray_the_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", {**os.environ})
    with pytest.raises(SystemExit):
        cli.main(["train", "scienceworld-demo", "--out", "run", *WITH_RAY])
    said = capsys.readouterr().err
    assert said == (
        "stepagent: --launcher ray: Ray is not installed; expected: pip install 'stepagent[ray]'\n"
    )


def test_the_help_names_the_options_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", "--help", *WITH_RAY])
    said = capsys.readouterr().out
    assert all(option in said for option in launching.OPTIONS)


@pytest.fixture
def reflect(tmp_path: Path) -> Callable[..., list[str]]:
    """A command line by the name of its run folder, which is relative, and more options."""
    random_policy().save(tmp_path / "policy")
    write_jsonl(tmp_path / "train.jsonl", demonstrations()[:12])
    write_jsonl(tmp_path / "held-out.jsonl", demonstrations("dev")[:4])
    return lambda out, *options: [
        sys.executable, *STEPAGENT, "reflect", "--method", "implicit", "--policy", "policy",
        "--demonstrations", "train.jsonl", "--held-out", "held-out.jsonl", "--rounds", "1",
        "--implicit.epochs", "8", "--out", out, *WITH_RAY, *options,
    ]  # fmt: skip


@needs_ray
def test_processes_that_are_killed_are_started_again_and_the_files_are_the_same(
    tmp_path: Path,
) -> None:
    succeed(together_in(2, "run", str(tmp_path / "whole")))
    command = [sys.executable, TOGETHER, "ray", "2", str(len(KILLS)), "run", str(tmp_path / "run")]
    succeed(ended([*command, *KILLS], seconds=3000))
    assert tuple((tmp_path / "run.killed").read_text().split()) == KILLS
    assert_same(tmp_path / "run", tmp_path / "whole")


@needs_ray
def test_an_error_that_the_user_can_fix_is_one_line_and_is_not_repeated(
    tmp_path: Path, reflect: Callable[..., list[str]]
) -> None:
    (tmp_path / "held-out.jsonl").unlink()
    done = subprocess.run(
        reflect("run"), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr == "stepagent: held-out.jsonl: no such file; expected a file of JSON lines\n"


@needs_ray
def test_sigterm_ends_the_processes_and_says_how_to_resume(
    tmp_path: Path, reflect: Callable[..., list[str]]
) -> None:
    with subprocess.Popen(
        reflect("run", "--implicit.epochs", "999"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        try:
            while not (tmp_path / "run" / "units" / "round0").exists():
                assert agent.poll() is None
                time.sleep(0.1)
            agent.send_signal(signal.SIGTERM)
            _, said = agent.communicate(timeout=60)
        finally:
            agent.kill()
    assert agent.returncode == os.EX_TEMPFAIL
    last = said.splitlines()[-1]
    assert last.startswith("stepagent: stopped by SIGTERM; to resume: stepagent reflect")
    assert last.endswith("--launcher ray --num-workers 2 --implicit.epochs 999 --resume")
    while _working_in(tmp_path):
        time.sleep(0.1)


def _working_in(folder: Path) -> list[str]:
    """Processes whose current folder it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
        except OSError:
            continue
    return found


CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
machines = [cluster.add_node(num_cpus=1) for _ in range(3)]
cluster.wait_for_nodes()
print(cluster.address, *(m.all_processes["raylet"][0].process.pid for m in machines), flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@needs_ray
def test_if_a_machine_of_a_cluster_is_lost_another_takes_its_place(
    tmp_path: Path, reflect: Callable[..., list[str]]
) -> None:
    environment = ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        address, *machines = cluster.stdout.readline().split()
        command = reflect("run", "--ray-address", address, "--storage", "there")
        with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT) as agent:
            try:
                while not (tmp_path / "run" / "units" / "round0").exists():
                    assert agent.poll() is None
                    time.sleep(0.1)
                working = [m for m in machines if b"RayTrainWorker" in _programs_of(m)]
                assert len(working) == 2
                os.kill(int(working[0]), signal.SIGKILL)
                assert agent.wait(300) == 0
            finally:
                agent.kill()
        cluster.stdin.write("\n")
    given = command[3 : command.index("--launcher")]
    given = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in given]
    given[given.index("--out") + 1] = str(tmp_path / "whole")
    succeed(together_in(2, "stepagent", str(tmp_path / "pid"), *given))
    for folder in ("run", "there"):
        assert_same(tmp_path / folder, tmp_path / "whole")


def _programs_of(parent: str) -> bytes:
    """The command lines of the processes that a process has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return b"".join(Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
