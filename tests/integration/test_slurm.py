"""Workers as jobs of Slurm: what is submitted, how a job saves and comes back, and a real Slurm."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from standing_still import HANG_SECONDS, Command, until

from pugdft.bench.executors import make_executor, parse_executor, slurm
from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.bench.worker import Options, Watcher, prepare_output, request_stop, run_cells
from pugdft.errors import RunFailed, UserError
from pugdft.records import read_record

# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("workers=2,partitoin=gpu", 'Did you mean "partition"?'),
        ("workers=2,time=3", "time: must be a whole number of minutes, at least 5, not 3"),
        ("workers=2,time=1-00:00", "time: must be"),
        ("workers=2,mem=16", "mem: must be an amount with its unit, such as 16G, not 16"),
        ("workers=2,gpus=many", "gpus: must be"),
        ("workers=2,setup=module load cuda", "setup: must be a list"),
        ("workers=2,extra=nice", "extra: must be a mapping"),
        ("partition=gpu", "workers: is required"),
    ],
)
def test_wrong_options_are_told_with_what_is_allowed(options: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_executor(f"slurm[{options}]")
    assert message in str(error.value)
    assert str(error.value).startswith("--executor: ")


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse_executor("slurm[workers=x,cpus=0,qos=]")
    assert len(str(error.value).splitlines()) == 3


def test_a_missing_extra_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'pip install "pugdft\[slurm\]"$'):
        make_executor(parse_executor("slurm[workers=1]"), tmp_path).check()


# --- submissions, with stand-ins for Slurm's commands ------------------------------------------------------


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts commands of Slurm that print something on PATH; sbatch keeps the script that it is given."""
    pytest.importorskip("submitit")
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            path = folder / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    write(
        srun="exit 1",
        sbatch=f'cat "$1" >> {tmp_path}/script; echo Submitted batch job 7',
        scontrol="echo 'MaxArraySize            = 4'",
        squeue="exit 0",
        scancel="exit 0",
    )
    return write


def executor(text: str, runs: Path) -> Any:
    return make_executor(parse_executor(text), runs)


def test_workers_are_one_array_with_the_options_that_were_given(
    commands: Callable[..., None], tmp_path: Path
) -> None:
    options = "partition=gpu,time=240,gpus=a100:2,cpus=3,mem=16G,account=lab,qos=low,constraint=fast"
    more = "setup=[module load cuda, ulimit -n 4096],extra={nice: 100, exclusive: true}"
    engine = executor(f"slurm[workers=3,{options},{more}]", tmp_path)
    engine.check()
    engine.start(3, ["worker"], tmp_path / "logs")
    lines = (tmp_path / "script").read_text().splitlines()
    wanted = {
        *("--partition=gpu", "--time=240", "--gpus-per-node=a100:2", "--cpus-per-task=3", "--mem=16G"),
        *("--account=lab", "--qos=low", "--constraint=fast", "--nice=100", "--exclusive", "--requeue"),
        "--array=0-2%3",
    }
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    setup = lines.index("module load cuda")
    assert lines[setup + 1] == "ulimit -n 4096"
    (srun,) = (line for line in lines[setup:] if line.startswith("srun "))
    assert "--cpus-per-task=3" in srun, "a step does not inherit the cores of its job"


