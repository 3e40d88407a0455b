"""What launchers and schedulers say in environment variables, judged before torch is imported."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from typing import NamedTuple

from pugdft.errors import UserError
from pugdft.paths import check_locks

# The numbers that a launcher sets, and the least value of each.
_LAUNCHER_NUMBERS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
_TRUE, _FALSE = {"1", "true", "yes", "on", "y", "t"}, {"", "0", "false", "no", "off", "n", "f"}
_SECONDS = "PUGDFT_PROCESS_TIMEOUT"
SHARED_WITH = "PUGDFT_SHARED_WITH"  # how many runs share this one's device, if there are more
PLANNED = "PUGDFT_PLANNED"  # what was planned with a run: its optimizer's seeds, and how many optimizers
WORKER = "PUGDFT_WORKER"  # the process of which this one is a part, and with which it ends
UNTIL = "PUGDFT_UNTIL"  # the end of a worker's time, in seconds since the epoch


class _Scheduler(NamedTuple):
    """A program that starts copies of a command; of several names the first that is set counts."""

    name: str
    sizes: tuple[str, ...]
    ranks: tuple[str, ...]


_SCHEDULERS = (
    _Scheduler("srun", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), ("SLURM_PROCID",)),
    _Scheduler("mpirun", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_RANK",)),
    _Scheduler("mpirun", ("MV2_COMM_WORLD_SIZE",), ("MV2_COMM_WORLD_RANK",)),
    _Scheduler("mpirun", ("PMI_SIZE",), ("PMI_RANK",)),
    _Scheduler("mpirun", (), ("PMIX_RANK",)),
    _Scheduler("mpiexec", ("PALS_SIZE",), ("PALS_RANKID",)),
    _Scheduler("jsrun", ("JSM_NAMESPACE_SIZE",), ("JSM_NAMESPACE_RANK",)),
    _Scheduler("flux run", ("FLUX_JOB_SIZE",), ("FLUX_TASK_RANK",)),
)
_OF_LAUNCHERS = (
    *("TORCHELASTIC_", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_", "MASTER_ADDR", "MASTER_PORT"),
    *("PUGDFT_LAUNCHER", WORKER, "OMPI_", "PMI_", "PMIX_", "MV2_COMM_"),
)


def own_environment() -> dict[str, str]:
    """Return the environment without launchers' variables, for a command that is a run of its own."""
    names = {*_LAUNCHER_NUMBERS, *(name for each in _SCHEDULERS for name in (*each.sizes, *each.ranks))}
    kept = os.environ.items()
    return {name: value for name, value in kept if name not in names and not name.startswith(_OF_LAUNCHERS)}


def check_alone(what: str) -> None:
    """Refuse what is no work for several processes, such as a bench, if this is one of several."""
    _check_accelerate(f"`{what}` is one process")
    world = _number("WORLD_SIZE")
    if "RANK" in os.environ and world is not None and world > 1:
        raise UserError(
            f"WORLD_SIZE: {world} says that a launcher has started `{what}` as one of {world} processes, but "
            "it must be one; only finetune and rerun without --num-processes can be started so. Start it "
            "without the launcher (bench, tune, finetune and rerun have --num-processes N), or unset RANK "
            "and WORLD_SIZE"
        )


def check_variables() -> None:
    """Refuse variables of launchers and of Accelerate that are wrong, missing, or not for a recipe to say."""
    check_locks()
    for name, least in _LAUNCHER_NUMBERS.items():
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise UserError(
                f"{name}: must be a whole number of at least {least}, not {value!r}. Launchers set it "
                "(torchrun, accelerate launch, --num-processes); without one, unset it"
            )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and missing:
        raise UserError(
            f"WORLD_SIZE: {world} says that this is one of several processes, but {', '.join(missing)} "
            "is not set. Start them with --num-processes, torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    if world > 1 and int(os.environ["RANK"]) >= world:
        raise UserError(f"RANK: {os.environ['RANK']} is no number of {world} processes, which begin at 0")
    _check_accelerate("this is the only process")
    _check_schedulers(world)
    if world > 1:
        _check_meeting_point()
    process_timeout()
    # Each of these would change the training without being in the recipe.
    for what in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        name = f"ACCELERATE_USE_{what}"
        if _is_on(name):
            raise UserError(f"{name}: is not supported; unset it (Accelerate's config may have set it)")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND: {backend} would compile unrecorded; unset it and set "
            "train.performance.compile=true"
        )


def process_timeout() -> float:
    """Return the seconds that a process waits for another one: ``PUGDFT_PROCESS_TIMEOUT``, else 600."""
    text = os.environ.get(_SECONDS) or "600"
    with suppress(ValueError):
        if 1 <= (seconds := float(text)) <= 10**6:  # a million seconds are eleven days
            return seconds
    raise UserError(f"{_SECONDS}: must be a number of seconds from 1 to 1000000, such as 600, not {text!r}")


def end_of_time() -> float:
    """Return when the time of a worker ends, in seconds since the epoch: ``PUGDFT_UNTIL``, else never."""
    text = os.environ.get(UNTIL) or "inf"
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return seconds
    raise UserError(
        f"{UNTIL}: must be the end of this worker's time in seconds since 1970, as `date +%s` shows them, "
        f"not {text!r}"
    )


