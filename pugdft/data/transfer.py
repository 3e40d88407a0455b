"""From memory to the training device without making it wait: pinned copies, a step ahead, or none at all.

A step that reads something back from an accelerator waits for all the work before it; so does a copy from
pageable memory. Here everything goes one way, through pinned memory, and the host runs ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pugdft.data.image_files import ImageFiles, Pixels

Item = TypeVar("Item")

RESIDENT_SHARE = 0.25
"""Of an accelerator's free memory that images may take; the rest is for the model and its activations."""
_CHUNK_BYTES = 64 * 2**20


def is_pinned_for(device: torch.device) -> bool:
    """Whether copies to this device are faster, and need no waiting, from pinned memory."""
    return device.type == "cuda"


def onto(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if is_pinned_for(device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def gathered(rows: Pixels, chosen: np.ndarray, device: torch.device) -> Tensor:
    """``rows[chosen]`` in memory that copies to this device best."""
    out = torch.empty(
        (len(chosen), *rows.shape[1:]),
        dtype=torch.from_numpy(np.empty(0, rows.dtype)).dtype,
        pin_memory=is_pinned_for(device),
    )
    if isinstance(rows, ImageFiles):
        rows.read(chosen, out.numpy())
        return out
    np.take(rows, chosen, axis=0, out=out.numpy(), mode="clip")  # the mode that needs no second buffer
    return out


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order; while one is in use, a thread makes the next."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="pugdft-ahead") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def free_device_bytes(device: torch.device) -> int:
    """Free memory of an accelerator; 0 where there is nothing to gain or nobody can tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "xpu":
        return int(torch.xpu.mem_get_info(device)[0])
    return 0


def resident(images: Pixels, device: torch.device, budget: float) -> Tensor | None:
    """All images on the device, if they take no more than ``budget`` bytes of it and are decoded."""
    if isinstance(images, ImageFiles) or images.nbytes > budget:
        return None
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK_BYTES * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), step):
        whole[start : start + step] = torch.from_numpy(np.array(images[start : start + step]))
    return whole
