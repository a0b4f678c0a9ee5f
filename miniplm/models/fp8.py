"""Linear layers in fp8: weights and activations in float8_e4m3fn with one scale a row, products summed in float32.

    scale[r] = max_k |x[r, k]| / 448                  448 is the largest float8_e4m3fn
    q[r, k]  = round(x[r, k] / scale[r])              to 3 bits after the leading one
    y[n, o]  = scale_x[n] * scale_w[o] * sum_k q_x[n, k] * q_w[o, k] + bias[o]

A weight is rounded once, when its layer is converted, an activation in each forward pass. Forward only: rounding
has no gradient. Tensor cores that know fp8 make the sum; elsewhere it is made in float32 of the same rounded
numbers, so that what fp8 does to the scores can be measured without such a device.

Shapes: N tokens, R rows of any kind, K width of the input, O width of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

# What a scoring model's dtype may be: with the head in the model's own precision, and with the head in fp8 too.
HEAD_TOO = "fp8-head"
FP8_DTYPES = ("fp8", HEAD_TOO)

_E4M3_MAX = 448.0
# The least scale is the least normal float32: a row of zeros is divided by it, not by zero.
_LEAST_MAXIMUM = torch.finfo(torch.float32).tiny * _E4M3_MAX
# What the products on tensor cores need of K and O.
DIMENSION_MULTIPLE = 16
# On Hopper partial sums then keep 13 bits after the leading one, emulated: a mean NLL moved by 0.003 +- 0.004 nats, where
# rounding the factors moves it by 0.03. Promoting sums to float32 every 128 products makes a product 10 to 20 % slower,
# and far more where cuBLAS is older than 12.9.
_FAST_ACCUMULATION = True


def supports_fp8(device: torch.device) -> bool:
    """Whether the device multiplies float8_e4m3fn: NVIDIA GPUs of compute capability 8.9 and above."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_rows(values_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as float8_e4m3fn (R, K) and their scales (R,) float32, `values ~ quantized * scale`; any leading shape for R.

    A row with a NaN or an infinity has a scale that is not finite, so no product with it is finite.
    """
    maximum_R = values_RK.abs().amax(dim=-1).float()
    scale_R = maximum_R.clamp(min=_LEAST_MAXIMUM) / _E4M3_MAX  # clamp keeps NaN
    # A fused kernel divides values that it has not rounded to bfloat16, and a little more than 448 is NaN to some casts.
    scaled_RK = (values_RK.float() / scale_R[..., None]).clamp(-_E4M3_MAX, _E4M3_MAX)
    return scaled_RK.to(torch.float8_e4m3fn), scale_R


def multiply_quantized(
    x_NK: Tensor, x_scale_N: Tensor, weight_OK: Tensor, weight_scale_O: Tensor, bias_O: Tensor | None, on_tensor_cores: bool
) -> Tensor:
    """The product (N, O) of two results of `quantize_rows`, plus a bias: bfloat16 of tensor cores, float32 elsewhere."""
    if on_tensor_cores:
        return torch._scaled_mm(
            x_NK.contiguous(),
            weight_OK.t(),
            scale_a=x_scale_N[:, None],
            scale_b=weight_scale_O[None, :],
            bias=None if bias_O is None else bias_O.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=_FAST_ACCUMULATION,
        )
    product_NO = (x_NK.float() @ weight_OK.float().t()) * x_scale_N[:, None] * weight_scale_O
    return product_NO if bias_O is None else product_NO + bias_O


class Fp8Linear(nn.Module):
    """A linear layer `y = W x + b` whose product is made in fp8; input and output have the dtype of the input.

    It may be moved to another device, but not cast to another dtype: that would cast the rounded weights too.
    """

    weight_q: Tensor  # (O, K) float8_e4m3fn
    weight_scale: Tensor  # (O,) float32
    bias: Tensor | None  # (O,)

    def __init__(self, weight_OK: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OK.shape
        weight_q, weight_scale = quantize_rows(weight_OK.detach())
        # Contiguous, so that its transpose is the column-major factor that tensor cores want.
        self.register_buffer("weight_q", weight_q.contiguous())
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach())
        self._on_tensor_cores = supports_fp8(weight_OK.device)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., O) of inputs (..., K)."""
        x_NK, x_scale_N = quantize_rows(x.reshape(-1, self.in_features))
        y_NO = multiply_quantized(x_NK, x_scale_N, self.weight_q, self.weight_scale, self.bias, self._on_tensor_cores)
        return y_NO.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Asked for here and not in `forward`, which torch.compile traces.
        self._on_tensor_cores = supports_fp8(self.weight_q.device)
        return self


def convert_to_fp8(module: nn.Module) -> int:
    """The number of linear layers inside `module` that were replaced in place by `Fp8Linear`.

    Left as they are: a model's output embedding, layers with a width that is no multiple of 16, subclasses of
    linear layers, as they may compute something else, and experts kept as one 3-D parameter.
    """
    get_head: Any = getattr(module, "get_output_embeddings", None)
    head = get_head() if get_head else None
    # A layer that two places share is converted once and stays shared.
    converted: dict[nn.Module, Fp8Linear] = {}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child is head or (weights := _linear_weights(child)) is None:
                continue
            if any(width % DIMENSION_MULTIPLE for width in weights[0].shape):
                continue
            if child not in converted:
                converted[child] = Fp8Linear(*weights).train(child.training)
            setattr(parent, name, converted[child])
    return len(converted)


def _linear_weights(layer: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight (O, K) and bias (O,) of a linear layer or of GPT-2's Conv1D, which keeps its weight transposed; None for any other."""
    from transformers.pytorch_utils import Conv1D

    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    if type(layer) is Conv1D:
        return layer.weight.t(), layer.bias
    return None
