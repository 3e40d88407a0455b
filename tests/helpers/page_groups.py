"""Groups of entries for the HTML page, harmless and hostile ones."""

from __future__ import annotations

import math
from typing import Any

from pugdft.leaderboard.entry import CurvePoint, Entry, Group, PublishedSource, Summary, TuningBudget, Versus

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}<svg/onload=alert(1)>",
    "-->]]></style></title><b>",
    "\u202egpj.exe\u2066\x1b[31m\x00\ud800\u2028",
    "x" * 10_000,
]


def entry(label: str, mean: float | None = 0.9, **changes: Any) -> Entry:
    """An optimizer with three seeds."""
    values: dict[str, Any] = {
        "spec": {"name": "sam", "rho": 0.05},
        "num_seeds": 3,
        "gradient_passes": 78_200.0,
    }
    if mean is not None:
        scores = {seed: mean + 0.001 * (seed - 1) for seed in range(3)}
        curve = [CurvePoint(i, 782.0 * i, 60.0 * i, 1 / i, mean - 0.3 / i**2) for i in range(1, 21)]
        values |= {
            "summaries": {"top1": Summary(mean, 0.001, (mean - 0.0025, mean + 0.0025))},
            "scores": scores,
            "records": tuple(f"{label}-s{seed}" for seed in scores),
            "gradient_passes": 78_200.0,
            "train_seconds": 1200.0,
            "curve": tuple(curve),
        }
    return Entry(**{"label": label, "status": "measured", **values, **changes})


def reported(label: str, **source: Any) -> Entry:
    facts = {"title": "A paper", "arxiv": "2110.00199", "year": 2021, "table": "II", "protocol": "200 epochs"}
    printed = PublishedSource(**{**facts, "caveat": None, **source})
    return Entry(label, "reported", {}, summaries={"top1": Summary(0.95)}, source=printed)


def group(*entries: Entry, dataset: str = "cifar10", model: str = "vit", **changes: Any) -> Group:
    return Group(dataset, model, "224 px, 20 epochs", {}, entries, **changes)


def board() -> list[Group]:
    first = group(
        entry("pugd", 0.94, rank_low=1, rank_high=2, peak_memory_bytes=8.0 * 2**30, best_test_top1=0.942),
        entry(
            "sam[rho=0.1]",
            0.936,
            rank_low=1,
            rank_high=2,
            versus_best=Versus(-0.004, 0.21, False, 7),
            tuning=TuningBudget(12, 1e6),
        ),
        entry(
            "sgd",
            0.91,
            rank_low=3,
            rank_high=3,
            gradient_passes=9_000.0,
            train_seconds=600.0,
            peak_memory_bytes=11.0 * 2**30,
        ),
        entry("lion", None, num_seeds=0, unfinished={"diverged": 3}, notes=("seed 1 ran twice",)),
        reported("pugd", caveat="best epoch on the test split"),
        notes=("training times come from two kinds of device",),
    )
    second = group(
        entry("sgd", 0.8, rank_low=1, rank_high=1),
        entry("asam", 0.7, rank_low=2, rank_high=2),
        dataset="cifar100",
        model="resnet18",
    )
    return [first, second]


def hostile_board() -> list[Group]:
    entries = [
        entry(
            text,
            0.9,
            rank_low=1,
            rank_high=9,
            spec={"name": text, text: [text, math.nan]},
            records=(text,),
            unfinished={text: 1},
            unfinished_records=(text,),
            notes=(text,),
        )
        for text in HOSTILE
    ]
    printed = [
        reported(text, title=text, arxiv=text, table=text, protocol=text, caveat=text) for text in HOSTILE
    ]
    return [
        Group(text, text, text, {}, (*entries, *printed) if text == HOSTILE[0] else (entries[0],), (text,))
        for text in HOSTILE
    ]
