"""How options are searched: one after another over grids, or all together in one space. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SAMPLERS = ("tpe", "random")


@dataclass(frozen=True)
class Range:
    """Between two numbers; ``log``: evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As in a file."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Dimension:
    """Where one option is looked for.

    Attributes:
        option: ``rho`` of a method, ``base.lr`` of its base.
        where: a list of points, or a range.
        times: the points or bounds multiply what an optimizer would run with untuned.
        alone: in a greedy search: with the base optimizer alone.
    """

    option: str
    where: tuple[Any, ...] | Range
    times: bool = False
    alone: bool = False

    def as_dict(self) -> Any:
        """As in a space."""
        where = self.where.as_dict() if isinstance(self.where, Range) else list(self.where)
        return {"times": where} if self.times else where


@dataclass(frozen=True)
class GreedySearch:
    """One option after another.

    Attributes:
        title: how tables and records call it.
        stages: in this order.
        equalize: shorter searches get finer grids until all optimizers have the same number of trials.
    """

    title: str
    stages: tuple[Dimension, ...]
    equalize: bool = True

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Every option that is searched."""
        return self.stages

    def as_dict(self) -> dict[str, Any]:
        """What was read, with every default."""
        stages = [
            {
                "option": stage.option,
                "times" if stage.times else "values": list(stage.where),  # type: ignore[arg-type]
                "with": "base" if stage.alone else "method",
            }
            for stage in self.stages
        ]
        return {"search": "greedy", "equalize": self.equalize, "stages": stages}


@dataclass(frozen=True)
class GeneralSearch:
    """All options together, by Optuna.

    Attributes:
        title: how tables and records call it.
        space: the options.
        sampler: ``tpe`` or ``random``.
        trials: of each optimizer.
        seed: of the sampler.
    """

    title: str
    space: tuple[Dimension, ...]
    sampler: str = "tpe"
    trials: int = 30
    seed: int = 0

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Every option that is searched."""
        return self.space

    def as_dict(self) -> dict[str, Any]:
        """What was read, with every default."""
        space = {dimension.option: dimension.as_dict() for dimension in self.space}
        return {
            "search": "general",
            "sampler": self.sampler,
            "trials": self.trials,
            "seed": self.seed,
            "space": space,
        }


Search = GreedySearch | GeneralSearch
