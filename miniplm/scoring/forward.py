"""One forward pass as a device runs it best: the layout of a batch, the compiled body, the kernel of the head.

Everything that could be wrong for an odd model is tried on it first: a layout whose hidden states are not those of
sequences scored alone is not used, and a body that does not compile runs as it is; what was found is said in `notes`.

Shapes: R rows, T tokens a row, M = R * T tokens computed, N tokens of segments, H width of the hidden state, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from miniplm.errors import ModelError, first_line
from miniplm.models.attention import NAME, PROOF, register_attention, set_attention
from miniplm.models.compilation import CompiledCall, fix_shape, vary_shape
from miniplm.models.devices import describe_device, is_device_lost, is_out_of_memory
from miniplm.models.loading import LoadedModel
from miniplm.models.probing import ROUNDING, differences, make_probe
from miniplm.scoring.batches import Layout
from miniplm.scoring.heads import HeadKernel, choose_head_kernel
from miniplm.scoring.model_inputs import ModelInputs

Compile = Literal["auto"] | bool

_log = logging.getLogger("miniplm")

_HEAD_CHOICES = "head-kernels.json"


class ForwardPass:
    """Computes NLL (M,) float32 of `ModelInputs`. `layout` says how its batches are to be laid out."""

    def __init__(
        self, model: LoadedModel, compile: Compile = "auto", cache_folder: Path | None = None, head_kernel: str | None = None
    ) -> None:
        """`cache_folder` keeps the choice of the head's kernel from one process to the next; `head_kernel` takes one by name."""
        self.model = model
        self.notes: list[str] = []
        # Where the numbers depend on the length of the padded batch, only sequences of one length may share a batch.
        self.needs_equal_lengths = model.needs_equal_lengths
        self.layout: Layout = self._find_layout()
        body_too, head_too = decide_compiling(compile, self.layout, model.device.type, model.is_spread)
        self._compiled = CompiledCall(model.body, model.name, self.note) if body_too else None
        self.head = self._choose_head(head_too, cache_folder, head_kernel)
        for note in self.head.notes:
            _log.info(note)

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None and self._compiled.is_compiled

    @property
    def has_static_shapes(self) -> bool:
        """Whether batches are best filled up to one shape, so that nothing is compiled twice."""
        return self.is_compiled and self.layout == "flat"

    @torch.no_grad()
    def __call__(self, inputs: ModelInputs) -> Tensor:
        """NLL (M,) float32, that of padding and filling included: whoever sums them leaves those out."""
        hidden_MH = self.compute_states(inputs)
        return self.head.nll(hidden_MH, inputs.targets_M.to(hidden_MH.device))

    @torch.no_grad()
    def compute_states(self, inputs: ModelInputs) -> Tensor:
        """The last hidden states (M, H), where the head is and as it takes them."""
        hidden_RTH = self._run_body(_body_arguments(inputs))
        # Mamba keeps its hidden state in float32, and the last layer may lie on another device than the head.
        weight_VH = self.model.head.weight_VH
        return hidden_RTH.flatten(0, 1).to(weight_VH.device, weight_VH.dtype)

    def _run_body(self, arguments: dict[str, Any]) -> Tensor:
        """Hidden states (R, T, H)."""
        if self._compiled is None:
            result: Tensor = self.model.body(**arguments).last_hidden_state
            return result
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                # How many segments a batch has changes all the time, how many tokens never.
                (vary_shape if name.startswith("cu_seq_lens") else fix_shape)(value)
        hidden: Tensor = self._compiled(**arguments).last_hidden_state
        return hidden

    def note(self, text: str) -> None:
        """Says once what users should know of how this model runs."""
        self.notes.append(text)
        _log.warning(text)

    @torch.no_grad()
    def _find_layout(self) -> Layout:
        """`flat` where segments in one row give the hidden states that each gives alone, else `rows`.

        State-space models and models with an attention of their own carry something over from one segment to the next. Raises
        `ModelError` where rows do not give those hidden states either, not even rows of one length.
        """
        model, body = self.model, cast(Any, self.model.body)
        # Another scorer of the same model may have left its attention there.
        body.set_attn_implementation(model.own_attention)
        # The first shows what happens at a distance, the second what that leaves behind, the last a text of one token.
        lengths = (model.probe_length, min(9, model.probe_length), 1)
        pieces = [make_probe(model.vocab_size, length, model.device) for length in lengths]
        alone = [body(input_ids=piece[None], use_cache=False).last_hidden_state[0] for piece in pieces]
        # Float32 has no kernel for segments on a GPU; there it is for calibration only.
        if not (self.needs_equal_lengths or (model.device.type == "cuda" and body.dtype == torch.float32)):
            reason = self._try_flat(pieces, torch.cat(alone))
            if not reason:
                return "flat"
            body.set_attn_implementation(model.own_attention)
            _log.info("%s is scored in padded rows, not in one row of segments: %s", model.name, reason)
        self._find_rows(pieces, alone)
        return "rows"

    def _try_flat(self, pieces: list[Tensor], expected_NH: Tensor) -> str:
        """Why this model cannot be computed over segments (T,) in one row; empty where it can, and its attention is then set to do so."""
        body = cast(Any, self.model.body)
        register_attention()
        try:
            # A mask's window may be longer than what can be tried, so it is proved first.
            set_attention(body, PROOF)
            body(**_body_arguments(_make_inputs(pieces[:1])))
            set_attention(body, NAME)
            together_NH = body(**_body_arguments(_make_inputs(pieces))).last_hidden_state[0]
        except Exception as error:
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            return first_line(error)
        difference = differences(together_NH, expected_NH).max().item()
        return "" if difference <= ROUNDING[body.dtype] else f"hidden states differ by {difference:.2g} of themselves"

    def _find_rows(self, pieces: list[Tensor], alone: list[Tensor]) -> None:
        """Finds whether padded rows of several lengths, or of one length only, give what each piece (T,) gives alone, (T, H)."""
        model, body = self.model, cast(Any, self.model.body)
        longest = len(pieces[0])

        def differ(rows: list[Tensor], expected: list[Tensor]) -> float:  # (T,), and (T, H) of each
            padded_RT = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
            found_RTH = body(input_ids=padded_RT, use_cache=False).last_hidden_state
            together_NH = torch.cat([found_RTH[row, : len(hidden)] for row, hidden in enumerate(expected)])
            return differences(together_NH, torch.cat(expected)).nan_to_num(torch.inf).max().item()

        if not self.needs_equal_lengths and (difference := differ(pieces, alone)) > ROUNDING[body.dtype]:
            self.needs_equal_lengths = True
            _log.info("%s is scored in rows of one length: with padding its states differ by %.2g", model.name, difference)
        if not self.needs_equal_lengths:
            return
        other = make_probe(model.vocab_size, longest, model.device, shift=5)
        expected = [alone[0], body(input_ids=other[None], use_cache=False).last_hidden_state[0]]
        # Of low precision a few tokens may differ by what a router rounds.
        if (difference := differ([pieces[0], other], expected)) > ROUNDING[body.dtype] and body.dtype == torch.float32:
            raise ModelError(
                f"model {model.name} ({type(body).__name__}) cannot be scored: a text's hidden states change with the texts that are "
                f"computed beside it, by {difference:.2g} of themselves. Use another model"
            )

    @torch.no_grad()
    def _choose_head(self, compile_allowed: bool, cache_folder: Path | None, only: str | None) -> HeadKernel:
        head, in_fp8, path = (
            self.model.head,
            self.model.has_fp8_head,
            None if cache_folder is None else cache_folder / _HEAD_CHOICES,
        )
        device = head.weight_VH.device
        if only is not None or path is None or device.type != "cuda":
            return choose_head_kernel(head, compile_allowed, only, in_fp8)
        key = f"{describe_device(device)}, torch {torch.__version__}, {'fp8' if in_fp8 else head.weight_VH.dtype}, {tuple(head.weight_VH.shape)}, {compile_allowed}"
        choices = _read_choices(path)
        if key in choices:
            try:
                return choose_head_kernel(head, compile_allowed, choices[key], in_fp8)
            except ValueError as error:
                self.note(f"the head kernel chosen earlier does not work any more: {error}; another one is chosen")
        kernel = choose_head_kernel(head, compile_allowed, in_fp8=in_fp8)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole: two processes of a machine choose at the same time, and either choice is good.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as file:
            json.dump(_read_choices(path) | {key: kernel.name}, file, indent=2)
        os.replace(file.name, path)
        return kernel


def decide_compiling(compile: Compile, layout: Layout, device_type: str, is_spread: bool) -> tuple[bool, bool]:
    """Whether the body is compiled, and whether the head's tiles may be.

    Segments in one row are filled up to one shape. Padded rows are as many and as long as a batch happens to be, and each shape
    would cost a graph of its own, many seconds for a second's work: whoever wants that says `true`. Tiles of a head have one shape
    in any layout.
    """
    if compile != "auto":
        return compile, compile
    pays = device_type == "cuda" and not is_spread
    return pays and layout == "flat", pays


def _read_choices(path: Path) -> dict[str, str]:
    """The kernels chosen by earlier processes; a file that cannot be read is as good as none, for it is made again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _make_inputs(pieces: list[Tensor]) -> ModelInputs:
    """The pieces (T,) as segments of one row."""
    device, lengths = pieces[0].device, [len(piece) for piece in pieces]
    borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    return ModelInputs(torch.cat(pieces)[None], torch.cat(pieces), positions, borders, max(lengths))


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