def test_living_workers_are_counted_among_all_of_the_user(
    commands: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_ASK_SECONDS", 0.0)
    engine = executor("slurm[workers=2]", tmp_path)
    engine.start(2, ["worker"], tmp_path / "logs")
    commands(squeue="printf '7\\n17\\n7\\n70\\n'")
    assert engine.alive() == 2
    commands(squeue="echo slurm_load_jobs error: no contact >&2; exit 1")
    assert engine.alive() is None, "unknown is not none"
    commands(squeue="exit 0")
    assert engine.alive() == 0


def test_what_the_cluster_refuses_is_one_message(
    commands: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commands(sbatch="echo sbatch: error: invalid partition specified: gpu >&2; exit 1")
    engine = executor("slurm[workers=2,partition=gpu]", tmp_path)
    engine.check()
    with pytest.raises(UserError, match=r"^slurm: sbatch: error: invalid partition specified: gpu$"):
        engine.start(2, ["worker"], tmp_path / "logs")
    assert capfd.readouterr() == ("", "")


def test_too_many_workers_and_a_silent_cluster_are_told(
    commands: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"at most 4 \(MaxArraySize\)$"):
        executor("slurm[workers=5]", tmp_path).check()
    commands(scontrol="echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(RunFailed, match=r"^slurm: scontrol: Unable to contact slurm controller$"):
        executor("slurm[workers=4]", tmp_path).check()


def test_what_a_command_of_slurm_prints_need_not_be_text(
    commands: Callable[..., None], tmp_path: Path
) -> None:
    commands(scontrol="printf '\\377\\376'", squeue="printf '\\377 7 8'")
    engine = executor("slurm[workers=2]", tmp_path)
    engine.check()
    engine.start(2, ["worker"], tmp_path / "logs")
    assert engine.alive() == 1


def test_a_machine_with_a_part_of_slurm_is_told_what_is_missing(
    commands: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "commands"))
    executor("slurm[workers=2]", tmp_path).check()
    (tmp_path / "commands" / "srun").unlink()
    with pytest.raises(UserError, match=r"^slurm: there is no srun here; "):
        executor("slurm[workers=2]", tmp_path).check()


# --- a job -------------------------------------------------------------------------------------------------

_WORKER = "trap 'touch saved; exit 143' TERM; touch begun; while :; do sleep 0.05; done"
_JOB = """
import os, signal, sys
from pathlib import Path
from pugdft.bench.executors.slurm import WorkerJob

job = WorkerJob(["sh", "-c", sys.argv[1]], 60, Path())

def on_signal(number, frame):
    again = job.checkpoint().function
    os._exit(0 if again == WorkerJob(job.command, 60, Path()) else 1)

signal.signal(signal.SIGUSR2, on_signal)
os._exit(100 + job())
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job in a process of its own, whose worker has begun."""
    pytest.importorskip("submitit")
    process = subprocess.Popen([sys.executable, "-c", _JOB, _WORKER], cwd=tmp_path, text=True)
    until((tmp_path / "begun").exists, process)
    yield process
    for each in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
        each.kill()
    process.wait()


def worker_of(job: subprocess.Popen[str]) -> psutil.Process:
    (worker,) = psutil.Process(job.pid).children()
    return worker


def test_a_signal_while_the_job_waits_lets_the_worker_save_first(
    job: subprocess.Popen[str], tmp_path: Path
) -> None:
    worker_of(job).send_signal(signal.SIGUSR2)  # Slurm sends it to all processes of a job
    assert not (tmp_path / "saved").exists()
    job.send_signal(signal.SIGUSR2)
    assert job.wait(HANG_SECONDS) == 0
    assert (tmp_path / "saved").exists()


def test_a_job_whose_worker_slurm_has_ended_lets_itself_be_ended_too(
    job: subprocess.Popen[str], tmp_path: Path
) -> None:
    worker_of(job).terminate()
    until(lambda: not psutil.Process(job.pid).children(), job)
    time.sleep(0.3)
    assert job.poll() is None, "Slurm requeues no job that has ended by itself"
    job.send_signal(signal.SIGUSR2)
    assert job.wait(HANG_SECONDS) == 0


def test_a_worker_that_was_asked_to_stop_ends_its_job(job: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / ".claims").mkdir()
    request_stop(tmp_path)
    worker_of(job).terminate()
    assert job.wait(HANG_SECONDS) == 100 + 143


def test_a_worker_takes_no_cell_shortly_before_its_end(recipe_file: Path, runs: Any) -> None:
    cells = plan_cells(build_matrix([str(recipe_file)], "sgd", "0-1"), recipe_file.parent / "runs")
    prepare_output(recipe_file.parent / "runs")
    assert run_cells(cells, Watcher(), Options(until=time.time() + 100)) == 143
    assert not runs.started


# --- a real Slurm ------------------------------------------------------------------------------------------

_CONFIGURATION = """
ClusterName=small
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=15
PartitionName=high Nodes=localhost PriorityTier=10 PreemptMode=OFF
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm of one node with two cores: jobs of the partition ``high`` preempt those of ``low``."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"not installed: {', '.join(missing)}" if missing else "only root can start Slurm here")
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    for each in ("state", "spool"):
        (folder / each).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    path = folder / "slurm.conf"
    path.write_text(_CONFIGURATION.format(folder=folder, ports=(free_port(), free_port())))
    monkeypatch.setenv("SLURM_CONF", str(path))
    files = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "seed-file")]
    files += [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("log-file", "pid-file")]
    started = []
    with (folder / "output").open("w") as output:
        for command in (
            ["munged", "--foreground", "--force", *files],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            started.append(subprocess.Popen(command, stdout=output, stderr=output))
    try:
        until(lambda: "idle" in said_by("sinfo", "--noheader", "--format=%t"))
        yield
    finally:
        subprocess.run(["scancel", "--user=root"])
        until(lambda: not said_by("squeue", "--noheader"))
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(HANG_SECONDS)


def said_by(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def joined() -> list[psutil.Process]:
    """The workers that run here."""
    return [
        each for each in psutil.process_iter(["cmdline"]) if "--join" in (each.info["cmdline"] or ())
    ]  # fmt: skip


@pytest.mark.slow
def test_cells_go_on_where_they_were_after_a_preemption_and_a_kill(
    cluster: None, recipe_file: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    runs = tmp_path / "runs"
    begin = time.monotonic()
    command = start(
        *("bench", str(recipe_file), "train.epochs=20", "--optimizers", "sgd", "--seeds", "0-11"),
        *("--executor", "slurm[workers=2,partition=low,cpus=1,time=30,lease=6]", "--output", str(runs)),
    )

    def halfway(worker: psutil.Process) -> Path | None:
        """The run of a worker's cell, if it has a checkpoint and is not finished."""
        for attempts in (runs / ".claims").glob("*.attempts"):
            run = runs / attempts.stem
            if f'"pid": {worker.pid},' in attempts.read_text() and not (run / "record.yaml").exists():
                return run if (run / "checkpoint" / "state.json").exists() else None
        return None

    both = until(lambda: found if len(found := joined()) == 2 else None, command.process)
    assert both is not None
    until(lambda: all(map(halfway, both)), command.process)
    subprocess.run(["sbatch", "--partition=high", "--output=/dev/null", "--wrap=sleep 2"], check=True)
    until(lambda: len(joined()) == 1, command.process)
    (other,) = joined()
    killed = until(lambda: halfway(other), command.process)
    other.kill()
    assert killed is not None
    _, errors = command.process.communicate(timeout=5 * HANG_SECONDS)
    assert command.process.returncode == 0, errors
    records = {path.parent.name: read_record(path) for path in runs.glob("*/record.yaml")}
    assert [record.status for record in records.values()] == ["completed"] * 12
    assert records[killed.name].restarts
    steps = [each["step"] for record in records.values() for each in record.restarts]
    assert min(steps) > 0, "a run began anew although it had a checkpoint"
    restarts = re.findall(r"Restarts=(\d+)", said_by("scontrol", "show", "job"))
    assert max(map(int, restarts)) >= 1
    print(f"{time.monotonic() - begin:.0f} s; went on from updates {steps}; Restarts {restarts}")
