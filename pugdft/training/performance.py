"""Speed: switches of a run, the memory allocator on a CPU, own layers, rounding of products."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn

from pugdft.config.schema import Recipe
from pugdft.errors import UserError
from pugdft.training.fast_layers import GemmConv2d, LastBlock, OneDnnLinear, SlicedConv2d, instruction_set

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
# Never give memory back, never map a block of its own for a large tensor, grow by 256 MiB at a time.
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * 2**20))
# Tensors from 24 MiB on have blocks of their own, which go back to the system. Smaller ones are kept: then
# the kernel clears few pages, and no small block that lives long settles where a large one would fit.
_GIVE_BACK = (
    (_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 24 * 2**20), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 2**17)
)  # fmt: skip


def retain_freed_memory(retain: bool) -> bool:
    """Ask glibc to keep all freed memory for reuse, or to give large blocks back; False without glibc.

    By default glibc maps many a tensor anew at every step, and the kernel clears its pages at first touch: a
    third of the time of a small model's step on two AVX-512 cores. Keeping all of it costs fragmentation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library has none
    settings = _KEEP if retain else _GIVE_BACK
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in settings)


_LARGEST_PLAIN_ATTENTION = 256  # the side beyond which attention's matrices may cost more than they gain
_COMPILER = "inductor"


@dataclass(frozen=True)
class Switches:
    """The performance switches of a run, every ``auto`` decided."""

    channels_last: bool
    fused_attention: bool
    matmul: Literal["ieee", "tf32", "bf16"]
    onednn_linear: bool
    gemm_convolution: bool
    compile: bool
    retain_memory: bool

    def __str__(self) -> str:
        return ", ".join(f"{name} {str(value).lower()}" for name, value in asdict(self).items())


def pick(recipe: Recipe, device_type: str) -> Switches:
    """Decide a recipe's switches on a device, or refuse them; ``auto`` is what was measured fastest there."""
    given, on_cpu, is_fp32 = recipe.train.performance, device_type == "cpu", recipe.train.precision == "fp32"
    where, matmul = "train.performance", "ieee" if given.matmul == "auto" else given.matmul
    if matmul == "tf32" and on_cpu:
        raise UserError(f"{where}.matmul: tf32 needs a GPU; on a CPU use ieee or bf16")
    if matmul != "ieee" and not on_cpu and (device_type != "cuda" or matmul == "bf16"):
        raise UserError(f"{where}.matmul: {matmul} is not for {device_type}; train.precision=bf16 is")
    compiles = given.compile is True
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    is_exact = on_cpu and is_fp32 and matmul == "ieee" and not compiles
    own_layers = {
        "onednn_linear": is_exact and has_onednn,
        "gemm_convolution": is_exact and given.channels_last is not False,
    }
    for name, is_possible in own_layers.items():
        if getattr(given, name) is True and not is_possible:
            also = ", channels_last" if name == "gemm_convolution" else ""
            raise UserError(
                f"{where}.{name}: is for fp32 on a CPU, with matmul ieee{also} and without compile"
            )
    if given.retain_memory is True and not on_cpu:
        raise UserError(f"{where}.retain_memory: is for a CPU; torch does so by itself on others")
    is_avx2 = instruction_set() == "AVX2"
    few_tokens = recipe.data.image_size <= _LARGEST_PLAIN_ATTENTION

    def decide(value: bool | str, automatic: bool) -> bool:
        return automatic if value == "auto" else bool(value)

    return Switches(
        channels_last=decide(given.channels_last, True),
        fused_attention=decide(given.fused_attention, not on_cpu or is_fp32 or not few_tokens),
        matmul=matmul,
        onednn_linear=own_layers["onednn_linear"] and decide(given.onednn_linear, _blas_is_slow()),
        gemm_convolution=own_layers["gemm_convolution"] and decide(given.gemm_convolution, is_avx2),
        compile=compiles,
        retain_memory=on_cpu and decide(given.retain_memory, not is_avx2),
    )


