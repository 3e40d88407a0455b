"""The whole report, part by part, in an order that does not change."""

from __future__ import annotations

from pathlib import Path

from pugdft.doctor.apart import run_apart
from pugdft.doctor.caches import cache_lines
from pugdft.doctor.devices import accelerator_lines, library_lines, memory_lines, processor_lines
from pugdft.doctor.folders import folder_lines
from pugdft.doctor.needs import recipe_section
from pugdft.doctor.report import Section, section
from pugdft.doctor.variables import variable_lines
from pugdft.doctor.versions import own_lines, package_lines, system_lines

_SECONDS = 180.0


def examine(
    recipe: str | None = None,
    overrides: list[str] | None = None,
    output: Path | None = None,
    *,
    deep: bool = False,
    clean: bool = False,
) -> list[Section]:
    """Look at everything; changes nothing but what ``clean`` removes.

    Args:
        recipe: also look at what this recipe needs.
        overrides: ``KEY=VALUE`` texts.
        output: the run's folder, by default ``runs/ID``.
        deep: read every pixel of the cache.
        clean: remove what killed preparations left.

    Raises:
        UserError: the recipe is not valid.
    """
    # First, because a mistake in what was given should not have to wait.
    of_recipe = [recipe_section(recipe, overrides or [], output)] if recipe is not None else []
    facts = run_apart("pugdft.doctor.probe", [], _SECONDS)
    return [
        section(
            "Software",
            ("pugdft", own_lines),
            ("packages", lambda: package_lines(facts)),
            ("system", system_lines),
        ),
        section(
            "Devices",
            ("CPU", lambda: processor_lines(facts)),
            ("RAM", memory_lines),
            ("GPU", lambda: accelerator_lines(facts)),
            ("torch uses", lambda: library_lines(facts)),
        ),
        section("Environment variables", ("variables", variable_lines)),
        section("Folders", ("folders", folder_lines)),
        section("Cache", ("stores", lambda: cache_lines(deep, clean))),
        *of_recipe,
    ]
