"""Two runs of one recipe: what they have in common, and whether the second bears the first one out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pugdft.errors import UserError, counted
from pugdft.predictions import Predictions
from pugdft.record import Metrics, RunRecord, SplitMetrics
from pugdft.verification.agreement import (
    EXACT,
    Check,
    compare_hashes,
    compare_metrics,
    compare_numbers,
    compare_own_metrics,
    compare_predictions,
    environment_differences,
    same,
    shown,
)
from pugdft.verification.course import changes_on_the_way
from pugdft.verification.stored import StoredRun

LEVEL = 0.01
"""A difference that chance makes less often than this is one."""

Pair = tuple[SplitMetrics | None, SplitMetrics | None]


@dataclass(frozen=True)
class Comparison:
    """Two runs of one recipe.

    Attributes:
        checks: one for each thing compared; some may differ although the runs agree.
        agrees: whether the new run bears the record out.
        verdict: why, in words.
    """

    checks: tuple[Check, ...]
    agrees: bool
    verdict: str


def compare_runs(old: StoredRun, new: StoredRun, *, tolerant: bool = False) -> Comparison:
    """What two runs of one recipe have in common, and whether that bears the first one out.

    It does if the results are identical. On a CPU, with the same versions, device and images a pass, nothing
    less will do, unless one of the runs changed on its way. Elsewhere sums are made in another order and
    training amplifies that: the top-1 may then differ as chance makes it, by McNemar's exact test on the
    stored predictions (two-sided, 1 %), or without these by no more than 3·√(2p(1 − p)/N).

    Args:
        old: the record.
        new: the run that bears it out, or does not.
        tolerant: allow for chance even on a CPU with the same versions.
    """
    there, here = old.record, new.record
    differences = _differences(there, here)
    inputs, results = _input_checks(there, here), _result_checks(old, new)
    checks = (
        Check("environment", not differences, "; ".join(differences) or "same versions and device"),
        *inputs,
        *results,
        _seconds(there, here),
    )
    has_other_data = any(check.name == "data" and not check.agrees for check in inputs)
    if has_other_data:
        return Comparison(checks, False, "the images are not those of the record: nothing can be compared")
    if there.status != here.status:
        return Comparison(checks, False, f"ended as {here.status}; the record says {there.status}")
    if all(check.agrees for check in results):
        return Comparison(checks, True, "identical: all results have the same bits")
    if not differences and here.environment.get("device") == "cpu" and not tolerant:
        reason = (
            "on a CPU a run with the same versions comes to the same bits "
            "(--tolerant allows for chance, as where the record is of another processor)"
        )
        return Comparison(checks, False, f"{_stated(*_ranking_metrics(there, here))}; {reason}")
    agrees, verdict = _chance(old, new)
    if differences and not agrees:
        verdict += f". They did not run alike, which may be why: {'; '.join(differences)}"
    return Comparison(checks, agrees, verdict)


def mcnemar(only_there: int, only_here: int) -> float:
    """Two-sided exact p-value of images that only one of two models gets right being shared out by chance."""
    from scipy.special import bdtr

    total = only_there + only_here
    return min(1.0, 2 * float(bdtr(min(only_there, only_here), total, 0.5))) if total else 1.0


def _differences(there: RunRecord, here: RunRecord) -> list[str]:
    """What decides a run's bits and differs, from its start or from some update on."""
    also = ["python", "git"]
    if "micro_batch_size" in there.environment:  # older records do not have it
        also.append("micro_batch_size")
    return [
        *environment_differences(there.environment, here.environment, also),
        *changes_on_the_way(there, "there"),
        *changes_on_the_way(here, "here"),
    ]


def _chance(old: StoredRun, new: StoredRun) -> tuple[bool, str]:
    """Whether the top-1 differs by no more than chance makes it, and that in words."""
    split, there, here = _ranking_metrics(old.record, new.record)
    stated = _stated(split, there, here)
    if there is None or here is None:
        return there is here, stated
    try:
        stored, fresh = _predictions(old, new, split)
    except UserError:
        stored = fresh = None
    if stored is not None and fresh is not None:
        if not compare_own_metrics(split, there, stored).agrees:
            return False, f"{stated}, where it is not that of the predictions beside it"
        if np.array_equal(stored.label, fresh.label):
            right_there, right_here = stored.prediction == stored.label, fresh.prediction == fresh.label
            counts = int((right_there & ~right_here).sum()), int((right_here & ~right_there).sum())
            p_value = mcnemar(*counts)
            return p_value >= LEVEL, (
                f"{stated}: {counts[0]:,} of {len(fresh.label):,} images are right only there, {counts[1]:,} "
                f"only here; p = {p_value:.2g} by McNemar's exact test (at least {LEVEL:g} is asked for)"
            )
    count = _num_images(new, split)
    middle = min(1.0, max(0.0, (there.top1 + here.top1) / 2))
    allowed = 3 * math.sqrt(2 * middle * (1 - middle) / max(1, count))
    return abs(there.top1 - here.top1) <= allowed + 1e-9, (
        f"{stated}; no predictions beside the record: {allowed:.2%} is allowed, three standard errors of "
        f"{count:,} images"
    )


