"""The README.md of a trained model, as model hubs show it: its data by their ids, method, configuration, curve and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from miniplm.config.methods import METHOD_FACTS
from miniplm.records.manifests import CheckpointMetrics, DomainLoss, Evaluation, TrainingManifest
from miniplm.records.stored import parse_metrics
from miniplm.storage.root import Storage

CARD = "README.md"
_METRICS = "metrics.jsonl"
# Rows of the curve: people look at a card, and the loss of each step lies beside it.
_MOST_STRETCHES = 10

_REFERENCE = "language modelling on the reference split: the small model that Difference Sampling compares the teacher with"

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""


def _describe_method(method: str) -> str:
    if method == "reference":
        return _REFERENCE
    return METHOD_FACTS[method].card if method in METHOD_FACTS else method


def write_model_card(storage: Storage, folder: str, training: TrainingManifest, evaluation: Evaluation | None = None) -> None:
    """Publishes the card of the model in a folder, which has its metrics already, in place of an earlier card."""
    metrics = parse_metrics(storage.read_bytes(f"{folder}/{_METRICS}"))
    card = make_model_card(folder.rsplit("/", 1)[-1], training, metrics, evaluation)
    storage.write_bytes(f"{folder}/{CARD}", card.encode())


def make_model_card(
    name: str, training: TrainingManifest, metrics: Sequence[CheckpointMetrics], evaluation: Evaluation | None = None
) -> str:
    """The card as Markdown with the YAML front matter of the Hugging Face hub; it depends on its arguments only."""
    method = str(training.recipe["method"])
    sections = {
        "Use": _USE,
        "Data": _describe_data(training),
        "Training": _describe_training(training),
        "Curve": _describe_curve(metrics),
        "Evaluation": _describe_evaluation(evaluation),
        "Versions": _make_table(("package", "version"), sorted(training.versions.items())),
    }
    head = (
        f"# {name}\n\nA causal language model of {training.num_parameters:,} parameters, trained from fresh weights by MiniPLM. "
        f"Method `{method}`: {_describe_method(method)}."
    )
    body = "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())])
    return f"---\n{_front_matter(name, method, training, evaluation)}\n---\n\n{body}\n"


def _front_matter(name: str, method: str, training: TrainingManifest, evaluation: Evaluation | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if evaluation is not None:
        for metric, value in (
            ("nats_per_token", evaluation.overall.nats_per_token),
            ("bits_per_byte", evaluation.overall.bits_per_byte),
        ):
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type="heldout",
                    dataset_name=_name_text(evaluation),
                    metric_type=metric,
                    metric_value=value,
                )
            )
        for task, result in sorted(evaluation.tasks.items()):
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=task,
                    metric_type=result.metric,
                    metric_value=result.accuracy,
                )
            )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["miniplm", method, str(training.recipe["architecture"].get("model_type", "model"))],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _describe_data(training: TrainingManifest) -> str:
    tokens = f"{training.num_tokens:,} tokens in {training.num_sequences:,} sequences, epochs counted."
    return f"{tokens} The ids are those at the storage root of the run.\n\n" + _make_table(
        ("what", "id"),
        [
            *((kind, f"`{content_id}`") for kind, content_id in training.data_ids.items()),
            ("tokenizer", f"`{training.recipe['tokenizer_digest']}`"),
            *((f"digest of {what}", f"`{digest}`") for what, digest in training.recipe["data"].items()),
        ],
    )


def _describe_training(training: TrainingManifest) -> str:
    recipe = training.recipe
    facts = [
        ("training", f"`{training.training_id}`"),
        ("weights", f"`{training.weights_digest}`"),
        ("optimizer steps", f"{training.num_steps:,}"),
        ("steps skipped, as loss or gradient was not finite", f"{training.num_skipped_steps:,}"),
        ("loss of the last step, nats a token", f"{training.final_loss:.4f}"),
        ("time", f"{training.seconds / 3600:.2f} h on {training.device}"),
    ]
    configuration = {key: recipe[key] for key in ("architecture", "vocab_size", "max_positions", "training")}
    return f"{_make_table(('', ''), facts)}\n\n```yaml\n{yaml.safe_dump(configuration, sort_keys=True).strip()}\n```"


def _describe_curve(metrics: Sequence[CheckpointMetrics]) -> str:
    """The mean loss over at most ten stretches of steps of equal length."""
    size = math.ceil(len(metrics) / _MOST_STRETCHES) or 1
    rows, num_tokens = [], 0
    for start in range(0, len(metrics), size):
        stretch = metrics[start : start + size]
        num_tokens += sum(row.num_tokens for row in stretch)
        loss = math.fsum(row.loss for row in stretch) / len(stretch)
        steps = f"{stretch[0].step:,} to {stretch[-1].step:,}" if len(stretch) > 1 else f"{stretch[0].step:,}"
        rows.append((steps, f"{num_tokens:,}", f"{loss:.4f}", f"{stretch[-1].learning_rate:.3g}"))
    head = ("steps", "tokens at their end", "mean training loss, nats a token", "learning rate at their end")
    return f"{_make_table(head, rows)}\n\nThe loss of each step is in `{_METRICS}`."


def _describe_evaluation(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    losses = [("all", evaluation.overall), *sorted(evaluation.domains.items())]
    text = f"Loss on {_name_text(evaluation)}:\n\n" + _make_table(
        ("domain", "nats a token", "bits a byte", "tokens"),
        [(domain, _with_error(loss), f"{loss.bits_per_byte:.4f}", f"{loss.num_scored_tokens:,}") for domain, loss in losses],
    )
    if evaluation.tasks:
        rows: list[tuple[Any, ...]] = [
            (
                task,
                f"{100 * result.accuracy:.2f}"
                + (f" ± {100 * result.standard_error:.2f}" if result.standard_error is not None else ""),
                result.metric,
                f"{result.num_documents:,}",
            )
            for task, result in sorted(evaluation.tasks.items())
        ]
        mean = math.fsum(result.accuracy for result in evaluation.tasks.values()) / len(evaluation.tasks)
        rows.append(("average", f"{100 * mean:.2f}", "", ""))
        text += "\n\nTasks by lm-evaluation-harness:\n\n" + _make_table(("task", "%", "metric", "documents"), rows)
    return text


def _name_text(evaluation: Evaluation) -> str:
    is_split = evaluation.split == "heldout"
    return (
        f"the held-out split of corpus {evaluation.corpus_id}"
        if is_split
        else f"held-out text from elsewhere, {evaluation.corpus_id}"
    )


def _with_error(loss: DomainLoss) -> str:
    error = "" if loss.nats_standard_error is None else f" ± {loss.nats_standard_error:.4f}"
    return f"{loss.nats_per_token:.4f}{error}"


def _make_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        # Names of domains are the data's: they may hold what Markdown takes for the end of a cell.
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *(line(row) for row in rows)])
