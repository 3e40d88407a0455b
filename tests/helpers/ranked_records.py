"""Groups of records to rank, with predictions or without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run_records import loaded, record, stored

from pugdft.leaderboard import Entry, Group, Loaded, build_leaderboard
from pugdft.leaderboard.stats import (
    LEVEL,
    EntryScores,
    Scores,
    better_and_worse,
    compare_all,
    holm_adjusted,
    rank_ranges,
)
from pugdft.records import RunRecord

NAN = math.nan


def one_group(*runs: Any, **options: Any) -> Group:
    groups = build_leaderboard(loaded(*runs), **options)
    assert len(groups) == 1
    return groups[0]


def entry_of(group: Group, label: str) -> Entry:
    return next(entry for entry in group.entries if entry.label == label)


def seeds(optimizer: dict[str, Any], *top1s: float, **changes: Any) -> list[RunRecord]:
    return [record(optimizer, seed, top1, **changes) for seed, top1 in enumerate(top1s)]


def networks(seed: int, num_seeds: int = 3, num_images: int = 300, gain: float = 0.0) -> np.ndarray:
    """Which images each seed's network gets right; one optimizer's networks are alike, and so are all."""
    shared = np.random.default_rng(99).normal(1.0, 1.0, num_images)
    own = np.random.default_rng(seed)
    return own.normal(size=(num_seeds, num_images)) < shared + own.normal(gain, 0.4, num_images)


def stored_seeds(folder: Path, optimizer: dict[str, Any], images: np.ndarray, **changes: Any) -> list[Loaded]:
    return [stored(folder, row, optimizer, seed, **changes) for seed, row in enumerate(images)]


def history(passes: float, *top1s: float | None, seconds: float = 10.0) -> list[dict[str, Any]]:
    return [
        {"epoch": n, "gradient_passes": passes * n, "train_seconds": seconds * n, "train_loss": 1 / n}
        | ({} if top1 is None else {"test_top1": top1})
        for n, top1 in enumerate(top1s, 1)
    ]


def all_ranks(
    entries: Sequence[EntryScores | Scores], num_images: int | None = None
) -> list[tuple[int, int]]:
    """The best and worst rank of each entry, as the leaderboard finds them."""
    pairs = compare_all([e if isinstance(e, EntryScores) else EntryScores(e) for e in entries], num_images)
    separated = holm_adjusted(pairs.p_value) <= LEVEL
    better, worse = better_and_worse(pairs.difference, len(entries), higher_is_better=True)
    return rank_ranges(better[separated], worse[separated], len(entries))
