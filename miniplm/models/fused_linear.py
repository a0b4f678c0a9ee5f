"""Linear layers that are given the same input as one product: their weights one below the other, multiplied once.

    [q k v] = x [W_q; W_k; W_v]^T + [b_q b_k b_v]

A body goes on calling its layers one by one; each is a part of the product, which the first that is called makes and the others
take their columns of. Which layers belong together is seen in a forward pass, whatever a family calls them. On a GPU a wider
product uses the device better, and an activation that is rounded to fp8 is rounded once; a CPU gains nothing (SmolLM2-135M, one
core, 2,048 tokens, best of 6: float32 3.68 s apart, 3.77 s fused; bfloat16 2.85 and 2.81 s; 2026-11-28). Forward only, on one device.

Shapes: I width of the input, O widths of all parts, T tokens of the probe, H width of the hidden state.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from miniplm.errors import first_line
from miniplm.models.devices import free_cached_memory, is_device_lost, is_out_of_memory
from miniplm.models.fp8 import DIMENSION_MULTIPLE
from miniplm.models.probing import ROUNDING, differences

_log = logging.getLogger("miniplm")


class FusedLinear(nn.Module):
    """The product of all parts, kept from the call of the first until all were called with that input."""

    def __init__(self, linear: nn.Linear, num_parts: int) -> None:
        super().__init__()
        self.linear: nn.Module = linear
        self._num_parts = num_parts
        self._num_left = 0
        self._inputs: Tensor | None = None
        self._outputs: Tensor | None = None

    def take(self, inputs: Tensor, start: int, stop: int) -> Tensor:
        """Columns `start` to `stop` (..., stop - start) of the product with an input (..., I); made anew for any other tensor than the last."""
        if self._outputs is None or self._inputs is not inputs:
            self._inputs, self._outputs, self._num_left = inputs, self.linear(inputs), self._num_parts
        columns = self._outputs[..., start:stop]
        self._num_left -= 1
        if self._num_left == 0:
            self._inputs = self._outputs = None
        return columns


class LinearPart(nn.Module):
    """One of the layers, in its old place."""

    def __init__(self, fused: FusedLinear, start: int, stop: int) -> None:
        super().__init__()
        self.fused, self.start, self.stop = fused, start, stop

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (..., stop - start) of inputs (..., I)."""
        return self.fused.take(inputs, self.start, self.stop)

    @property
    def weight(self) -> Tensor:
        """Its own rows (stop - start, I), for a body that looks at them; none where the product is made in fp8."""
        weight: Tensor = self.fused.linear.weight[self.start : self.stop]  # type: ignore[index]
        return weight


@torch.no_grad()
def fuse_linears(body: nn.Module) -> int:
    """Makes one product of sibling layers that are given the same input, wherever a body has them; returns how many products.

    0, and the layers are as they were, where the body then fails or computes something else. The weights exist once: beside
    them there is at most one product's at a time.
    """
    expected_TH, groups = _find_groups(body)
    for parent, names in groups:
        _fuse(parent, names)
    if not groups:
        return 0
    # What the separate weights lay in goes back to the device.
    free_cached_memory()
    try:
        # In the mean: for a rounding error a router of low precision may send a token elsewhere, but not all tokens.
        difference = differences(_run_probe(body), expected_TH).mean().item()
        reason = "" if difference <= ROUNDING[expected_TH.dtype] else f"hidden states differ by {difference:.2g} of themselves"
    except Exception as error:  # a layer's weight is asked for, or the columns cannot be viewed as the body wants them
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        reason = first_line(error)
    if not reason:
        return len(groups)
    _log.info("%s keeps its linear layers apart: %s", type(body).__name__, reason)
    for parent, names in groups:
        _split(parent, names)
    return 0


def count_products(body: nn.Module) -> int:
    """How many products of a body stand for several layers."""
    return sum(isinstance(module, FusedLinear) for module in body.modules())


def _find_groups(body: nn.Module) -> tuple[Tensor, list[tuple[nn.Module, list[str]]]]:
    """Hidden states (T, H) of a probe, and those layers of one parent that were given the very same tensors in it."""
    # A weight that two layers share would exist twice once one of them is part of a product.
    uses = Counter(id(parameter) for _, parameter in body.named_parameters(remove_duplicate=False))
    places = [
        (parent, name, child)
        for parent in body.modules()
        for name, child in parent.named_children()
        if _is_plain(child) and uses[id(child.weight)] == 1
    ]
    # The tensors themselves, so that none is freed and another has its identity.
    given: dict[nn.Module, list[Any]] = {child: [] for _, _, child in places}

    def remember(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # A layer that is given more than one thing is like no other: a new object is identical to none.
        given[layer].append(inputs[0] if len(inputs) == 1 else object())

    hooks = [child.register_forward_pre_hook(remember) for _, _, child in places]
    try:
        hidden_TH = _run_probe(body)
    finally:
        for hook in hooks:
            hook.remove()
    groups: dict[Any, tuple[nn.Module, list[str]]] = {}
    for parent, name, child in places:
        if given[child]:
            kind = (child.weight.dtype, child.weight.device, child.bias is None)
            key = (id(parent), tuple(map(id, given[child])), kind)
            groups.setdefault(key, (parent, []))[1].append(name)
    return hidden_TH, [group for group in groups.values() if len(group[1]) > 1]


def _is_plain(layer: Any) -> bool:
    """A linear layer of which nothing but the product is wanted, by its `forward` alone."""
    return (
        type(layer) is nn.Linear
        and not layer.weight.requires_grad
        # Each part then begins where kernels want a row to begin, and fp8 takes the same layers, fused or not.
        and layer.out_features % DIMENSION_MULTIPLE == 0
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and "forward" not in vars(layer)  # as accelerate replaces it
    )


def _fuse(parent: nn.Module, names: list[str]) -> None:
    layers: list[nn.Linear] = [getattr(parent, name) for name in names]
    linear = _make_linear(torch.cat([layer.weight for layer in layers]), _join_biases(layers))
    fused, start = FusedLinear(linear.train(layers[0].training), len(layers)), 0
    for name, layer in zip(names, layers, strict=True):
        setattr(parent, name, LinearPart(fused, start, start + layer.out_features))
        start += layer.out_features


def _join_biases(layers: list[nn.Linear]) -> Tensor | None:
    """Their biases one after the other (O,), None where they have none (`_find_groups` keeps the two kinds apart)."""
    return None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])


def _split(parent: nn.Module, names: list[str]) -> None:
    """Layers of their own again, whose weights are rows of the one that there is."""
    for name in names:
        part: Any = getattr(parent, name)
        linear, rows = part.fused.linear, slice(part.start, part.stop)
        setattr(parent, name, _make_linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows]).eval())


def _make_linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    # On the meta device first, so that no memory is taken, and no random number drawn, for weights that are replaced at once.
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O, requires_grad=False)
    return linear


def _run_probe(body: Any) -> Tensor:
    """Hidden states (T, H) of eight tokens."""
    token_ids_1T = torch.arange(1, 9, device=next(body.parameters()).device)[None]
    hidden_TH: Tensor = body(input_ids=token_ids_1T, use_cache=False).last_hidden_state[0]
    return hidden_TH
