"""Lines with a verdict and a remedy, as text to paste into a bug report or as JSON."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pugdft.errors import counted

SCHEMA = "pugdft.doctor/1"
State = Literal["ok", "note", "problem"]

_STYLES: dict[str, str] = {"ok": "32", "note": "33", "problem": "1;31"}
_NAME_WIDTH = 14
_URL_ACCOUNT = re.compile(r"(?<=://)[^/@\s]+@")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        state: ``note`` is worth knowing; ``problem`` stops a run, or makes it wrong or very slow.
        name: one or two words.
        text: what was found.
        remedy: what to do; every problem has one.
    """

    state: State
    name: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Section:
    """Lines under one title."""

    title: str
    lines: tuple[Line, ...]


Part = tuple[str, Callable[[], Iterable[Line]]]
"""A name, and what finds its lines; whatever it raises becomes a line of that name."""


def section(title: str, *parts: Part) -> Section:
    """The lines of every part; one that fails is a line, and the others are still heard."""
    lines: list[Line] = []
    for name, look in parts:
        try:
            for line in look():
                lines.append(line)
        except Exception as error:
            lines.append(failed(name, error))
    return Section(title, tuple(lines))


def failed(name: str, error: BaseException) -> Line:
    """The line of something that could not be looked at."""
    return Line("problem", name, f"could not be looked at: {reason(error)}", "see the reason; it may be ours")


def reason(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def within(seconds: float, look: Callable[[], list[Line]], name: str) -> list[Line]:
    """What ``look`` returns, unless it takes longer: a network drive whose server is gone never answers."""
    found: list[list[Line]] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(look())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)  # one that hangs does not keep the process
    thread.start()
    thread.join(seconds)
    if errors:
        return [failed(name, errors[0])]
    if not found:
        text = f"no answer in {seconds:g} s"
        return [Line("problem", name, text, "see whether the drive it lies on is still connected")]
    return found[0]


def num_problems(sections: Sequence[Section]) -> int:
    """Lines that are problems."""
    return sum(line.state == "problem" for each in sections for line in each.lines)


def as_text(sections: Sequence[Section], colour: bool = False) -> str:
    """A line for each thing, its remedy below it, the sum at the end."""
    rows: list[str] = []
    for each in sections:
        rows.append(shown(each.title))
        for line in each.lines:
            state = f"{line.state:<7}"
            if colour:
                state = f"\x1b[{_STYLES[line.state]}m{state}\x1b[0m"
            rows.append(f"  {state}  {shown(line.name):<{_NAME_WIDTH}} {shown(line.text)}")
            if line.remedy:
                rows.append(f"{'':{11 + _NAME_WIDTH}} remedy: {shown(line.remedy)}")
        rows.append("")
    notes = sum(line.state == "note" for each in sections for line in each.lines)
    problems = num_problems(sections)
    rows.append(f"{counted(problems, 'problem') if problems else 'no problem'}, {counted(notes, 'note')}")
    return "\n".join(rows)


def as_json(sections: Sequence[Section]) -> str:
    """The same for programs."""
    shown_sections = [
        {
            "title": shown(each.title),
            "lines": [{key: shown(value) for key, value in asdict(line).items()} for line in each.lines],
        }
        for each in sections
    ]
    whole = {"schema": SCHEMA, "problems": num_problems(sections), "sections": shown_sections}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def shown(text: str) -> str:
    """Text fit to be published: the home folder as ``~``, no account in an address, nothing invisible.

    Control characters, bidirectional overrides and lone surrogates, which a file's name may have, are written
    as escapes.
    """
    for home in _homes():
        text = re.sub(rf"{re.escape(home)}(?=[/\s,;:)'\"]|$)", "~", text)
    text = _URL_ACCOUNT.sub("***@", text)
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def _homes() -> list[str]:
    try:
        home = Path.home()
        found = {str(home), str(home.resolve())}
    except (OSError, RuntimeError):
        return []
    return sorted((each for each in found if len(each) > 1), key=len, reverse=True)


def size(num_bytes: float) -> str:
    """``1.2 GiB``."""
    unit = 0
    while num_bytes >= 1000 and unit + 1 < len(_UNITS):
        num_bytes, unit = num_bytes / 1024, unit + 1
    return (
        f"{num_bytes:.0f} {_UNITS[unit]}"
        if not unit or num_bytes >= 10
        else f"{num_bytes:.1f} {_UNITS[unit]}"
    )
