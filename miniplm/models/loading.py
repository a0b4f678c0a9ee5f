"""Loads a model to score: body and head apart, so that logits are made a block at a time, and checked to be right.

Shapes: B sequences, T tokens, N tokens of any kind, H width of the hidden state, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniplm.errors import ModelError, reading_users_file
from miniplm.models.configuration import read_config
from miniplm.models.devices import describe_memory, is_out_of_memory, torch_dtype
from miniplm.models.files import check_finite_weights
from miniplm.models.fp8 import DIMENSION_MULTIPLE, FP8_DTYPES, HEAD_TOO, convert_to_fp8
from miniplm.models.fused_linear import fuse_linears
from miniplm.models.lengths import choose_probe_length, depends_on_length, find_max_positions, forget_seen_lengths
from miniplm.models.nll import Head
from miniplm.models.packed_linear import can_pack, pack_linears
from miniplm.models.probing import check_causal, check_implementations
from miniplm.models.skeleton import check_all_loaded, read_skeleton

# What a batch's activations and the logits of a tile may take; the rest of a GPU is for weights.
_RESERVED_SHARE = 0.15
# A parameter's, while it is loaded: those of fp8 come as bfloat16 and are rounded layer by layer.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 2, "fp8-head": 2}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to score: `body` gives hidden states (B, T, H), `head` makes logits (N, V) of them.

    `max_positions` is the longest input in tokens, None where the family has no limit.
    """

    body: nn.Module
    head: Head
    device: torch.device
    vocab_size: int
    max_positions: int | None
    name: str
    # The attention implementation that transformers gave the model.
    own_attention: str = "sdpa"
    # Layers lie on several devices, computed one after the other.
    is_spread: bool = False
    # Where the numbers depend on the length of the padded batch, only sequences of one length may share a batch.
    needs_equal_lengths: bool = False
    # Tokens of a probe in which whatever happens at a distance in this model happens.
    probe_length: int = 16
    # Logits are made in fp8, of the head's weights rounded as the layers' are.
    has_fp8_head: bool = False


def load_model(
    folder: Path, dtype: str, device: torch.device, trust_remote_code: bool = False, will_compile: bool = False
) -> LoadedModel:
    """The model of a folder, in evaluation mode on `device`; on a GPU with layers of one input as one product, on a CPU with its linear
    layers packed, unless torch.compile is to see them.

    Raises what `load_causal_model` raises, and `ModelError` where body and head together do not give the model's own logits, a
    token sees later ones, or transformers computes the model in two ways that disagree.
    """
    model, device, is_spread = load_causal_model(folder, dtype, device, trust_remote_code)
    body, head = split_head(model)
    # Before any layer is replaced, so that what is found wrong is the model's and not of our making.
    with reading_users_file(
        folder, "does not compute", "its config.json may not be that of its weights; copy the model again", ModelError
    ):
        _check_head(folder, model, body, head)
        vocab_size, who = head.weight_VH.shape[0], f"model folder {folder}"
        check_causal(body, vocab_size, device, who, ModelError)
        check_implementations(model, body, vocab_size, device, who)
    # Where layers are spread, each has a hook of its own that carries its input.
    if device.type == "cuda" and not is_spread:
        fuse_linears(body)
    if dtype in FP8_DTYPES:
        _convert_to_fp8(folder, body, head.weight_VH.shape[1] if dtype == HEAD_TOO else None)
    elif not will_compile and can_pack(device, torch_dtype(dtype)):
        pack_linears(body)
    return LoadedModel(
        body=body,
        head=head,
        device=device,
        own_attention=model.config._attn_implementation,
        is_spread=is_spread,
        vocab_size=vocab_size,
        max_positions=find_max_positions(model.config),
        name=folder.name,
        needs_equal_lengths=depends_on_length(model.config),
        probe_length=choose_probe_length(model.config),
        has_fp8_head=dtype == HEAD_TOO,
    )


def load_causal_model(
    folder: Path, dtype: str, device: torch.device, trust_remote_code: bool = False
) -> tuple[Any, torch.device, bool]:
    """The whole transformers model of a folder, in evaluation mode; the device that takes its inputs; whether it is spread over several.

    Raises `ModelError` where a file is missing, damaged or unsafe, weights are missing, quantised or not finite, or the
    family is not known.
    """
    from transformers import AutoModelForCausalLM

    # Files are checked before anything is loaded: transformers fills what is missing with random numbers, and says nothing of NaN.
    skeleton = read_skeleton(folder, trust_remote_code)
    check_finite_weights(folder, skeleton.weights)
    devices = place_model(skeleton.num_parameters, dtype, device)
    config = keep_stored_weights(read_config(folder, trust_remote_code))
    with reading_users_file(folder, "cannot be loaded as a causal language model", "copy the model again", ModelError):
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=torch_dtype(dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **({} if devices is None else {"device_map": "auto", "max_memory": devices}),
        )
    check_all_loaded(folder, info)
    model = model.eval().requires_grad_(False)
    forget_seen_lengths(model)
    if devices is None:
        model = _move(model, folder, device)
    else:
        # Inputs go where the first layer is; accelerate's hooks carry what it gives to the next.
        device = model.get_input_embeddings().weight.device
    return model, device, devices is not None


def keep_stored_weights(config: Any) -> Any:
    """Changes a configuration so that the weights of the model loaded with it stay as they are stored, and returns it.

    `rescale_prenorm_residual` of the Mamba family is about fresh weights; transformers (5.23) divides stored ones too.
    """
    if getattr(config, "rescale_prenorm_residual", False):
        config.rescale_prenorm_residual = False
    return config


