"""``pugdft leaderboard`` and ``pugdft leaderboard check``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pugdft.cli.help import finish
from pugdft.cli.output import given_path, write_result
from pugdft.errors import UserError, counted, refuse, undriven

if TYPE_CHECKING:
    from rich.console import Console

    from pugdft.leaderboard import Group, Loaded

_CHECK = "check"
GATE_DID_NOT_HOLD = 3  # an exit code

LeaderboardFormat = StrEnum("LeaderboardFormat", ["TABLE", "JSON", "CSV", "MARKDOWN", "LATEX", "HTML"])
# The keys of `METRICS`, written again so that `--help` needs no import of numpy.
RankedBy = StrEnum("RankedBy", ["TOP1", "TOP5", "LOSS", "ECE", "BALANCED_TOP1"])


class Command(TyperCommand):
    """Rank, unless the first word is ``check``; a group would take every path for a subcommand's name."""

    @property
    def further(self) -> dict[str, Any]:
        """The subcommand, for help and documents."""
        inner = typer.Typer(add_completion=False, rich_markup_mode=None)
        inner.command(_CHECK)(check)
        command = typer.main.get_command(inner)
        finish(command)
        return {_CHECK: command}

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        if args[:1] != [_CHECK]:
            return super().make_context(info_name, args, *rest, **extra)
        return self.further[_CHECK].make_context(f"{info_name} {_CHECK}", args[1:], *rest, **extra)


def show(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Records, or folders searched for them.", show_default="runs"),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.", show_default=False)] = None,
    metric: Annotated[
        RankedBy, typer.Option(help="Rank by this, of the last epoch on the test split.")
    ] = RankedBy.TOP1,
    format_: Annotated[
        LeaderboardFormat, typer.Option("--format", help="Table for people, JSON and CSV for programs.")
    ] = LeaderboardFormat.TABLE,
    output: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="PATH", help="Write to this file.", show_default="stdout"),
    ] = None,
    reported: Annotated[
        bool, typer.Option("--reported", help="Add what papers printed, apart and without ranks.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIMIZER",
            help="Compare every other optimizer with this one alone, which you chose before.",
            show_default=False,
        ),
    ] = None,
    looks: Annotated[
        int, typer.Option(min=1, max=100, help="At the growing records in all: p-values allow for so many.")
    ] = 1,
    full: Annotated[
        bool, typer.Option("--full", help="All columns, the legend, and every table of --reported.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 if a record had to be left out.")
    ] = False,
    across: Annotated[
        bool, typer.Option("--across", help="One verdict over all data sets and models instead.")
    ] = False,
) -> None:
    """Rank the optimizers of finished runs.

    There is a ranking for each data set and model, or with --across one over all of them. `pugdft
    leaderboard check PATH...` validates records instead, such as those that others contribute.

    Examples:
      pugdft leaderboard runs --dataset cifar10
      pugdft leaderboard runs --across --format html --output board.html
    """
    others = {
        "--reported": reported,
        "--baseline": baseline is not None,
        "--looks": looks != 1,
        "--full": full,
    }
    if across and any(others.values()):
        given = ", ".join(name for name, is_given in others.items() if is_given)
        raise UserError(f"--across: compares all optimizers over all tasks, once: leave out {given}")
    from pugdft.leaderboard import Collected, collect
    from pugdft.leaderboard.load import without_garbage_collection
    from pugdft.leaderboard.ranking import CONTRADICTED, COPIED

    with without_garbage_collection():
        places = paths or [Path("runs")]
        # Reported rows need no run, so the default folder may be missing.
        is_needed = bool(paths) or not reported or places[0].exists()
        collected = collect(places) if is_needed else Collected([], (), ())
        left_out = [f"{counted(len(collected.left_out), 'record')} left out"] if collected.left_out else []
        for message in (*collected.left_out, *collected.notes, *left_out):
            print(message, file=sys.stderr)
        if not collected.records and not reported:
            where = ", ".join(map(str, places))
            raise UserError(f"no run record in {where}; `pugdft finetune` and `pugdft bench` write them")
        if across:
            _show_across(collected.records, dataset, model, metric.value, format_, output)
            if strict and collected.left_out:
                raise typer.Exit(1)
            return
        design = {"metric": metric.value, "baseline": baseline, "looks": looks}
        groups = _groups(collected.records, dataset, model, reported, full, design)
        if not groups and not reported:
            trials = counted(len(collected.records), "record")
            raise UserError(f"nothing to rank: {trials} of a search, judged on held-out images alone")
        write_result(_text(groups, format_, output, full), output)
        gc.freeze()  # the process ends: nobody searches ten thousand records for cycles
        set_aside = any(
            {CONTRADICTED, COPIED} & entry.unfinished.keys() for group in groups for entry in group.entries
        )
        if strict and (collected.left_out or set_aside):
            raise typer.Exit(1)


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Records, or folders searched for them.", show_default=False),
    ],
) -> None:
    """Validate records.

    They must have the required facts, right hashes, and numbers that are possible and agree with the
    predictions.

    A line for each record, or one for each thing wrong with it; exit code 3 if there is any.

    Examples:
      pugdft leaderboard check runs
      pugdft leaderboard check theirs/record.yaml
    """
    from pugdft.leaderboard.validate import check_records

    checked = check_records(paths, lambda note: print(undriven(note), file=sys.stderr))
    for each in checked:
        for line in each.lines():
            typer.echo(line)
    num_bad = sum(bool(each.faults) for each in checked)
    print(f"{len(checked) - num_bad} good, {num_bad} with problems", file=sys.stderr)
    if num_bad:
        raise typer.Exit(GATE_DID_NOT_HOLD)