def must_use_cpu() -> bool:
    """Tell whether Accelerate is told to use no accelerator."""
    return _is_on("ACCELERATE_USE_CPU")


def _is_on(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in _TRUE | _FALSE:
        raise UserError(f"{name}: must be true or false, not {os.environ[name]!r}")
    return value in _TRUE


def _number(*names: str) -> int | None:
    """Return the first of these variables that is set to a whole number."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), None)


def _check_accelerate(what: str) -> None:
    """Refuse ``accelerate launch`` of several processes that has started one, as it does without GPUs."""
    # For several processes it sets MASTER_ADDR, but leaves it to MPI to start them.
    is_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(os.environ)
    if is_accelerate and not {"WORLD_SIZE", "RANK"} & set(os.environ):
        raise UserError(
            "accelerate launch: was told to start several processes (it has set MASTER_ADDR), but starts one "
            f"where it finds no several GPUs; {what}. Start `pugdft finetune RECIPE --num-processes N` or "
            "`torchrun --nproc-per-node N -m pugdft finetune RECIPE`; for one process, `accelerate launch "
            "--num_processes 1`, or unset MASTER_ADDR"
        )


class _Tasks(NamedTuple):
    """Copies of a command that a scheduler has started."""

    name: str
    size: int
    rank: int
    which: str  # the variables that say so, with their values
    names: str  # of these variables

    @property
    def counted(self) -> str:
        return f"{self.size} tasks" if self.size > 1 else "several tasks"


def _several_tasks(together: int) -> _Tasks | None:
    """The tasks of a scheduler that are more than the ``together`` processes that know of each other."""
    for name, sizes, ranks in _SCHEDULERS:
        size, rank = _number(*sizes) or 1, _number(*ranks)
        if name == "srun" and (rank is None or _is_batch_script()):
            continue
        if max(size, (rank or 0) + 1) > together:
            variables = [each for each in (*sizes, *ranks) if each in os.environ]
            which = ", ".join(f"{each}={os.environ[each]}" for each in variables)
            return _Tasks(name, size, rank or 0, which, " and ".join(variables))
    return None


def _check_schedulers(world: int) -> None:
    """Refuse copies of a run: a scheduler has started several that no launcher has told of each other."""
    # torchrun counts its own copies, one a node; each has processes of its own.
    together = _number("GROUP_WORLD_SIZE") or world
    if world > 1 and "GROUP_WORLD_SIZE" not in os.environ:
        return
    if tasks := _several_tasks(together):
        raise UserError(
            f"{tasks.which}: {tasks.name} has started {tasks.counted}, which would be as many runs for one "
            f"folder. Either start one task ({tasks.name} -n 1) of `pugdft finetune RECIPE --num-processes "
            f"N`, or a torchrun on each node: `{tasks.name} … torchrun --nnodes NODES --nproc-per-node N "
            "--rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 -m pugdft finetune RECIPE`. If each task "
            f"is a run with a folder of its own, unset {tasks.names}"
        )


def check_first_task(what: str) -> None:
    """Refuse a scheduler's further tasks of a command whose work the first task does."""
    if (tasks := _several_tasks(1)) and tasks.rank > 0:
        raise UserError(
            f"{tasks.which}: {tasks.name} has started {tasks.counted} of `{what}`, and the first does the "
            f"work. Start one ({tasks.name} -n 1); if each has work of its own, unset {tasks.names}"
        )


def shared_by_tasks() -> str:
    """What to say where a scheduler has started a command several times whose copies share the work."""
    tasks = _several_tasks(1)
    if tasks is None or tasks.rank > 0:
        return ""
    return f"{tasks.which}: {tasks.name} has started {tasks.counted}: they share the runs of this folder"


def _is_batch_script() -> bool:
    """Whether this is a job's script itself, which sbatch starts once whatever the number of tasks."""
    steps = {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"}
    is_batch = os.environ.get("ENVIRONMENT") == "BATCH" and os.environ.get("SLURM_PROCID") == "0"
    return is_batch and not steps & set(os.environ)


def _check_meeting_point() -> None:
    """Refuse a MASTER_ADDR that means this machine on one where the first process is not."""
    rank, local_rank, group = _number("RANK"), _number("LOCAL_RANK"), _number("GROUP_RANK")
    is_elsewhere = group != 0 and local_rank is not None and rank != local_rank
    if not is_elsewhere and not group:
        return
    address = os.environ["MASTER_ADDR"]
    if not _is_loopback(address) or _is_first_here(address):
        return
    raise UserError(
        f"MASTER_ADDR: {address} means this machine itself, {socket.gethostname()}, but the first process "
        "is on another one, so this one would wait for itself. Start torchrun on the first node with "
        "--local-addr ADDRESS, or on all nodes with --master-addr ADDRESS, by which they reach the first node"
    )


def _is_loopback(address: str) -> bool:
    with suppress(OSError, UnicodeError):
        found = [str(each[4][0]) for each in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)]
        return all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in found)
    return False


def _is_first_here(address: str) -> bool:
    """Whether the first process's store is listening here: two nodes may be tried out on one machine."""
    with suppress(OSError, ValueError, OverflowError):
        socket.create_connection((address, int(os.environ["MASTER_PORT"])), timeout=5).close()
        return True
    return False