def split_head(model: Any) -> tuple[nn.Module, Head]:
    """The body that gives `last_hidden_state`, and the head that makes its logits.

    The head holds the model's live weights, so that it can be trained through.
    Raises `ModelError` where the model has no linear output embedding.
    """
    body = model.base_model
    if body is model and isinstance(getattr(model, "model", None), nn.Module):
        body = model.model  # Llama 4's text model is not where its prefix says
    output = model.get_output_embeddings()
    if body is model or output is None or not isinstance(getattr(output, "weight", None), torch.Tensor):
        raise ModelError(f"{type(model).__name__} has no body and linear head that could be run apart; it cannot be used here")
    config = model.config.get_text_config(decoder=True)
    # Cohere multiplies its logits by `logit_scale`, Granite divides them by `logits_scaling`; Gemma 2, RecurrentGemma and xLSTM cap them.
    scale = getattr(config, "logit_scale", None)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale = 1.0 / divisor
    caps = (getattr(config, key, None) for key in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"))
    return body, Head(output.weight, getattr(output, "bias", None), scale, next((cap for cap in caps if cap is not None), None))


def _move(model: Any, folder: Path, device: torch.device) -> Any:
    try:
        return model.to(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"model folder {folder} does not fit on {device} ({describe_memory(device)}); use a smaller dtype, a larger GPU, "
            "or scoring.device: auto, which spreads it over the GPUs of the machine"
        ) from error


@torch.no_grad()
def _convert_to_fp8(folder: Path, body: nn.Module, head_width: int | None) -> None:
    if head_width is not None and head_width % DIMENSION_MULTIPLE:
        raise ModelError(
            f"model folder {folder} has a head of width {head_width}, and fp8 multiplies widths that are multiples of {DIMENSION_MULTIPLE}; "
            "use dtype fp8, which leaves the head in bfloat16"
        )
    if convert_to_fp8(body) == 0:
        raise ModelError(f"model folder {folder} has no linear layer that could be computed in fp8; use dtype bfloat16")
    try:
        body(input_ids=torch.ones((1, 8), dtype=torch.long, device=next(body.parameters()).device), use_cache=False)
    except AttributeError as error:
        # Mamba and its like take a layer's weight for themselves.
        raise ModelError(
            f"model folder {folder} uses the weights of its layers in a way that fp8 does not allow ({error}); use dtype bfloat16"
        ) from error


@torch.inference_mode()
def _check_head(folder: Path, model: Any, body: nn.Module, head: Head) -> None:
    """Body and head must give the model's own logits; a family with a step of its own in between is refused, not scored wrong."""
    vocab_size = head.weight_VH.shape[0]
    device = head.weight_VH.device
    token_ids_1T = (torch.arange(min(16, find_max_positions(model.config) or 16), device=device) * 7919 % vocab_size)[None, :]
    hidden_TH = body(input_ids=token_ids_1T, use_cache=False).last_hidden_state[0].to(device)
    if hidden_TH.shape[1] != head.weight_VH.shape[1]:
        raise ModelError(
            f"model folder {folder} ({type(model).__name__}) makes its logits in a way that is not known here: its hidden states are "
            f"{hidden_TH.shape[1]} wide and its head takes {head.weight_VH.shape[1]}; it cannot be scored without storing all logits"
        )
    ours_TV = head.logits(hidden_TH)
    theirs_TV = model(input_ids=token_ids_1T, use_cache=False).logits[0].float().to(device)
    if not theirs_TV.isfinite().all():
        raise ModelError(
            f"model folder {folder} gives logits that are NaN or infinite, though its weights are finite: its config.json is not that of its "
            "weights, or the dtype is too narrow for them. Copy the model again, or use dtype float32 or bfloat16"
        )
    # A share of the largest logit. In bfloat16 (8 bits) some eight roundings: the whole model may cast its logits at another place.
    tolerance = (1e-4 if head.weight_VH.dtype == torch.float32 else 3e-2) * max(1.0, theirs_TV.abs().max().item())
    difference = (ours_TV - theirs_TV).abs().max().item()
    if not difference <= tolerance:  # so that NaN is refused too
        raise ModelError(
            f"model folder {folder} ({type(model).__name__}) makes its logits in a way that is not known here: body and head apart "
            f"differ from the whole model by {difference:.3g}; it cannot be scored without storing all logits"
        )


def place_model(num_parameters: int, dtype: str, device: torch.device) -> dict[int, int] | None:
    """None where the weights fit on `device`; else bytes for weights on each GPU, from which accelerate lays out the layers.

    Only `cuda` without a number may be spread: who names one GPU wants that one.
    """
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
        return None
    free = {index: int(torch.cuda.mem_get_info(index)[0] * (1 - _RESERVED_SHARE)) for index in range(torch.cuda.device_count())}
    return spread_weights(num_parameters * _BYTES[dtype], free)


def spread_weights(num_bytes: int, free_bytes: dict[int, int]) -> dict[int, int] | None:
    """None where the first GPU holds all; else what each GPU takes, as few of them as do. Raises `ModelError` where all are too small."""
    if num_bytes <= free_bytes[min(free_bytes)]:
        return None
    taken: dict[int, int] = {}
    for index in sorted(free_bytes):
        taken[index] = free_bytes[index]
        # One layer's worth a GPU may stay empty, as layers are not cut.
        if sum(taken.values()) * 0.95 >= num_bytes:
            return taken
    # What does not fit would be left on the host or the disk, and fetched for every batch.
    raise ModelError(
        f"the model has {num_bytes / 2**30:.1f} GiB of weights, and the {len(taken)} GPUs of this machine have "
        f"{sum(taken.values()) / 2**30:.1f} GiB for them; use a smaller dtype or a larger machine"
    )
