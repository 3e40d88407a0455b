"""A bad input, the command that meets it, and what every refusal has in common."""

from __future__ import annotations

import hashlib
import re
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

from PIL import Image

# What may stand before the message: what is being done, and files that a table could do without.
_PROGRESS = re.compile(
    r"preparing |device |data: |left out: |train.precision: bf16 is emulated |\d+ records? left out|"
    r"\d+ good, \d+ with problems|"
    r"the recipe holds no images|images: no test image of |"
    r"runs: no record\.yaml below it|runs/\w+/record\.yaml: "
)
_MESSAGE = re.compile(r"(?:pugdft|Error): ")
_PYTHON = re.compile(r"Traceback|Error: Error|object at 0x|\b\w+\.py[:\"]|Warning:|RecursionError|ValueError")


def nothing(folder: Path) -> None:
    """For a case whose fault is in its words."""


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: what is bad.
        command: the words after ``pugdft``; run in the folder of ``build``.
        said: what the message must hold: the place, and what is wrong there.
        build: makes the files in the folder that the command runs in.
        code: the exit code.
        lines: of the message; more than one only where several faults are listed or a remedy follows.
        longest: characters of a line, more only where the command's words are echoed.
        on_stdout: the words are a result, as of ``leaderboard check``.
    """

    name: str
    command: tuple[str, ...]
    said: tuple[str, ...]
    build: Callable[[Path], object] = nothing
    code: int = 2
    lines: int = 1
    longest: int = 1200
    on_stdout: bool = False

    def __post_init__(self) -> None:
        assert isinstance(self.said, tuple), self.name


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def call(arguments: Sequence[str]) -> Done:
    """The command in this process, as the interpreter would end it: with a traceback if need be."""
    from pugdft.cli.main import main

    out, err = (
        TextIOWrapper(BytesIO(), "utf-8", errors, newline="") for errors in ("strict", "backslashreplace")
    )
    before = sys.argv
    sys.argv = ["pugdft", *arguments]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err), _warnings_shown():
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        err.write(traceback.format_exc(limit=-4))
        code = 1
    finally:
        sys.argv = before
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Done(code, *texts)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Those that the interpreter shows, on stderr: pytest would keep them to itself."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for kind in (
            DeprecationWarning,
            PendingDeprecationWarning,
            ImportWarning,
            ResourceWarning,
            FutureWarning,
            Image.DecompressionBombWarning,
        ):
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = lambda message, category, file, line, *rest: print(
            warnings.formatwarning(message, category, file, line), file=sys.stderr
        )
        yield


def problems(case: Case, done: Done) -> list[str]:
    """What is wrong with how a bad input was refused."""
    found = []
    if done.code != case.code:
        found.append(f"exit code {done.code}, expected {case.code}")
    for name, text in (("stdout", done.out), ("stderr", done.err)):
        found += [
            f"{name} has what is not printable: {line!r}" for line in _lines(text) if not line.isprintable()
        ]
        if word := _PYTHON.search(text):
            found.append(f"{name} speaks of Python's matters: {word[0]}")
    message = done.out if case.on_stdout else _message(done.err, case, found)
    found += [f"nothing is said of {part!r}" for part in case.said if part not in message]
    if not case.on_stdout and done.out:
        found.append(f"stdout has {done.out[:80]!r}")
    return found


def _message(text: str, case: Case, found: list[str]) -> str:
    """The message without what came before it."""
    lines = _lines(text)
    starts = [number for number, line in enumerate(lines) if _MESSAGE.match(line)]
    if len(starts) != 1:
        found.append(f"{len(starts)} messages")
        return text
    before = lines[: starts[0]]
    is_usage = bool(before) and before[0].startswith("Usage: pugdft")
    if not is_usage and (strange := [line for line in before if not _PROGRESS.match(line)]):
        found.append(f"before the message stands {strange[0]!r}")
    if len(lines) - starts[0] > case.lines:
        found.append(f"a message of {len(lines) - starts[0]} lines, expected {case.lines}")
    if max(map(len, lines)) > case.longest:
        found.append(f"a line of {max(map(len, lines))} characters")
    return text


def _lines(text: str) -> list[str]:
    """Without the last line's end; other ends of lines than ``\\n`` are not printable."""
    return text.removesuffix("\n").split("\n") if text else []


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder, with its content."""
    return {path.relative_to(folder).as_posix(): _fingerprint(path) for path in folder.rglob("*")}


def _fingerprint(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    content = ""
    if stat.S_ISREG(status.st_mode) and status.st_size < 2**20:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    is_folder = stat.S_ISDIR(status.st_mode)  # whose size and time of change tell nothing more
    return (
        stat.S_IFMT(status.st_mode),
        *(() if is_folder else (status.st_size, status.st_mtime_ns, content)),
    )
