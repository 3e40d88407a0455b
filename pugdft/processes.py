"""What the processes of a run do together before it begins; with one process, next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pugdft.errors import RunFailed, UserError

Result = TypeVar("Result")


class Attempt(Generic[Result]):
    """Work that is done at once, and whose failure waits until all processes can hear of it.

    Args:
        work: needs no other process.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._results: list[Result] = []
        self.problem: Exception | None = None
        try:
            self._results.append(work())
        except Exception as error:
            self.problem = error

    def result(self) -> Result:
        """What the work gave; the caller's from now on."""
        assert self.problem is None
        return self._results.pop()


def agree(accelerator: Accelerator, problem: Exception | None) -> None:
    """End all processes if one of them has a problem: the others would wait for it in vain.

    Raises:
        Exception: this process's own. A process that has none ends with nothing to add.
    """
    if accelerator.num_processes > 1:
        code = 0 if problem is None else 2 if isinstance(problem, UserError) else 1
        codes = accelerator.gather(torch.tensor([code], device=accelerator.device)).tolist()
        # The first process speaks for all of what a user has done; what it did not meet is this machine's.
        by_user = codes[0] == 2
        if problem is None and any(codes):
            problem = UserError("") if by_user else RunFailed("")
        elif isinstance(problem, UserError) and not by_user:
            problem = RunFailed(str(problem))
    if problem is not None:
        raise problem


def on_first_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result | None:
    """What ``work`` gives on the first process; None on the others, which wait for it.

    Raises:
        Exception: the first process's; the others end as well.
    """
    attempt = Attempt(work) if accelerator.is_main_process else None
    agree(accelerator, attempt.problem if attempt else None)
    return attempt.result() if attempt else None


def require_same(accelerator: Accelerator, number: int, problem: str) -> None:
    """See that all processes have the same number.

    Raises:
        UserError: they have not; with ``problem`` as its words.
    """
    if accelerator.num_processes > 1:
        numbers = accelerator.gather(torch.tensor([number], device=accelerator.device))
        if len(set(numbers.tolist())) > 1:
            raise UserError(problem)


def settle_order_of_sums(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Have the sums of gradients over processes taken in one order from the first update on.

    After its first backward pass DDP lays gradients out anew, in the order in which they came. Of three or
    more numbers the sum depends on the order, so a run that goes on would otherwise make its first update
    in other last bits than the unbroken one, whose layout had changed long before. A pass over nothing, whose
    gradients are dropped, has that change made before training.

    Args:
        model: as Accelerate wrapped it; anything else than DDP of three or more processes is left alone.
            It is put into evaluation mode, so that BatchNorm learns nothing from the pass.
        image_size: side of its square inputs.
        device: where it is.
    """
    wrapped = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(wrapped, DistributedDataParallel) or torch.distributed.get_world_size() < 3:
        return
    wrapped.eval()
    with torch.enable_grad():
        wrapped(torch.zeros(2, 3, image_size, image_size, device=device)).sum().backward()
    wrapped.zero_grad(set_to_none=True)
