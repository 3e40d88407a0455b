"""Damaged files in every format that pugdft reads: each must be read, or refused as a user's mistake.

    python benchmarks/fuzz.py --seconds 300 --seed 1
    python benchmarks/fuzz.py --only parquet --seconds 60 --keep failures

Good files are changed at random in their bytes and numbers, and given to the functions that read them.
Anything that is neither a result nor a refusal in words is printed with its place, and the input is kept.
Parquet is read by C++ that may end the process: with ``--keep`` the input at work lies in that folder.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz_targets import TARGETS, Target

_TEXT = re.compile(rb"[-+]?\d[\d.eE+-]*")
_VALUES = [
    *(b"0", b"-1", b"1e308", b".nan", b"-.inf", b"true", b"null", b"''", b"[]", b"{}", b"[[1]]", b"{a: 1}"),
    *(b"1" + b"0" * 99, b"9" * 400, b"0x" + b"f" * 5000, b"x" * 5000, b"2026-01-01", b"word", b"=1+1"),
    *(b"<script>", b"../../x", b"!!python/name:os.system", b"*a", b"&a x", b'"\\e[31m"', "\u202e".encode()),
]
_BYTES = [0, 1, 9, 10, 13, 27, 34, 39, 45, 58, 91, 123, 127, 128, 254, 255]


@dataclass
class Report:
    """What came of the inputs of one target."""

    tried: int = 0
    read: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, bytes] = field(default_factory=dict)


def mutated(seed: bytes, others: Sequence[bytes], draw: Random) -> bytes:
    """A good file with one to a few things changed."""
    data = bytearray(seed)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        draw.choice(_CHANGES)(data, others, draw)
    return bytes(data)


def _flip(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _overwrite(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    if data:
        start = draw.randrange(len(data))
        for place in range(start, min(len(data), start + draw.choice((1, 1, 2, 4, 8, 64)))):
            data[place] = draw.choice(_BYTES)


def _number(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    """In text, another number or a value of another kind; in a header, another size."""
    if found := list(_TEXT.finditer(bytes(data[:200_000]))):
        place = draw.choice(found)
        data[place.start() : place.end()] = draw.choice(_VALUES)


def _value(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    """In text, what stands after a colon."""
    if found := list(re.finditer(rb": ([^\n]*)", bytes(data[:200_000]))):
        place = draw.choice(found)
        data[place.start(1) : place.end(1)] = draw.choice(_VALUES)


def _cut(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _remove(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    start = draw.randrange(len(data) + 1)
    del data[start : start + draw.choice((1, 2, 16, 200))]


def _repeat(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    start = draw.randrange(len(data) + 1)
    data[start:start] = data[start : start + draw.choice((1, 8, 100))] * draw.choice((1, 2, 50))


def _line(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    """A line left out, repeated, moved or indented."""
    lines = bytes(data).split(b"\n")
    line = lines.pop(draw.randrange(len(lines)))
    for changed in draw.choice(([], [line, line], [line], [b"  " + line], [line.lstrip()])):
        lines.insert(draw.randrange(len(lines) + 1), changed)
    data[:] = b"\n".join(lines)


def _splice(data: bytearray, others: Sequence[bytes], draw: Random) -> None:
    """A part of another good file."""
    other = draw.choice(others)
    start = draw.randrange(len(other) + 1)
    at = draw.randrange(len(data) + 1)
    data[at : at + 40] = other[start : start + 40]


_CHANGES: Sequence[Callable[[bytearray, Sequence[bytes], Random], None]] = (
    _flip, _overwrite, _overwrite, _number, _number, _value, _value, _cut, _remove, _repeat, _line, _splice,
)  # fmt: skip


def inputs(target: Target, draw: Random) -> Iterator[bytes]:
    """The good files themselves, then changed ones without end."""
    yield from target.seeds
    while True:
        yield mutated(draw.choice(target.seeds), target.seeds, draw)


def fuzz(
    targets: Sequence[Target],
    seed: int,
    folder: Path,
    seconds: float = 0.0,
    count: int = 0,
    keep: Path | None = None,
) -> dict[str, Report]:
    """Try inputs of every target in turn, for so many seconds or so many times.

    Args:
        folder: for the files that are read.
        keep: where the input at work is kept, for readers that may end the process.

    Returns:
        By target, what came of it.
    """
    reports = {target.name: Report() for target in targets}
    streams = {target.name: inputs(target, Random(f"{seed} {target.name}")) for target in targets}
    end = time.monotonic() + seconds
    while (count and reports[targets[-1].name].tried < count) or time.monotonic() < end:
        for target in targets:
            report, data = reports[target.name], next(streams[target.name])
            if keep is not None:
                (keep / f"{target.name}.at-work").write_bytes(data)
            report.tried += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    report.read += bool(target.read(data, folder))
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                own = next((each for each in reversed(frames) if "/pugdft/" in each.filename), frames[-1])
                place = f"{Path(own.filename).name}:{own.lineno} {own.name}: {type(error).__name__}: {error}"[
                    :200
                ]
                report.failures[place] += 1
                report.inputs.setdefault(place, data)
    return reports


def _main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[target.name for target in TARGETS], action="append")
    parser.add_argument("--keep", type=Path, help="folder for inputs that fail")
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    targets = [target for target in TARGETS if given.only is None or target.name in given.only]
    with tempfile.TemporaryDirectory() as folder:
        reports = fuzz(targets, given.seed, Path(folder), given.seconds, keep=given.keep)
    print(f"{'format':<12}{'inputs':>9}{'read':>9}{'refused':>9}{'failures':>10}")
    for name, report in reports.items():
        failed = report.failures.total()
        refused = report.tried - report.read - failed
        print(f"{name:<12}{report.tried:>9,}{report.read:>9,}{refused:>9,}{failed:>10,}")
        for number, (place, times) in enumerate(report.failures.most_common()):
            print(f"    {times} × {place}")
            if given.keep:
                (given.keep / f"{name}-{number}").write_bytes(report.inputs[place])
    tried = sum(report.tried for report in reports.values())
    failed = sum(report.failures.total() for report in reports.values())
    print(f"{'all':<12}{tried:>9,}{'':>18}{failed:>10,}   seed {given.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(_main())
