"""The ``pugdft`` command. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done; 1 the run failed or diverged, ``doctor`` found a problem, or ``predict`` left out images;
2 usage or recipe error; 3 a check failed; 4 a bench is incomplete; 5 another process runs in the folder;
130 interrupted; 143 terminated.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand

from pugdft import __version__
from pugdft.cli.help import command_line
from pugdft.cli.launch import end_one_of_several, end_with_the_launcher, is_first_here, is_main_process
from pugdft.cli.output import JsonLines, LossyStream, emit, say
from pugdft.errors import RunFailed, UserError, undriven
from pugdft.paths import check_locks
from pugdft.training.launchers import check_alone, check_first_task, shared_by_tasks

# Each command, or group of commands, and where it is in this package, in the order of the help.
_COMMANDS = {
    "finetune": "finetune.command",
    "bench": "bench.command",
    "tune": "tune.command",
    "leaderboard": "leaderboard.show",
    "plot": "plot.command",
    "compare": "compare.command",
    "predict": "predict.command",
    "evaluate": "evaluate.command",
    "report": "report.command",
    "sharpness": "sharpness.command",
    "landscape": "landscape.command",
    "trajectory": "trajectory.command",
    "terrain": "terrain.command",
    "export": "export.command",
    "verify": "verify.verify_command",
    "rerun": "verify.rerun_command",
    "doctor": "doctor.command",
    "recipes": "recipes.app",
    "optimizers": "optimizers.app",
    "data": "data.app",
    "runs": "runs.app",
}


def application(words: Sequence[str] = ()) -> typer.Typer:
    """Return ``pugdft`` with all commands, or with the one that the first word names.

    To import and build the other twenty takes longer than many a command does.
    """
    app = typer.Typer(
        help="Fine-tune pretrained timm backbones with sharpness-aware and unit-gradient optimizers, "
        "and compare them honestly.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in words[:1] if set(words[:1]) & _COMMANDS.keys() else _COMMANDS:
        module_name, _, attribute = _COMMANDS[name].partition(".")
        module = import_module(f"pugdft.cli.{module_name}")
        if isinstance(found := getattr(module, attribute), typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name, cls=getattr(module, "Command", TyperCommand))(found)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pugdft {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
    ),
) -> None:
    if context.invoked_subcommand in ("finetune", "rerun"):
        end_with_the_launcher()
    else:
        check_alone(f"pugdft {context.invoked_subcommand}")
    if context.invoked_subcommand in ("leaderboard", "compare", "verify"):
        check_first_task(f"pugdft {context.invoked_subcommand}")
    if context.invoked_subcommand in ("bench", "tune"):
        check_locks()
        if said := shared_by_tasks():
            say(said)


_INTERRUPTED = 130
_UsageError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def main() -> None:
    """Run the command; a user's mistake is one message and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A name with characters outside the terminal's encoding must not end the command.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    lines = None
    if isinstance(sys.stderr, TextIOWrapper):
        lines = JsonLines(sys.stderr) if "--progress=json" in "=".join(sys.argv) else None
        sys.stderr = lines or LossyStream(sys.stderr)
    try:
        code, message = _run()
    except Exception:
        if lines is None:
            raise
        code, message = 1, traceback.format_exc()
    if lines is not None:
        if message:
            emit("message" if code == _INTERRUPTED else "error", message=message)
        lines.close_with(code, says_end=is_main_process())
    elif message:
        print(f"pugdft: {undriven(message)}", file=sys.stderr)
    end_one_of_several(code)
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Run the command; return its exit code and the message to print, if it failed."""
    try:
        code = command_line(application(sys.argv[1:]))(prog_name="pugdft", standalone_mode=False)
        sys.stdout.flush()
        told = "interrupted" if code == _INTERRUPTED and is_main_process() else ""  # typer ends by Ctrl-C
        return code if isinstance(code, int) else 0, told
    except _UsageError as error:
        usage: Any = error
        usage.message = usage.message.removeprefix("Value error, ")  # pydantic's, which typer leaves there
        _explain_option(usage)
        if isinstance(sys.stderr, JsonLines):
            return usage.exit_code, usage.format_message()
        usage.show()
        return usage.exit_code, ""
    except UserError as error:
        # Every process of a run finds the same mistake; only the first one on a machine prints it.
        return error.exit_code, str(error) if is_first_here() else ""
    except RunFailed as error:
        return 1, str(error)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED, "interrupted"
    except SystemExit as end:
        # typer exits with 1 when the reader of stdout closes it, as `head` does: that is no failure.
        if type(sys.stdout).__name__ != "PacifyFlushWrapper":
            return end.code if isinstance(end.code, int) else int(end.code is not None), ""
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            _drop_output()
            return 1, f"cannot write: {error.strerror}"
        if not isinstance(error, BrokenPipeError):
            raise
    _drop_output()
    return 0, ""


def _explain_option(usage: Any) -> None:
    """Add the recipe's key to the message on an option that does not exist, such as ``--lr``."""
    parameters = usage.ctx.command.params if getattr(usage, "option_name", None) and usage.ctx else ()
    if any("KEY=VALUE" in (each.metavar or "") for each in parameters):
        from pugdft.config.load import recipe_key

        usage.possibilities = [each for each in usage.possibilities or () if each != "--help"]
        if key := recipe_key(usage.option_name, cutoff=1 if usage.possibilities else 0.8):
            usage.message += f". A key of the recipe is given without dashes: {key}=VALUE"


def _drop_output() -> None:
    """Print nothing more on stdout, not even what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
