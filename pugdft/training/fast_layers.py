"""Layers that compute what torch's and timm's do by less work or faster kernels: the same but for rounding.

A layer changes its class alone, so its tensors and their names stay. Gradients of `GemmConv2d` and
`OneDnnLinear`, which are for a CPU, cannot be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_FEWEST_CHANNELS = 32  # of a convolution's input and output, for which products of matrices are faster
_FEWEST_PIXELS = 256  # in one product, of as many images as that takes


def instruction_set() -> str:
    """The widest instructions that torch uses on this CPU: ``AVX2``, ``AVX512``, ``DEFAULT``, …"""
    return torch.backends.cpu.get_cpu_capability()


class LastBlock(Block):
    """A Vision Transformer's last block, for the tokens that the head reads: class, distillation, registers.

    Nobody reads what it makes of the others, whose gradients there are zero. It only attends to them.
    """

    tokens: int
    """How many tokens, the first ones, come out."""

    @classmethod
    def replace(cls, model: Any) -> None:
        """Give a model this block in place of its last, where that computes the same."""
        if not isinstance(model, VisionTransformer) or model.global_pool != "token" or not len(model.blocks):
            return
        for name in ("forward", "forward_features", "pool", "forward_head"):
            own = getattr(type(model), name)
            if own not in (getattr(VisionTransformer, name), getattr(VisionTransformerDistilled, name)):
                return
        block, tokens = model.blocks[-1], model.num_prefix_tokens
        if [type(block), type(block.attn), type(block.mlp)] != [Block, Attention, Mlp]:
            return
        if type(block.attn.k_norm) is not nn.Identity or block.attn.gate is not None:
            return
        if any(isinstance(each, nn.Dropout) and each.p > 0 for each in block.modules()):
            return  # it would draw fewer random numbers
        with torch.no_grad():  # timm's layer may come to compute something else
            probe = block.norm1(block.attn.qkv.weight[: tokens + 2].unsqueeze(0))
            whole, part = block.attn(probe)[:, :tokens], _attend(block.attn, probe, tokens)
        if torch.allclose(whole, part, rtol=0.02, atol=0.02 * float(whole.abs().max())):
            block.__class__, block.tokens = cls, tokens

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (images, all, channels) in, (images, `tokens`, channels) out."""
        attended = _attend(self.attn, self.norm1(x), self.tokens)
        x = x[:, : self.tokens] + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _attend(layer: Attention, input: Tensor, tokens: int) -> Tensor:
    """What the first tokens take from all, (images, all, channels) → (images, tokens, channels).

    Keys and values of all tokens are not computed: qᵀ(Kx) = (Kᵀq)ᵀx, and Σ pᵢ(Vxᵢ + b) = V(Σ pᵢxᵢ) + b, for
    shares p that sum to 1. A bias of the keys changes no share.
    """
    heads = layer.num_heads
    to_query, to_key, to_value = layer.qkv.weight.unflatten(0, (3, heads, -1))
    query = torch.einsum("itc,hdc->ithd", input[:, :tokens], to_query)
    biases = None if layer.qkv.bias is None else layer.qkv.bias.unflatten(0, (3, heads, -1))
    query = layer.q_norm(query if biases is None else query + biases[0]) * layer.scale
    sought = torch.einsum("ithd,hdc->ithc", query, to_key).flatten(1, 2)
    taken = (sought @ input.transpose(1, 2)).softmax(-1) @ input
    output = torch.einsum("ithc,hdc->ithd", taken.unflatten(1, (tokens, heads)), to_value)
    output = layer.norm((output if biases is None else output + biases[2]).flatten(2))
    projected: Tensor = layer.proj(output)
    return projected


class SlicedConv2d(nn.Conv2d):
    """A 1 × 1 convolution that takes the pixels of its stride first: the same values, another kernel."""

    @staticmethod
    def replaces(layer: nn.Conv2d) -> bool:
        """Whether torch 2.15.0 writes outside memory in the layer's backward pass in channels_last."""
        is_strided_point = layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding == (0, 0)
        return is_strided_point and layer.groups == 1 and layer.in_channels < 8

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.stride
        return functional.conv2d(input[..., ::down, ::right], self.weight, self.bias)


