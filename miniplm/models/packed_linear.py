"""Linear layers on a CPU through oneDNN, with the weight packed once into the order that its kernel reads.

PyTorch multiplies float32 by MKL, which does not use all that some CPUs have: on an AMD Zen 5 (2 cores, torch 2.13)
oneDNN reached 430 GFLOP/s where MKL had 185, and on Intel the two are alike. Low precisions use oneDNN anyway.

Shapes: N tokens, I width of the input, O width of the output, T tokens of the probe, H width of the hidden state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows of the inputs that the packed order is made for: a batch's on a CPU (`scoring.batches`). Any number of rows may be multiplied.
_TYPICAL_ROWS = 2048


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights can be packed: float32 on an x86 CPU with AVX-512. A rule, not a measurement, so that a machine always computes alike."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack_weight(weight_OI: Tensor) -> Tensor:
    """A weight (O, I) in oneDNN's own order, whose shape tells nothing; only `multiply` can use it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), _TYPICAL_ROWS)
    return packed


def multiply(inputs_NI: Tensor, packed: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x W^T + b` (N, O), float32, with a packed weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs_NI, packed, bias_O, "none", [], "")
    return product


class PackedLinear(nn.Module):
    """A linear layer for inference, its weight packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = pack_weight(linear.weight)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (..., O) of inputs (..., I)."""
        return multiply(inputs, self.packed, self.bias)


def pack_linears(body: nn.Module) -> int:
    """Puts a `PackedLinear` in the place of every plain `nn.Linear` of a body; returns how many.

    0, and nothing is changed, where the body then fails or computes something else, as those do that take a layer's weight for themselves (Mamba).
    """
    places = [
        (parent, name, child)
        for parent in body.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.requires_grad is False
    ]
    before_1TH = _run_probe(body)
    for parent, name, child in places:
        setattr(parent, name, PackedLinear(child))
    try:
        is_same = torch.allclose(_run_probe(body), before_1TH, rtol=1e-3, atol=1e-3 * before_1TH.abs().max().item())
    except AttributeError:
        is_same = False
    if not is_same:
        for parent, name, child in places:
            setattr(parent, name, child)
    return len(places) if is_same else 0


@torch.no_grad()
def _run_probe(body: nn.Module) -> Tensor:
    """Hidden states (1, T, H) of eight tokens."""
    hidden_1TH: Tensor = body(input_ids=torch.arange(1, 9)[None], use_cache=False).last_hidden_state
    return hidden_1TH