@contextmanager
def attention_of(switches: Switches) -> Iterator[None]:
    """Within the context, have timm build models with or without fused attention."""
    before = timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)
    with ExitStack() as stack:
        stack.callback(timm.layers.set_fused_attn, *before)
        timm.layers.set_fused_attn(switches.fused_attention, before[1] and switches.fused_attention)
        yield


def arrange(model: nn.Module, switches: Switches, only_logits: bool = False) -> None:
    """Set a new model's memory format and faster layers in place; its tensors keep their names.

    With ``only_logits``, nobody looks at the model's features, and it need not compute all of them.
    """
    if only_logits:
        LastBlock.replace(model)
    if switches.channels_last:
        model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if switches.onednn_linear and type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
        elif switches.channels_last and type(module) is nn.Conv2d:
            if SlicedConv2d.replaces(module):
                module.__class__ = SlicedConv2d
            elif switches.gemm_convolution and GemmConv2d.replaces(module):
                module.__class__ = GemmConv2d


def compiled(model: nn.Module, switches: Switches) -> nn.Module:
    """Return the model for training steps: itself, or compiled for the shapes that it meets."""
    if not switches.compile:
        return model
    # Random numbers are drawn as without compiling, so that only rounding differs.
    options: dict[str, Any] = {"fallback_random": True} if _COMPILER == "inductor" else {}
    module: nn.Module = torch.compile(model, dynamic=False, backend=_COMPILER, options=options or None)  # type: ignore[assignment]
    return module


# Names under ``torch.backends``; old ones first, for they set the new ones too.
_ROUNDING_FLAGS = {
    "cuda": (
        "cuda.matmul.allow_tf32", "cudnn.allow_tf32",
        "cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision",
    ),
    "cpu": ("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision"),
}  # fmt: skip


def rounding_of(switches: Switches, device_type: str) -> AbstractContextManager[None]:
    """Within the context, round products of fp32 numbers on this device as the switches say."""
    return products_in(switches.matmul, device_type)


@contextmanager
def products_in(matmul: str, device_type: str) -> Iterator[None]:
    """Within the context, round products of fp32 numbers as ``ieee``, ``tf32`` or ``bf16`` does."""
    before = []
    for path in _ROUNDING_FLAGS.get(device_type, ()):
        place, _, name = path.rpartition(".")
        with suppress(AttributeError, RuntimeError):  # this torch has no such flag, or cannot tell it
            owner = attrgetter(place)(torch.backends)
            before.append((owner, name, getattr(owner, name)))
    try:
        for owner, name, _ in before:
            # torch has an old and a new name for each and refuses to read one after the other was set.
            setattr(owner, name, matmul == "tf32" if name == "allow_tf32" else matmul)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def proc_field(file: str, field: str) -> str | None:
    """Read the first field of this name in a file of Linux's ``/proc``; None where there is none."""
    place = Path("/proc") / file
    lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else ()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def device_name(device_type: str) -> str:
    """Name this process's GPU, or the processor."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    return proc_field("cpuinfo", "model name") or platform.processor() or platform.machine()


def emulates_bf16(device_type: str) -> bool:
    """Tell whether a device has no instructions for bf16; False where torch cannot tell."""
    if device_type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device_type == "cpu" else {}
    return bool(known) and not any(has for name, has in known.items() if "bf16" in name)


def precision_note(precision: str, device_type: str) -> str:
    """What to know of a precision that this device only emulates; empty where it does not."""
    if precision != "bf16" or not emulates_bf16(device_type):
        return ""
    # Measured on two AVX2 cores, forward and backward at 64 px: resnet18 2.8, vit_tiny 6.6 times fp32's time.
    factor, remedy = "3 to 7 times as long as fp32", "train.precision=fp32"
    if device_type == "cuda":
        factor, remedy = "longer than fp16", "train.precision=fp16"
    place = f"{device_type.upper()} without instructions for bf16"
    return f"train.precision: bf16 is emulated on this {place} and takes {factor}; {remedy} is faster here"


@cache
def _blas_is_slow() -> bool:
    """Whether torch's BLAS is MKL on another's processor with AVX-512, for which it has no fast kernels."""
    vendor = proc_field("cpuinfo", "vendor_id") or platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" not in vendor and instruction_set() != "AVX2"
