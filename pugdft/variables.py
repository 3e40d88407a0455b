"""Environment variables that decide how processes meet, looked at before anything goes by them."""

from __future__ import annotations

import os

from pugdft.errors import UserError

_COUNTS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
"""What a launcher sets, and the least of each."""
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_TRUE, _FALSE = {"1", "true", "yes", "on", "y", "t"}, {"", "0", "false", "no", "off", "n", "f"}
# Each would change what is trained behind the recipe's back.
_PLUGINS = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)


def check_variables() -> None:
    """See that the variables of launchers and of Accelerate can be followed.

    Raises:
        UserError: a number is none, some are missing, or one asks for what no recipe says.
    """
    for name, least in _COUNTS.items():
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise UserError(
                f"{name}: must be a whole number of at least {least}, not {value!r}. Launchers set it "
                "(torchrun, accelerate launch, --num-processes); without one, unset it"
            )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in _NEEDED if name not in os.environ]
    if world > 1 and missing:
        raise UserError(
            f"WORLD_SIZE: {world} says that this is one of several processes, but {', '.join(missing)} "
            "is not set. Start them with --num-processes, torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    if world > 1 and int(os.environ["RANK"]) >= world:
        raise UserError(f"RANK: {os.environ['RANK']} is no number of {world} processes, which begin at 0")
    for name in _PLUGINS:
        if _is_on(name):
            raise UserError(f"{name}: is not supported; unset it (Accelerate's config may have set it)")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND: {backend} would compile unrecorded; unset it and set "
            "train.performance.compile=true"
        )


def must_use_cpu() -> bool:
    """Whether Accelerate is told to leave accelerators alone.

    Raises:
        UserError: the variable says neither yes nor no.
    """
    return _is_on("ACCELERATE_USE_CPU")


def _is_on(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in _TRUE | _FALSE:
        raise UserError(f"{name}: must be true or false, not {os.environ[name]!r}")
    return value in _TRUE
