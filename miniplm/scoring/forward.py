"""One forward pass as a device runs it best: the layout of a batch, the compiled body, the kernel of the head.

Everything that could be wrong for an odd model is tried on it first: a layout whose hidden states are not those of
sequences scored alone is not used, and a body that does not compile runs as it is; what was found is said in `notes`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from miniplm.errors import first_line
from miniplm.models.devices import describe_device, is_device_lost, is_out_of_memory
from miniplm.models.loading import LoadedModel
from miniplm.scoring.attention import NAME, register_segment_attention
from miniplm.scoring.batches import Layout
from miniplm.scoring.heads import HeadKernel, choose_head_kernel
from miniplm.scoring.model_inputs import ModelInputs

Compile = Literal["auto"] | bool

_log = logging.getLogger("miniplm")

# Largest difference of a token's hidden state, as a share of what tells it from the others, that is rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
_HEAD_CHOICES = "head-kernels.json"


class ForwardPass:
    """Computes NLL (M,) float32 of `ModelInputs`. `layout` says how its batches are to be laid out."""

    def __init__(
        self, model: LoadedModel, compile: Compile = "auto", cache_folder: Path | None = None, head_kernel: str | None = None
    ) -> None:
        """`cache_folder` keeps the choice of the head's kernel from one process to the next; `head_kernel` takes one by name."""
        self.model = model
        self.notes: list[str] = []
        self.layout: Layout = self._find_layout()
        wanted = compile is True or (compile == "auto" and model.device.type == "cuda" and not model.is_spread)
        self._compiled: Callable[..., Any] | None = torch.compile(model.body) if wanted else None
        self.head = self._choose_head(wanted, cache_folder, head_kernel)
        for note in self.head.notes:
            _log.info(note)

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    @property
    def has_static_shapes(self) -> bool:
        """Whether batches are best filled up to one shape, so that nothing is compiled twice."""
        return self.is_compiled and self.layout == "flat"

    @torch.no_grad()
    def __call__(self, inputs: ModelInputs) -> Tensor:
        hidden_RTH = self._run_body(_body_arguments(inputs))
        # Mamba keeps its hidden state in float32, and the last layer may lie on another device than the head.
        weight_VH = self.model.head.weight_VH
        hidden_MH = hidden_RTH.flatten(0, 1).to(weight_VH.device, weight_VH.dtype)
        return self.head.nll(hidden_MH, inputs.targets_M.to(weight_VH.device))

    def _run_body(self, arguments: dict[str, Any]) -> Tensor:
        if self._compiled is not None:
            try:
                hidden: Tensor = self._compiled(**arguments).last_hidden_state
                return hidden
            except Exception as error:
                if is_out_of_memory(error) or is_device_lost(error):
                    raise
                # What is wrong with the model itself, the uncompiled body will raise again.
                self._compiled = None
                self.note(f"torch.compile failed on {self.model.name} ({first_line(error)}); it runs uncompiled, more slowly")
        result: Tensor = self.model.body(**arguments).last_hidden_state
        return result

    def note(self, text: str) -> None:
        """Says once what users should know of how this model runs."""
        self.notes.append(text)
        _log.warning(text)

    @torch.no_grad()
    def _find_layout(self) -> Layout:
        """`flat` where segments in one row give the hidden states that each gives alone, else `rows`.

        State-space models and models with an attention of their own carry something over from one segment to the next.
        """
        model, body = self.model, cast(Any, self.model.body)
        # Float32 has no kernel for segments on a GPU; there it is for calibration only.
        if model.needs_equal_lengths or (model.device.type == "cuda" and body.dtype == torch.float32):
            return "rows"
        register_segment_attention()
        # Another scorer of the same model may have left its attention there.
        body.set_attn_implementation(model.own_attention)
        lengths = (16, 9, 1)
        pieces = [torch.arange(1, length + 1, device=model.device) * 7919 % model.vocab_size for length in lengths]
        alone = [body(input_ids=piece[None], use_cache=False).last_hidden_state[0] for piece in pieces]
        borders = torch.tensor([0, 16, 25, 26], dtype=torch.int32, device=model.device)
        positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
        inputs = ModelInputs(torch.cat(pieces)[None], torch.cat(pieces), positions, borders, lengths[0])
        try:
            body.set_attn_implementation(NAME)
            if body.config._attn_implementation != NAME:
                raise NotImplementedError("this model does not take another attention")
            together = body(**_body_arguments(inputs)).last_hidden_state[0].float()
            expected = torch.cat(alone).float()
            # One channel that is large for all tokens, as trained models have, must not hide what differs.
            distinct = (expected - expected.mean(dim=0)).norm(dim=1).clamp(min=1e-6)
            difference = ((together - expected).norm(dim=1) / distinct).max().item()
            if difference <= _TOLERANCE[body.dtype]:
                return "flat"
            reason = f"hidden states differ by {difference:.2g} of themselves"
        except Exception as error:
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            reason = first_line(error)
        body.set_attn_implementation(model.own_attention)
        _log.info("%s is scored in padded rows, not in one row of segments: %s", model.name, reason)
        return "rows"

    @torch.no_grad()
    def _choose_head(self, compile_allowed: bool, cache_folder: Path | None, only: str | None) -> HeadKernel:
        head, path = self.model.head, None if cache_folder is None else cache_folder / _HEAD_CHOICES
        device = head.weight_VH.device
        if only is not None or path is None or device.type != "cuda":
            return choose_head_kernel(head, compile_allowed, only)
        key = f"{describe_device(device)}, torch {torch.__version__}, {head.weight_VH.dtype}, {tuple(head.weight_VH.shape)}, {compile_allowed}"
        choices = _read_choices(path)
        if key in choices:
            try:
                return choose_head_kernel(head, compile_allowed, choices[key])
            except ValueError as error:
                self.note(f"the head kernel chosen earlier does not work any more: {error}; another one is chosen")
        kernel = choose_head_kernel(head, compile_allowed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as file:
            json.dump(_read_choices(path) | {key: kernel.name}, file, indent=2)
        os.replace(file.name, path)
        return kernel


def _read_choices(path: Path) -> dict[str, str]:
    """The kernels chosen by earlier processes; a file that cannot be read is as good as none, for it is made again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _body_arguments(inputs: ModelInputs) -> dict[str, Any]:
    arguments: dict[str, Any] = {"input_ids": inputs.token_ids_RT, "use_cache": False}
    if inputs.borders is not None:
        arguments |= {
            "position_ids": inputs.position_ids_RT,
            "cu_seq_lens_q": inputs.borders,
            "cu_seq_lens_k": inputs.borders,
            "max_length_q": inputs.longest,
            "max_length_k": inputs.longest,
        }
    return arguments