def _groups(
    records: Sequence[Loaded],
    dataset: str | None,
    model: str | None,
    reported: bool,
    full: bool,
    design: Mapping[str, Any],
) -> list[Group]:
    """Rank the records and add what papers printed; a filter that matches either matches.

    Without a filter, papers' tables are shown where something was measured, or with ``full``.
    """
    from pugdft.leaderboard import build_leaderboard

    if not reported:
        return build_leaderboard(records, dataset, model, **design)
    from pugdft.leaderboard.grouping import NothingMatches
    from pugdft.leaderboard.published import reported_folder, reported_rows, select_rows, with_reported

    groups: list[Group] = []
    unmatched = ""
    try:
        groups = build_leaderboard(records, dataset, model, **design) if records else []
    except NothingMatches as error:
        unmatched = f"{error}\n"
    with refuse(UserError, lambda error: f"{unmatched}{error}"):
        joined = with_reported(groups, select_rows(reported_rows(reported_folder()), groups, dataset, model))
    if not groups or full or dataset or model:
        return joined
    shown = [group for group in joined if group.measured]
    if left := len(joined) - len(shown):
        print(f"{counted(left, 'table')} of papers for what is not measured here: --full", file=sys.stderr)
    return shown


def _show_across(
    records: Sequence[Loaded],
    dataset: str | None,
    model: str | None,
    metric: str,
    format_: LeaderboardFormat,
    output: Path | None,
) -> None:
    """Write the verdict over all tasks."""
    from pugdft.leaderboard.across import build_across, formats

    verdict = build_across(records, dataset, model, metric)
    if format_ is LeaderboardFormat.HTML:
        from pugdft.leaderboard.across.page import across_html

        write_result(across_html(verdict), output)
    elif format_ is LeaderboardFormat.TABLE:
        write_result(_printed(lambda console: formats.print_across(verdict, console), output), output)
    else:
        write_result(getattr(formats, f"across_{format_.value}")(verdict), output)


def _text(groups: Sequence[Group], format_: LeaderboardFormat, output: Path | None, full: bool) -> str:
    """Write the groups as text, or a table straight to a terminal."""
    from pugdft import leaderboard

    if format_ is LeaderboardFormat.HTML:
        from pugdft.leaderboard.formats.html import as_html

        return as_html(groups)
    if format_ is not LeaderboardFormat.TABLE:
        options = {"full": full} if format_.value in ("markdown", "latex") else {}
        return getattr(leaderboard, f"as_{format_.value}")(groups, **options)
    return _printed(lambda console: leaderboard.print_table(groups, console, full), output)


def _printed(show: Callable[[Console], None], output: Path | None) -> str:
    """Let a table print itself straight to a terminal, or return it as text."""
    from rich.console import Console

    if sys.stdout.isatty() and output is None:
        show(Console(file=sys.stdout, highlight=False))
        return ""
    buffer = StringIO()
    show(Console(file=buffer, width=120, highlight=False))
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))
