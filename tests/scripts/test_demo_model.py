"""The converted teacher is the real model: it finds English likely, and shuffled English not."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.demo_model import FOLDER

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = "The capital of France is Paris. The capital of Germany is Berlin, and the capital of Italy is Rome."


@pytest.mark.real
def test_the_converted_teacher_models_english() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / FOLDER)
    model = AutoModelForCausalLM.from_pretrained(ROOT / FOLDER).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0

    token_ids = tokenizer(TEXT, return_tensors="pt").input_ids  # [1, N]
    shuffled = token_ids[:, torch.randperm(token_ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        nll, shuffled_nll = (model(input_ids=ids, labels=ids).loss.item() for ids in (token_ids, shuffled))
    # A model of uniform guesses has ln 49152 = 10.8 nats a token.
    assert nll < 2.5
    assert shuffled_nll > nll + 2
