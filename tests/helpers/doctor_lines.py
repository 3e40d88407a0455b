"""Lines of a doctor's report."""

from __future__ import annotations

from typing import Any

from pugdft.doctor.report import Line


def named(lines: Any, name: str) -> Line:
    return next(line for line in lines if line.name == name)
