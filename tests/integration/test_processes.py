"""What processes are told by their environment, and what they do before they meet."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pugdft.cli.launch import end_with_the_launcher, launch
from pugdft.cli.main import application
from pugdft.errors import UserError
from pugdft.training.launchers import (
    check_first_task,
    check_variables,
    must_use_cpu,
    own_environment,
    process_timeout,
    shared_by_tasks,
)
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import device_type


@pytest.mark.parametrize(("given", "message"), [
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: must be a whole number of at least 1, not 'abc'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE: must be a whole number of at least 1"),
    ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE: must be"),
    ({"RANK": "-1"}, "RANK: must be a whole number of at least 0"),
    ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
    ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
     "RANK: 2 is no number of 2 processes"),
    ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU: must be true or false, not 'maybe'"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED: is not supported"),
    ({"ACCELERATE_USE_FSDP": "1"}, "ACCELERATE_USE_FSDP: is not supported"),
    ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "set train.performance.compile=true"),
])  # fmt: skip
def test_an_environment_that_cannot_be_followed_is_said_before_anything_is_made(
    given: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        finetune(read_recipe(small_recipe), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_launchers_and_accelerate_usually_set_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_variables()
    for name, value in {
        "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
        "ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "yes",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    check_variables()
    assert must_use_cpu()
    assert device_type() == "cpu"


@pytest.mark.parametrize("name", ["PUGDFT_WORKER", "PUGDFT_LAUNCHER"])
@pytest.mark.parametrize("value", ["rubbish", "1.5", "-1", "{own}", "9" * 5000])
def test_a_process_that_has_not_started_this_one_is_not_waited_for(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = value.format(own=os.getpid())
    set_all(monkeypatch, f"TORCHELASTIC_RUN_ID=x {name}={value}")
    with pytest.raises(UserError, match=f"^{name}: '{value[:79]}.* is not the process .* unset it") as error:
        end_with_the_launcher()
    assert len(str(error.value)) < 400
    result = CliRunner().invoke(application(["finetune"]), ["finetune", "quickstart", "--dry-run"])
    assert str(result.exception) == str(error.value), "and the command says it"


def test_images_and_weights_are_there_before_processes_meet(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process group has a time limit for those who wait; a file's lock has none."""
    module = sys.modules["pugdft.training.run"]
    order = []

    def noted(name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: order.append(name) or function(*given))

    noted("load")
    noted("make_accelerator")
    finetune(read_recipe(small_recipe, ["train.max_steps=1"]), tmp_path)
    assert order == ["load", "make_accelerator"]


