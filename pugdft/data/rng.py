"""Every random draw of a run as a function of (seed, what for, epoch, step): nothing depends on history.

That is why a resumed run equals an unbroken one, the same recipe gives the same global batches on one
process or many, and every optimizer of a comparison sees the same images.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What a stream of random numbers is for; the numbers are part of what a seed means."""

    SPLIT = 0
    ORDER = 1
    AUGMENT = 2
    MODEL = 3
    BOX = 4
    CUTOUT = 5
    MIX = 6
    IMAGE = 7
    ERASE = 8
    JITTER = 9
    SAMPLE = 10


def generator(seed: int, draw: Draw, *when: int) -> np.random.Generator:
    """A generator that gives the same numbers for the same arguments, everywhere."""
    return np.random.default_rng((seed, int(draw), *when))


def torch_seed(seed: int, *when: int) -> int:
    """A seed for torch's generators (dropout, drop-path) in 0..2^63."""
    state = np.random.SeedSequence((seed, int(Draw.MODEL), *when)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def image_seeds(seed: int, epoch: int, step: int, row: int) -> tuple[int, int]:
    """Seeds for ``random`` and for ``numpy.random``, whose global state timm's augmentations draw from."""
    state = np.random.SeedSequence((seed, int(Draw.IMAGE), epoch, step, row)).generate_state(2)
    return int(state[0]), int(state[1])


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Restore the global state of ``random`` and ``numpy.random`` at the end of the ``with``."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def validation_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions in ``labels`` into those that stay in training and those held out, both sorted.

    ``fraction``, in [0, 1), is of each class, rounded; if above 0, at least one image. ValueError if a class
    is too small to give an image and keep one.
    """
    if fraction == 0:
        return np.arange(len(labels)), np.empty(0, np.int64)
    draws = generator(seed, Draw.SPLIT)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            raise ValueError(f"class {label} has {len(members)} training images: too few to hold out {count}")
        held_out.append(draws.permutation(members)[:count])
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def class_balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose ``count`` positions in ``labels``, sorted, of every class alike until it has no more."""
    mixed = generator(seed, Draw.SAMPLE).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # of each, how many of its class come before it
    for label in np.unique(labels):
        members = np.flatnonzero(labels[mixed] == label)
        turn[members] = np.arange(len(members))
    return np.sort(mixed[np.argsort(turn, kind="stable")[:count]])


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return generator(seed, Draw.ORDER, epoch).permutation(size)
