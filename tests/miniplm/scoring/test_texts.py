"""Texts scored without a run, held against transformers' own loss on the same windows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import miniplm
from miniplm.errors import ConfigError, TokenizerError
from tests.tiny_runs import make_documents, make_teacher, make_tokenizer

TEXTS = ["The one was in the wood.", "", "a", "of the and to " * 40]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("teacher", "reference")):
        tokenizer = make_tokenizer(folder / name, make_documents(40))
        make_teacher(folder / name, len(tokenizer), seed)
    return str(folder / "teacher"), str(folder / "reference")


def measure(folder: str, text: str) -> tuple[float, int]:
    """Sum of the NLL of a short text and its number of targets, by the model's own loss."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).double()
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    num = ids.shape[1] - 1
    with torch.no_grad():
        return float(model(ids, labels=ids).loss) * num, num


def test_nlls_are_the_models_own(models: tuple[str, str]) -> None:
    table = miniplm.score(TEXTS, *models, dtype="float32").to_pydict()
    for row in (0, 2):
        teacher, reference = measure(models[0], TEXTS[row]), measure(models[1], TEXTS[row])
        assert table["num_scored_tokens"][row] == teacher[1]
        assert table["teacher_nll"][row] == pytest.approx(teacher[0] / teacher[1], abs=1e-4)
        assert table["difference_score"][row] == pytest.approx((reference[0] - teacher[0]) / teacher[1], abs=2e-4)
    assert [column[1] for column in table.values()] == [0, 0, None, None, None]


def test_a_long_text_is_cut_into_equal_windows_and_order_does_not_matter(models: tuple[str, str]) -> None:
    cut = miniplm.score(TEXTS, *models, sequence_length=16, dtype="float32")
    num_tokens, num_scored = cut["num_tokens"][3].as_py(), cut["num_scored_tokens"][3].as_py()
    # One token of each window of at most 17 is no target.
    assert num_scored == num_tokens - -(-num_tokens // 17)
    turned = miniplm.score(pa.chunked_array([TEXTS[::-1]]), *models, sequence_length=16, dtype="float32")
    for name in cut.column_names:
        assert turned[name].to_pylist()[::-1] == pytest.approx(cut[name].to_pylist(), abs=1e-5)


def test_what_is_no_text_or_another_vocabulary_is_refused(models: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows 1, 2 are no texts \(row 1 is a NoneType\)"):
        miniplm.score(["a", None, 3], *models)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"rows 1 hold half of a character"):
        miniplm.score(["a", "\ud800"], *models)
    for whole in ({"text": ["a"]}, pa.table({"text": ["a"]}), None):
        with pytest.raises(ConfigError, match=f"texts is a {type(whole).__name__}; give a list of texts, or one column"):
            miniplm.score(whole, *models)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        miniplm.score(["a"], *map(Path, models), device="tpu")
    with pytest.raises(ConfigError, match="texts is one string"):
        miniplm.score("a text", *models)
    other = make_tokenizer(tmp_path / "other", make_documents(40), vocab_size=300)
    make_teacher(tmp_path / "other", len(other))
    with pytest.raises(TokenizerError, match="have no vocabulary in common"):
        miniplm.score(["a"], models[0], str(tmp_path / "other"))
    assert miniplm.score([], *models).num_rows == 0