def test_a_failed_load_is_raised_only_after_the_processes_have_met(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that, the others could not be told."""
    module, met = sys.modules["pugdft.training.run"], []
    connect = module.make_accelerator
    monkeypatch.setattr(module, "make_accelerator", lambda recipe: met.append(1) or connect(recipe))
    with pytest.raises(UserError, match="no such folder"):
        finetune(read_recipe(small_recipe, ["data.name=nowhere"]), tmp_path)
    assert met


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of a launcher under which these tests themselves run."""
    for name in set(os.environ) - set(own_environment()):
        monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    for name, _, value in (each.partition("=") for each in given.split()):
        monkeypatch.setenv(name, value)


def pugdft(*arguments: str, env: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with these variables, after these lines of Python."""
    code = f"import sys; {before}sys.argv[0] = 'pugdft'\nfrom pugdft.cli.main import main; main()"
    environment = {**own_environment(), **dict(each.split("=") for each in env.split())}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


TORCHRUN = "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=29500"
ONE_GROUP = "TORCHELASTIC_RUN_ID=x GROUP_RANK=0 GROUP_WORLD_SIZE=1"


@pytest.mark.parametrize("given", [
    "SLURM_NTASKS=2 SLURM_PROCID=0",
    "SLURM_NTASKS=2 SLURM_PROCID=1",
    "SLURM_NPROCS=2 SLURM_PROCID=0",
    "SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=0 ENVIRONMENT=BATCH",
    "SLURM_NTASKS=2 SLURM_PROCID=1 SLURM_STEP_ID=0 WORLD_SIZE=1 RANK=0 " + ONE_GROUP,
    f"SLURM_NTASKS=2 SLURM_PROCID=1 SLURM_STEP_ID=0 {TORCHRUN} {ONE_GROUP}",
    "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0",
    "OMPI_COMM_WORLD_SIZE=4",
    "PMI_SIZE=2 PMI_RANK=1",
    "PMI_SIZE=2",
    "PMIX_RANK=1",
    "MV2_COMM_WORLD_SIZE=2 MV2_COMM_WORLD_RANK=0",
    "PALS_RANKID=3",
    "JSM_NAMESPACE_SIZE=2 JSM_NAMESPACE_RANK=0",
    "FLUX_JOB_SIZE=2 FLUX_TASK_RANK=0",
])  # fmt: skip
def test_copies_of_a_run_that_a_scheduler_has_started_are_refused_with_two_ways(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, given)
    with pytest.raises(UserError) as error:
        check_variables()
    for word in ("--num-processes N", "torchrun --nnodes", "unset", given.split()[0].split("=")[0]):
        assert word in str(error.value)


@pytest.mark.parametrize("given", [
    "SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_STEP_ID=0",
    "SLURM_NTASKS=4",  # salloc
    "SLURM_NTASKS=4 SLURM_PROCID=0 ENVIRONMENT=BATCH SLURM_JOB_ID=7",  # the script that sbatch starts
    "SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_STEP_ID=0",
    f"SLURM_NTASKS=2 SLURM_PROCID=1 {TORCHRUN}",  # variables set by hand, as many scripts do
    f"SLURM_NTASKS=2 SLURM_PROCID=1 SLURM_STEP_ID=0 {TORCHRUN} GROUP_RANK=0 GROUP_WORLD_SIZE=2",
    "OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0 PMIX_RANK=0 PMI_SIZE=1 PMI_RANK=0",
    "SLURM_PROCID=x SLURM_NTASKS=y",
    "ACCELERATE_MIXED_PRECISION=no",
    "MASTER_ADDR=node1",
    f"ACCELERATE_MIXED_PRECISION=no {TORCHRUN}",
])  # fmt: skip
def test_one_task_and_processes_that_know_of_each_other_go_on(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, given)
    check_variables()


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
@pytest.mark.parametrize("node", ["GROUP_RANK=1", ""])
def test_a_loopback_address_is_refused_on_another_node_than_the_first(
    address: str, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, f"WORLD_SIZE=2 RANK=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR={address} {node}")
    with socket.create_server(("", 0)) as store:
        port = store.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        if address != "::1":
            check_variables()  # two nodes on one machine, to try it out: the first one's store answers
    with pytest.raises(UserError, match=r"MASTER_ADDR: .* this machine itself.*--local-addr.*--master-addr"):
        check_variables()
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    check_variables()
    set_all(monkeypatch, f"RANK=0 GROUP_RANK=0 MASTER_ADDR={address}")
    check_variables()


@pytest.mark.parametrize("text", ["0", "-5", "ten", "nan", "inf", "1e9", "10m"])
def test_a_time_limit_of_processes_that_is_no_number_of_seconds_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process_timeout() == 600
    monkeypatch.setenv("PUGDFT_PROCESS_TIMEOUT", "90.5")
    assert process_timeout() == 90.5
    monkeypatch.setenv("PUGDFT_PROCESS_TIMEOUT", text)
    with pytest.raises(UserError, match="PUGDFT_PROCESS_TIMEOUT: must be a number of seconds from 1"):
        check_variables()


@pytest.mark.parametrize("line", [
    "bench quickstart", "tune quickstart", "leaderboard .", "doctor", "compare sgd sam", "verify .",
    "recipes ls", "optimizers ls", "data verify",
])  # fmt: skip
def test_a_command_of_one_process_is_refused_under_torchrun(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = pugdft(*line.split(), env=TORCHRUN)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("pugdft: WORLD_SIZE: 2 says")
    assert "--num-processes N" in done.stderr
    assert not list(tmp_path.iterdir())


def test_processes_are_not_started_by_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, TORCHRUN)
    with pytest.raises(UserError, match="started `finetune --num-processes 2` as one of 2 processes"):
        launch(2, ["finetune", "quickstart"])


@pytest.mark.parametrize(
    "line", ["finetune quickstart", "finetune quickstart --num-processes 2", "bench", "rerun ."]
)
def test_accelerate_launch_that_starts_one_process_of_several_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment as version 1.15 sets it without GPUs."""
    monkeypatch.chdir(tmp_path)
    given = "ACCELERATE_MIXED_PRECISION=no ACCELERATE_USE_CPU=False MASTER_ADDR=127.0.0.1 MASTER_PORT=29500"
    done = pugdft(*line.split(), env=given)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "accelerate launch: was told to start several processes" in done.stderr
    assert "torchrun --nproc-per-node N" in done.stderr
    assert not list(tmp_path.iterdir())


HIDDEN = "sys.modules['fcntl'] = None; sys.modules['resource'] = None; "


@pytest.mark.parametrize("line", ["finetune quickstart", "bench", "tune x", "rerun ."])
def test_without_the_locks_of_linux_a_command_names_wsl(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = pugdft(*line.split(), before=HIDDEN)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "fcntl" in done.stderr
    assert "WSL" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("line", ["--help", "optimizers ls", "recipes ls", "finetune quickstart -h"])
def test_what_needs_no_locks_works_without_them(line: str) -> None:
    done = pugdft(*line.split(), before=HIDDEN)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_cell_inherits_no_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = own_environment()
    set_all(monkeypatch, f"{TORCHRUN} {ONE_GROUP} SLURM_PROCID=1 SLURM_NTASKS=2 PMIX_RANK=1 PMI_SIZE=2")
    set_all(monkeypatch, "TORCHELASTIC_USE_AGENT_STORE=True ROLE_RANK=0 PUGDFT_LAUNCHER=1 SLURM_JOB_ID=7")
    assert own_environment() == {**kept, "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    "given", ["SLURM_NTASKS=2 SLURM_PROCID={}", "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK={}"]
)
def test_of_several_tasks_the_first_works_or_all_share_the_runs(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = given.split("=")[0]
    set_all(monkeypatch, given.format(0))
    check_first_task("pugdft leaderboard")
    assert re.match(
        rf"{name}=2, .* has started 2 tasks: they share the runs of this folder$", shared_by_tasks()
    )
    set_all(monkeypatch, given.format(1))
    assert shared_by_tasks() == ""
    with pytest.raises(
        UserError, match=rf"{name}=2, .* has started 2 tasks of `pugdft leaderboard`, .* -n 1.*unset"
    ):
        check_first_task("pugdft leaderboard")
    with pytest.raises(UserError, match="has started 2 tasks"):
        application()(["leaderboard", "nowhere"], standalone_mode=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun of one process, and no scheduler
    for each in given.split():
        monkeypatch.delenv(each.split("=")[0])
    check_first_task("pugdft leaderboard")