class GemmConv2d(nn.Conv2d):
    """A convolution in channels_last, the gradient of whose weights is a sum of products of matrices.

    oneDNN's kernel for that gradient reaches a third to a half of an AVX2 core's speed; products reach four
    fifths.
    """

    @staticmethod
    def replaces(layer: nn.Conv2d) -> bool:
        """Whether products are the faster way to the layer's gradient, and compute the same."""
        is_plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        is_wide = min(layer.in_channels, layer.out_channels) >= _FEWEST_CHANNELS
        return is_plain and is_wide and layer.kernel_size != (1, 1) and not isinstance(layer.padding, str)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _GemmConvolution.apply(input, self.weight, self.bias, self.stride, self.padding)
        return output


class _GemmConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(input, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        to_input = to_weight = None
        if needs_input:
            to_input, *_ = torch.ops.aten.convolution_backward(
                gradient, input, weight, None, ctx.stride, ctx.padding,
                (1, 1), False, (0, 0), 1, (True, False, False),
            )  # fmt: skip
        if needs_weight:
            to_weight = _weight_gradient(input, gradient, weight.shape, ctx.stride, ctx.padding)
        return to_input, to_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None, None


def _weight_gradient(
    input: Tensor, gradient: Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Sum, over all pixels, gradient × the input's patch that it belongs to: out × in × kernel, as ``shape``.

    A few images at a time, each output column's kernel-wide strip of the padded input is copied once, and the
    input's rows are sorted by their place within the stride. Then the pixels that one row of the kernel meets
    follow each other in memory, and one product is that row's gradient.
    """
    num_out, num_in, kernel_rows, kernel_columns = shape
    (down, right), (top, left) = stride, padding
    height, width = input.shape[2:]
    rows, columns = gradient.shape[2:]
    strip_rows = rows + (kernel_rows - 1) // down
    padded_shape = (
        max(strip_rows * down, height + top),
        max((columns - 1) * right + kernel_columns, width + left),
    )
    found = input.new_zeros(kernel_rows, num_out, kernel_columns * num_in)
    together = -(-_FEWEST_PIXELS // (rows * columns))
    known = -1
    for images, changes in zip(
        input.permute(2, 0, 3, 1).split(together, 1),
        gradient.permute(2, 0, 3, 1).split(together, 1),
        strict=True,
    ):
        number = images.shape[1]
        if number != known:  # at the first images, and at the last if they are fewer
            known = number
            padded = input.new_zeros(padded_shape[0], number, padded_shape[1], num_in)
            line, image, pixel, channel = padded.stride()
            strips = padded.as_strided(
                (down, strip_rows, number, columns, kernel_columns, num_in),
                (line, line * down, image, pixel * right, pixel, channel),
            )
            copied = input.new_empty(strips.shape)
            by_row = [
                copied[row % down, row // down : row // down + rows].view(-1, kernel_columns * num_in)
                for row in range(kernel_rows)
            ]
        padded[top : top + height, :, left : left + width].copy_(images)
        copied.copy_(strips)
        to_output = changes.reshape(-1, num_out).t()
        for place, strip in zip(found, by_row, strict=True):
            place.addmm_(to_output, strip)
    return found.view(kernel_rows, num_out, kernel_columns, num_in).permute(1, 3, 0, 2)


class OneDnnLinear(nn.Linear):
    """A linear layer whose products oneDNN computes, in exact fp32.

    torch has no switch that sends fp32 products there without permitting it bf16 as well, so this calls the
    operator that torch's compiler calls.
    """

    def forward(self, input: Tensor) -> Tensor:
        """y = x·Wᵀ + b over the last dimension."""
        # Rows go in and come out, so that the result is no view made inside: some models write into it.
        rows: Tensor = _OneDnnProduct.apply(input.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.view(*input.shape[:-1], self.out_features)


class _OneDnnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if needs_input else None,
            _product(gradient.t(), input.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return output


TORCHS_OWN: dict[type[nn.Module], type[nn.Module]] = {OneDnnLinear: nn.Linear, GemmConv2d: nn.Conv2d}
"""The layers whose gradient cannot be differentiated again, and what they replace."""
