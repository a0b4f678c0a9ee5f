"""Attention in rows: what a model gives with its masks, without one, also in the graph that a compiler is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import build_model
from miniplm.models.attention import ROWS, use_attention_in_rows
from miniplm.models.loading import split_head
from miniplm.training.losses import sum_language_model_loss
from miniplm.training.optimization import Optimization
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_sequences
from tests.miniplm.made_zoo import VOCAB_SIZE as ZOO_VOCAB_SIZE
from tests.miniplm.made_zoo import make_family

TOKENS_BT = torch.arange(2 * 24).reshape(2, 24) * 7 % ZOO_VOCAB_SIZE


def run(body: Any) -> torch.Tensor:
    hidden: torch.Tensor = body(input_ids=TOKENS_BT, use_cache=False).last_hidden_state
    return hidden


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2", "gpt_neox", "qwen3_moe"])
def test_hidden_states_and_gradients_without_a_mask_are_those_with_one(family: str) -> None:
    body, _ = split_head(make_family(family))
    body.requires_grad_(True)
    expected = run(body)
    expected.square().sum().backward()
    wanted = {name: weight.grad.clone() for name, weight in body.named_parameters() if weight.grad is not None}
    body.zero_grad()
    assert use_attention_in_rows(body, ZOO_VOCAB_SIZE) == ""
    found = run(body)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name, weight in body.named_parameters():
        if name in wanted:
            torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-3, atol=1e-3 * wanted[name].abs().max().item())


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma2", {}, "capped logits"),
        # Its window is in the mask alone.
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, "window"),
        ("mamba", {}, ""),
    ],
)
def test_a_family_that_needs_its_mask_keeps_its_own_attention(family: str, changes: dict[str, Any], reason: str) -> None:
    body, _ = split_head(make_family(family, **changes))
    own, expected = body.config._attn_implementation, run(body)
    assert reason in use_attention_in_rows(body, ZOO_VOCAB_SIZE)
    assert body.config._attn_implementation == own or family == "mamba"
    torch.testing.assert_close(run(body), expected)


def test_a_compiled_student_is_given_no_mask_and_its_config_names_no_attention_of_ours(tmp_path: Path) -> None:
    """Under torch.compile transformers makes a mask of all pairs of tokens, and with one PyTorch has no FlashAttention."""
    model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1)
    config = TrainingConfig(steps=5, batch_size=8, micro_batch_size=2, learning_rate=1e-2, warmup_steps=0, compile=True)
    Optimization(model, sum_language_model_loss, config, "float32", EOS, max_tokens=17)
    assert model.config._attn_implementation == ROWS
    calls: list[dict[str, Any]] = []

    def capture(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        calls.extend(dict(node.kwargs) for node in graph.graph.nodes if "scaled_dot_product_attention" in str(node.target))
        return graph.forward

    body, _ = split_head(model)
    torch._dynamo.reset()
    torch.compile(body, backend=capture)(input_ids=torch.ones((2, 16), dtype=torch.long), use_cache=False)
    assert len(calls) == model.config.num_hidden_layers
    assert all(call["attn_mask"] is None and call["is_causal"] for call in calls)
    model.save_pretrained(tmp_path)
    assert "miniplm" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"


def test_the_loss_of_a_step_without_masks_is_that_with_them() -> None:
    sequences = [np.array(sequence, np.uint16) for sequence in make_sequences(8)]
    results = []
    for drop_masks in (False, True):
        model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1)
        if drop_masks:
            assert use_attention_in_rows(split_head(model)[0], VOCAB_SIZE) == ""
        config = TrainingConfig(steps=5, batch_size=8, micro_batch_size=2, learning_rate=1e-2, warmup_steps=0)
        results.append(Optimization(model, sum_language_model_loss, config, "float32", EOS).compute_gradient(sequences))
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].gradient_norm == pytest.approx(results[1].gradient_norm, rel=1e-4)
