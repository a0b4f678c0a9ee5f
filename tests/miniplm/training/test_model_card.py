"""The card of a trained model: what it was made of, how, and how good it is, as a hub reads it."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from miniplm.records.manifests import CheckpointMetrics, DomainLoss, Evaluation, TaskResult, TrainingManifest
from miniplm.storage.root import Storage
from miniplm.training.exports import export_model, find_export
from miniplm.training.loop import train_model
from miniplm.training.model_card import CARD, make_model_card, write_model_card
from tests.miniplm.made_trainings import make_plan, make_selection, make_training_corpus

TARGET = "runs/r/students/s"
METRICS = [
    CheckpointMetrics(step=step, loss=8.0 / step, learning_rate=step / 1000, gradient_norm=1.0, num_tokens=100, seconds=0.5)
    for step in range(1, 26)
]
EVALUATION = Evaluation(
    corpus_id="c-1",
    weights_digest="sha256:1",
    overall=DomainLoss(nats_per_token=2.5, bits_per_byte=1.25, num_scored_tokens=3000, num_sequences=30, nats_standard_error=0.04),
    domains={"law | code\n": DomainLoss(nats_per_token=2.0, bits_per_byte=1.0, num_scored_tokens=1000, num_sequences=10)},
    seconds=1.0,
    tasks={
        "arc_easy": TaskResult(accuracy=0.5, standard_error=0.02, metric="acc_norm", num_documents=100),
        "boolq": TaskResult(accuracy=0.25, standard_error=None, metric="acc", num_documents=1),
    },
)


def make_manifest() -> TrainingManifest:
    return TrainingManifest(
        training_id="miniplm-qwen-tiny-0123",
        recipe={
            "method": "miniplm",
            "architecture": {"model_type": "qwen2", "hidden_size": 64},
            "vocab_size": 128,
            "max_positions": 65,
            "tokenizer_digest": "sha256:t",
            "data": {"candidate": "d1", "selection": "d2"},
            "training": {"learning_rate": 0.001, "steps": 25},
        },
        checkpoint="x",
        weights_digest="sha256:1",
        num_parameters=1234567,
        num_steps=25,
        num_tokens=2500,
        num_sequences=100,
        final_loss=0.32,
        seconds=5400.0,
        device="cpu",
        data_ids={"corpus": "c-1", "selection": "s-1", "teacher": "m-t", "reference": "m-r"},
        versions={"torch": "2.13.0", "miniplm": "0"},
    )


def test_the_card_tells_data_method_configuration_curve_and_evaluation() -> None:
    text = make_model_card("small", make_manifest(), METRICS, EVALUATION)
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["miniplm", "qwen2"]
    results = {(result.dataset_type, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results == {
        ("heldout", "nats_per_token"): 2.5,
        ("heldout", "bits_per_byte"): 1.25,
        ("arc_easy", "acc_norm"): 0.5,
        ("boolq", "acc"): 0.25,
    }
    for line in (
        "# small",
        "| corpus | `c-1` |",
        "| selection | `s-1` |",
        "| teacher | `m-t` |",
        "| reference | `m-r` |",
        "| digest of selection | `d2` |",
        "| time | 1.50 h on cpu |",
        # steps 1 to 3: (8 + 4 + 8 / 3) / 3
        "| 1 to 3 | 300 | 4.8889 | 0.003 |",
        "| 25 | 2,500 | 0.3200 | 0.025 |",
        "| all | 2.5000 ± 0.0400 | 1.2500 | 3,000 |",
        "| law \\| code | 2.0000 | 1.0000 | 1,000 |",
        "| arc_easy | 50.00 ± 2.00 | acc_norm | 100 |",
        "| boolq | 25.00 | acc | 1 |",
        "| average | 37.50 |  |  |",
        "| torch | 2.13.0 |",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
    ):
        assert line in text.splitlines(), line
    configuration = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert configuration["training"] == {"learning_rate": 0.001, "steps": 25}
    assert "1,234,567 parameters" in text
    assert text == make_model_card("small", make_manifest(), METRICS, EVALUATION)


def test_a_model_that_is_not_evaluated_says_so() -> None:
    text = make_model_card("small", make_manifest(), METRICS[:1])
    assert "Not evaluated yet." in text
    assert ModelCard(text).data.eval_results is None


def test_an_exported_model_has_its_card_which_may_change_when_it_is_evaluated(storage: Storage) -> None:
    corpus = make_training_corpus(storage)
    plan = make_plan(corpus, "pretrain", make_selection(storage, corpus, [[0, 3], [1], [2, 8]]), steps=2)
    manifest = train_model(storage, plan)
    assert manifest.data_ids == {"corpus": corpus.corpus_id, "selection": "s", "teacher": "t", "reference": "r"}
    export_model(storage, manifest, TARGET)
    path = Path(storage.path(f"{TARGET}/{CARD}"))
    assert "Not evaluated yet." in path.read_text()
    assert "| selection | `s` |\n" in path.read_text()
    write_model_card(storage, TARGET, manifest, EVALUATION)
    assert "| all | 2.5000 ± 0.0400 |" in path.read_text()
    assert find_export(storage, TARGET) == manifest
    export_model(storage, manifest, TARGET)
    assert "| all | 2.5000 ± 0.0400 |" in path.read_text(), "exporting again took the evaluation from the card"
