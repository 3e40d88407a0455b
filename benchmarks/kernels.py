"""What this CPU's kernels reach on the layers of a training step, beside its fastest product of matrices.

    python benchmarks/kernels.py --threads 2

For the convolutions of resnet18 and the linear layers of deit_tiny at 224 px, in fp32: GFLOP/s of the output,
of the input's gradient and of the weights' gradient, by torch and by the layer that pugdft can put in its
place (``gemm_convolution``, ``onednn_linear``). Kernels alternate, and the fastest of several calls counts.
Below, the share of the limit that all of a model's layers reach together. Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

from pugdft.training.fast_layers import GemmConv2d, OneDnnLinear, instruction_set
from pugdft.training.performance import device_name

# In and out channels, kernel, stride, side of the input in pixels, and how many of them resnet18 has.
CONVOLUTIONS = (
    (3, 64, 7, 2, 224, 1),
    (64, 64, 3, 1, 56, 4),
    (64, 128, 3, 2, 56, 1),
    (128, 128, 3, 1, 28, 3),
    (128, 256, 3, 2, 28, 1),
    (256, 256, 3, 1, 14, 3),
    (256, 512, 3, 2, 14, 1),
    (512, 512, 3, 1, 7, 3),
)
LINEAR = ((192, 576, 12), (192, 192, 12), (192, 768, 12), (768, 192, 12))  # in and out features, how many
TOKENS = 197
LIMIT_SIDE = 2048  # of the square matrices whose product is the limit

Kernel = Callable[[], object]


def kernels(layer: nn.Module, x: torch.Tensor) -> list[Kernel]:
    """A layer's output, its input's gradient, its weights' gradient."""
    (weight,) = layer.requires_grad_(False).parameters()
    from_input = layer(variable := x.clone().requires_grad_())
    from_weight = layer.requires_grad_()(x)
    gradient = torch.randn_like(from_weight)
    return [
        torch.no_grad()(lambda: layer(x)),
        lambda: torch.autograd.grad(from_input, variable, gradient, retain_graph=True),
        lambda: torch.autograd.grad(from_weight, weight, gradient, retain_graph=True),
    ]


def fastest(timed: list[Kernel], calls: int) -> list[float]:
    """Seconds of each kernel's fastest call, in turns."""
    best = [float("inf")] * len(timed)
    for kernel in timed:
        kernel()
    for _ in range(calls):
        for place, kernel in enumerate(timed):
            start = time.perf_counter()
            kernel()
            best[place] = min(best[place], time.perf_counter() - start)
    return best


def row(
    name: str, layer: nn.Module, own: type[nn.Module], x: torch.Tensor, operations: float, calls: int
) -> list[float]:
    """Print a layer's line; return the seconds of its three kernels by torch, then by the faster one."""
    other = copy.deepcopy(layer)
    other.__class__ = own
    by_torch, by_own = kernels(layer, x), kernels(other, x)
    seconds = fastest(by_torch + by_own, calls)
    print(
        "| " + " | ".join([name, *(f"{operations / each / 1e9:.0f}" for each in seconds)]) + " |", flush=True
    )
    return seconds[:3] + [min(pair) for pair in zip(seconds[:3], seconds[3:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--calls", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    square = torch.randn(LIMIT_SIDE, LIMIT_SIDE)
    limit = 2 * LIMIT_SIDE**3 / min(fastest([lambda: square @ square], arguments.calls))
    print(
        f"{device_name('cpu')}, {platform.machine()}, {instruction_set()}, {arguments.threads} threads, "
        f"torch {torch.__version__}, batch {arguments.batch_size}. Product of {LIMIT_SIDE} × {LIMIT_SIDE} "
        f"matrices: {limit / 1e9:.0f} GFLOP/s.\n\n"
        "| layer | output | input's | weights' gradient | by pugdft: output | input's | weights' |\n"
        "|---|--:|--:|--:|--:|--:|--:|"
    )
    sums: dict[str, list[float]] = {}
    for num_in, num_out, kernel, stride, side, number in CONVOLUTIONS:
        convolution = nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, bias=False)
        convolution.to(memory_format=torch.channels_last)
        x = torch.randn(arguments.batch_size, num_in, side, side).to(memory_format=torch.channels_last)
        operations = 2 * num_in * num_out * kernel**2 * (side // stride) ** 2 * arguments.batch_size
        own = GemmConv2d if GemmConv2d.replaces(convolution) else nn.Conv2d
        name = f"{num_in}→{num_out}, {kernel}×{kernel}/{stride}, {side} px"
        seconds = row(name, convolution, own, x, operations, arguments.calls)
        add(sums, "resnet18", seconds, operations, number)
    for num_in, num_out, number in LINEAR:
        layer = nn.Linear(num_in, num_out, bias=False)
        x = torch.randn(arguments.batch_size * TOKENS, num_in)
        operations = 2 * num_in * num_out * len(x)
        seconds = row(f"linear {num_in}→{num_out}", layer, OneDnnLinear, x, operations, arguments.calls)
        add(sums, "deit_tiny", seconds, operations, number)
    print("\n| these layers of | torch, share of the limit | with the faster kernels |\n|---|--:|--:|")
    for model, (work, torchs, faster) in sums.items():
        print(f"| {model} | {work / torchs / limit:.2f} | {work / faster / limit:.2f} |")


def add(
    sums: dict[str, list[float]], model: str, seconds: list[float], operations: float, number: int
) -> None:
    """Add a layer's operations and times to its model's."""
    found = sums.setdefault(model, [0.0] * 3)
    for place, value in enumerate((3 * operations, sum(seconds[:3]), sum(seconds[3:]))):
        found[place] += number * value


if __name__ == "__main__":
    main()
