"""Analyses as plain data, as they are stored: landscapes, ways of runs, and a spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np

AXIS = np.linspace(-1, 1, 9)


def landscape(
    kind: str = "plane", runs: int = 2, more: str = ""
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Bowls, the second ten times as high as the first; ``more`` stands at the end of each run's name."""
    heights = np.array([1.0, 10.0, 3.0])[:runs]
    bowl = 0.01 + AXIS[:, None] ** 2 + 0.5 * AXIS**2
    loss = heights[:, None, None] * bowl
    if kind == "line":
        loss = heights[:, None, None] * (0.01 + np.outer([0.5, 1.0, 2.0], AXIS**2))
    facts = {
        "records": [{"label": f"{name}{more}"} for name in ("sgd", "sam", "pugd")[:runs]],
        "options": {"kind": kind, "normalize": "filter", "along": "random"},
        "sample": {"images": 256, "split": "train"},
        "batch_norm": "reestimate",
    }
    return facts, {"alpha": AXIS, "beta": AXIS, "loss": loss, "top1": loss, "base_loss": heights}


def trajectory(runs: int = 2, more: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    facts, bowl = landscape("plane", runs, more)
    facts |= {"options": {"plane": "pca"}, "explained": 0.97, "random_walk": 0.9}
    way = np.linspace(0.8, 0, 6)
    xy = np.stack([np.stack([way, turn * way**2], 1) for turn in (1.0, -0.7, 0.3)[:runs]])
    residual = np.broadcast_to(np.where(way > 0, 0.3, 0), (runs, 6))
    loss = np.stack([2 * np.exp(-np.arange(6.0) * rate) for rate in (0.8, 0.6, 0.4)[:runs]])
    return facts, {
        "alpha": AXIS, "beta": AXIS, "plane_loss": bowl["loss"][0], "xy": xy, "residual": residual,
        "distance": np.sqrt((xy**2).sum(2) + residual**2), "steps": np.tile(10.0 * np.arange(6), (runs, 1)),
        "true_loss": loss, "projected_loss": 1.5 * loss,
    }  # fmt: skip


def spectrum() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Most eigenvalues near zero, one in a thousand at 5."""
    random = np.random.default_rng(0)
    nodes = np.concatenate([0.05 * random.normal(size=99), [5.0]])
    facts = {"sample": {"images": 256, "split": "train"}}
    return facts, {"nodes": nodes, "weights": np.array([*[1.0] * 99, 0.099]) / 99.099}
