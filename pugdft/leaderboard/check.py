"""Records from others, checked before they are believed: ``pugdft leaderboard check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pugdft.errors import Fault, UserError
from pugdft.leaderboard.collect import read_checked, record_files
from pugdft.leaderboard.evidence import examine
from pugdft.leaderboard.plausible import record_faults
from pugdft.leaderboard.printable import printable
from pugdft.record import RunRecord


@dataclass(frozen=True)
class Checked:
    """What is wrong with one file.

    Attributes:
        faults: empty for a good record.
        remarks: what a reader should know all the same.
        record: None if it cannot be read.
        labels_sha256: of the test split's labels, from the predictions.
    """

    path: Path
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...] = ()
    record: RunRecord | None = None
    labels_sha256: str | None = None

    def lines(self) -> list[str]:
        """``FILE: OK``, or ``FILE: where: what`` for each fault; fit for a terminal."""
        if self.faults:
            return [printable(f"{self.path}: {fault}") for fault in self.faults]
        return [printable("; ".join([f"{self.path}: OK", *self.remarks]))]


def check_records(paths: Sequence[Path], note: Callable[[str], None]) -> list[Checked]:
    """Every record below ``paths``, in the order of the search.

    Args:
        paths: record files, or folders searched for ``record.yaml``.
        note: hears of folders without a record.

    Raises:
        UserError: a path does not exist, or there is no record at all.
    """
    problems: list[str] = []
    checked = _compared([_check(file) for file in record_files(paths, problems.append, note)])
    for problem in problems:
        file, _, message = problem.removeprefix("left out: ").rpartition(": ")
        checked.append(Checked(Path(file), (Fault("", message),)))
    if not checked:
        raise UserError(f"no run record in {', '.join(map(str, paths))}")
    return checked


def _check(file: Path) -> Checked:
    try:
        record = read_checked(file)
    except UserError as error:
        return Checked(file, (Fault("", str(error).removeprefix(f"{file}: ")),))
    evidence = examine(record, file.parent)
    faults = [*record_faults(record), *evidence.faults]
    return Checked(file, tuple(faults), tuple(evidence.remarks), record, evidence.labels_sha256)


def _compared(checked: Sequence[Checked]) -> list[Checked]:
    """With the faults that only several records show: one id twice, other labels of the same images."""
    ids: dict[str, Checked] = {}
    splits: dict[str, Checked] = {}
    result = []
    for each in checked:
        faults = []
        if each.record is not None:
            first = ids.setdefault(each.record.id, each)
            if first.record is not None and first.record.to_yaml() != each.record.to_yaml():
                faults.append(Fault("id", f"stands in {first.path} too, with other contents"))
        if each.record is not None and each.record.data is not None and each.labels_sha256:
            first = splits.setdefault(each.record.data.sha256, each)
            if first.labels_sha256 != each.labels_sha256:
                faults.append(
                    Fault("artifacts.predictions", f"other labels than {first.path}, on the same data.sha256")
                )
        result.append(replace(each, faults=(*each.faults, *faults)))
    return result