def _stated(split: str, there: SplitMetrics | None, here: SplitMetrics | None) -> str:
    if there is None or here is None:
        return f"{split} top-1 is in {'neither' if there is here else 'only one'} of both records"
    difference = 100 * (here.top1 - there.top1)
    return f"{split} top-1 {here.top1:.2%} here, {there.top1:.2%} in the record ({difference:+.2f} points)"


def _metrics(there: RunRecord, here: RunRecord) -> dict[str, Pair]:
    """By split, what both records say of it; splits that neither speaks of are left out."""
    first, second = there.metrics or Metrics(), here.metrics or Metrics()
    pairs: dict[str, Pair] = {
        "test": (first.test, second.test),
        "validation": (first.validation, second.validation),
    }
    return {split: pair for split, pair in pairs.items() if pair != (None, None)}


def _ranking_metrics(
    there: RunRecord, here: RunRecord
) -> tuple[str, SplitMetrics | None, SplitMetrics | None]:
    metrics = _metrics(there, here)
    split = "validation" if "validation" in metrics and "test" not in metrics else "test"
    return (split, *metrics.get(split, (None, None)))


def _result_checks(old: StoredRun, new: StoredRun) -> list[Check]:
    """What two runs that are the same have in common to the last bit."""
    there, here = old.record, new.record
    checks = [
        Check("status", there.status == here.status, _pair(there.status, here.status)),
        _history_check(there.history, here.history),
    ]
    for split, (claimed, fresh) in _metrics(there, here).items():
        checks += _split_checks(old, new, split, claimed, fresh)
    best = [record.metrics.best_test if record.metrics else None for record in (there, here)]
    if best[0] is not None and best[1] is not None:
        checks.append(compare_numbers("best epoch on test", best[0].top1, best[1].top1, is_fraction=True))
    checks += [
        compare_numbers("updates", there.cost.steps, here.cost.steps),
        compare_numbers("gradient passes", there.cost.gradient_passes, here.cost.gradient_passes),
    ]
    if "model" in there.artifacts and "model" in here.artifacts:
        digests = there.artifacts["model"].sha256, here.artifacts["model"].sha256
        checks.append(compare_hashes("trained weights", *digests))
    return checks


def _split_checks(
    old: StoredRun, new: StoredRun, split: str, there: SplitMetrics | None, here: SplitMetrics | None
) -> list[Check]:
    if there is None or here is None:
        return [Check(f"{split} metrics", False, f"only {'here' if here else 'in the record'}")]
    checks = compare_metrics(split, there, here, 1, EXACT)
    try:
        stored, fresh = _predictions(old, new, split)
    except UserError as error:
        return [*checks, Check(f"{split} predictions", False, str(error))]
    if stored is not None and fresh is not None:
        checks.append(compare_own_metrics(split, there, stored))
        checks.append(compare_predictions(split, stored, fresh, EXACT))
    return checks


def _num_images(new: StoredRun, split: str) -> int:
    return new.record.data.sizes.get(split, 0) if new.record.data else 0


def _predictions(old: StoredRun, new: StoredRun, split: str) -> tuple[Predictions | None, Predictions | None]:
    count = _num_images(new, split)
    return old.predictions(split, count), new.predictions(split, count)


def _input_checks(there: RunRecord, here: RunRecord) -> list[Check]:
    """Digests of what both runs started from; what an older record does not have is left out."""
    digests: dict[str, tuple[str | None, str | None]] = {}
    if there.data and here.data:
        digests |= {
            "data": (there.data.sha256, here.data.sha256),
            "training split": (there.data.split_sha256, here.data.split_sha256),
            "order of images": (there.data.order_sha256, here.data.order_sha256),
            "augmentation": (there.data.augmentation_sha256, here.data.augmentation_sha256),
        }
    if there.model and here.model:
        digests |= {
            "initial weights": (there.model.weights_sha256, here.model.weights_sha256),
            "new head": (there.model.head_sha256, here.model.head_sha256),
        }
    return [compare_hashes(name, a, b) for name, (a, b) in digests.items() if a is not None and b is not None]


def _history_check(there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> Check:
    """The first epoch that differs in anything but time; keys that one side does not know are left out."""
    for number, (old, new) in enumerate(zip(there, here, strict=False), start=1):
        for key in new:
            if key in old and key != "train_seconds" and not same(old[key], new[key]):
                return Check("history", False, f"from epoch {number} on: {key} {_pair(old[key], new[key])}")
    if len(there) != len(here):
        return Check("history", False, f"{len(here):,} epochs here, {len(there):,} in the record")
    return Check("history", True, f"{counted(len(here), 'epoch')}, identical")


def _seconds(there: RunRecord, here: RunRecord) -> Check:
    old, new = there.cost.train_seconds, here.cost.train_seconds
    ratio = f" ({new / old:.2f} times)" if old > 0 else ""
    return Check("training time", None, f"{new:.1f} s here, {old:.1f} s in the record{ratio}")


def _pair(there: object, here: object) -> str:
    return shown(here) if same(there, here) else f"{shown(here)} here, {shown(there)} in the record"
