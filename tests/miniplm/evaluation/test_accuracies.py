"""Zero-shot tasks through the real harness: accuracies computed again by hand, local task files, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from miniplm.config.run import EvaluationConfig
from miniplm.errors import ConfigError, EvaluationError
from miniplm.evaluation.accuracies import average_accuracy, find_task_results, measure_tasks
from miniplm.evaluation.harness import open_tasks
from miniplm.evaluation.task_checks import check_tasks
from miniplm.evaluation.task_texts import read_task_texts
from miniplm.evaluation.tasks import PAPER_TASKS, find_local_tasks, resolve_tasks
from miniplm.progress import Progress
from miniplm.records.manifests import TaskResult, TrainingManifest
from miniplm.storage.root import Storage
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import VOCAB_SIZE, save_tokenizer

MODEL = "runs/r/students/s"
# Choices of one to three words: a sum of log-probabilities favours the short ones, a mean does not.
DOCUMENTS = [
    {
        "question": f"w{2 + index} w{3 + 2 * index} w{40 - index}",
        "choices": [f"w{10 + index}", f"w{50 - index} w{20 + index}", f"w{5 + index} w7 w{60 - 3 * index}"],
        "gold": index % 3,
    }
    for index in range(12)
]
CHOICE = {
    "dataset_path": "json",
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{gold}}",
    "doc_to_choice": "{{choices}}",
}


def add_task(folder: Path, name: str, documents: list[dict[str, Any]], **content: Any) -> Path:
    """Writes a task with its data beside it, named relative to the task's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    path = folder / f"{name}.yaml"
    kwargs = {"data_files": {"validation": f"{name}.jsonl"}, "cache_dir": str(folder / "cache")}
    path.write_text(yaml.safe_dump({"task": name, "dataset_kwargs": kwargs} | content))
    return path


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_llama(vocab_size=VOCAB_SIZE)


@pytest.fixture
def storage(tmp_path: Path, model: PreTrainedModel) -> Storage:
    """A storage root with a student in its folder."""
    folder = tmp_path / "data" / MODEL
    save_model(model, folder)
    save_tokenizer(folder)
    return Storage(str(tmp_path / "data"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    add_task(folder, "longer", DOCUMENTS, **CHOICE, metric_list=[*metrics, {"metric": "acc_norm"}])
    add_task(folder, "shorter", DOCUMENTS, **CHOICE, metric_list=metrics)
    return folder


def make_training(storage: Storage, weights_digest: str = "sha256:w") -> TrainingManifest:
    return TrainingManifest(
        training_id="t",
        recipe={},
        checkpoint="",
        weights_digest=weights_digest,
        num_parameters=1,
        num_steps=1,
        num_tokens=1,
        num_sequences=1,
        final_loss=1.0,
        seconds=1.0,
        device="cpu",
        files=dict.fromkeys((path.name for path in Path(storage.path(MODEL)).iterdir()), ""),
        versions={},
    )


def measure(storage: Storage, evaluation: EvaluationConfig, **changes: Any) -> tuple[dict[str, TaskResult], list[Progress]]:
    told: list[Progress] = []
    training = make_training(storage, **changes)
    return measure_tasks(storage, evaluation, training, MODEL, torch.device("cpu"), on_progress=told.append), told


def log_probability(model: PreTrainedModel, question: str, continuation: str) -> tuple[float, bool]:
    """In float64: of the continuation after the question, and whether each of its tokens is the likeliest."""
    start, ids = len(question.split()), [int(word[1:]) for word in f"{question} {continuation}".split()]
    with torch.no_grad():
        scores = torch.log_softmax(model.double()(torch.tensor([ids])).logits[0, start - 1 : -1], dim=-1)
    model.float()
    targets = torch.tensor(ids[start:])
    return float(scores.gather(1, targets[:, None]).sum()), bool((scores.argmax(dim=1) == targets).all())


def test_accuracies_are_those_computed_by_hand(storage: Storage, tasks: Path, model: PreTrainedModel) -> None:
    results, told = measure(storage, EvaluationConfig(tasks=("longer", "shorter"), task_folder=str(tasks)))
    by_mean, by_sum = [], []
    for document in DOCUMENTS:
        scores = [log_probability(model, document["question"], choice)[0] for choice in document["choices"]]
        means = [score / len(choice) for score, choice in zip(scores, document["choices"], strict=True)]
        by_sum.append(float(scores.index(max(scores)) == document["gold"]))
        by_mean.append(float(means.index(max(means)) == document["gold"]))
    assert by_mean != by_sum, "the two accuracies must be told apart"
    for name, metric, values in (("longer", "acc_norm", by_mean), ("shorter", "acc", by_sum)):
        accuracy = sum(values) / 12
        assert results[name].accuracy == accuracy
        # Of zeros and ones the sample's variance is p (1 - p) n / (n - 1).
        assert results[name].standard_error == pytest.approx((accuracy * (1 - accuracy) / 11) ** 0.5)
        assert (results[name].metric, results[name].num_documents, results[name].num_shots) == (metric, 12, 0)
    assert {(progress.unit, progress.total) for progress in told} == {("tasks", 2)}
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert told[-1].done == 2
    assert any("longer: 36 of 36 requests" in progress.detail for progress in told)


def test_a_last_word_is_right_where_it_is_the_likeliest(storage: Storage, tmp_path: Path, model: PreTrainedModel) -> None:
    """LAMBADA's form: a continuation, right or wrong."""
    with torch.no_grad():
        likeliest = int(model(torch.tensor([[3, 4, 5]])).logits[0, -1].argmax())
    documents = [{"text": f"w3 w4 w5 w{word}"} for word in (likeliest, 1 + likeliest % 60)]
    path = Path(__import__("lm_eval").__file__).parent / "tasks" / "lambada" / "lambada_openai.yaml"
    folder = tmp_path / "tasks"
    add_task(
        folder,
        "lambada_openai",
        documents,
        include=str(path),
        dataset_path="json",
        dataset_name=None,
        test_split=None,
        validation_split="validation",
    )
    results, _ = measure(storage, EvaluationConfig(tasks=("lambada_openai",), task_folder=str(folder)))
    assert results["lambada_openai"].accuracy == 0.5
    assert (results["lambada_openai"].metric, results["lambada_openai"].num_documents) == ("acc", 2)


def test_kept_results_are_not_measured_again(storage: Storage, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluationConfig(tasks=("longer",), task_folder=str(tasks), task_limit=4)
    first, _ = measure(storage, config)
    assert first["longer"].num_documents == 4
    both = config.model_copy(update={"tasks": ("shorter", "longer")})
    results, told = measure(storage, both)
    assert list(results) == ["shorter", "longer"]
    assert {progress.total for progress in told} == {1}
    assert not any("longer" in progress.detail for progress in told)
    assert measure(storage, both) == (results, [])
    assert find_task_results(storage, both, make_training(storage)) == results
    # Other weights, another number of documents and other data are other conditions.
    assert find_task_results(storage, both, make_training(storage, "sha256:other")) == {}
    assert find_task_results(storage, both.model_copy(update={"task_limit": 5}), make_training(storage)) == {}
    add_data = (tasks / "longer.jsonl").read_text() + json.dumps(DOCUMENTS[0]) + "\n"
    (tasks / "longer.jsonl").write_text(add_data)
    assert set(find_task_results(storage, both, make_training(storage))) == {"shorter"}
    # A damaged result is none.
    (damaged,) = Path(storage.path("training/t/tasks")).glob("shorter-*.json")
    damaged.write_text("{")
    assert find_task_results(storage, both, make_training(storage)) == {}


def test_results_of_another_harness_are_other_results(storage: Storage, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluationConfig(tasks=("shorter",), task_folder=str(tasks), task_limit=3)
    results, _ = measure(storage, config)
    monkeypatch.setattr("miniplm.evaluation.accuracies.find_harness", lambda: "0.0.0")
    assert find_task_results(storage, config, make_training(storage)) == {}
    monkeypatch.setattr("miniplm.evaluation.accuracies.find_harness", lambda: None)
    assert find_task_results(storage, config, make_training(storage)) == results


def test_a_task_without_accuracy_is_refused(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    content = {"dataset_path": "json", "validation_split": "validation", "output_type": "loglikelihood", "metric_list": metrics}
    add_task(folder, "surprise", [{"a": "w1", "b": "w2"}] * 2, doc_to_text="{{a}}", doc_to_target="{{' ' + b}}", **content)
    with pytest.raises(EvaluationError, match=r"task surprise has no accuracy \(acc_norm or acc\), only perplexity; leave it out"):
        measure(storage, EvaluationConfig(tasks=("surprise",), task_folder=str(folder)))


def test_a_task_whose_data_cannot_be_read_says_so(storage: Storage, tasks: Path) -> None:
    (tasks / "longer.jsonl").write_text("no JSON\n")
    with pytest.raises(
        EvaluationError, match=r"task longer cannot be loaded: .*JSON.*; it is that of .*longer.yaml: mend the file"
    ):
        measure(storage, EvaluationConfig(tasks=("longer",), task_folder=str(tasks)))


def test_a_task_whose_data_no_hub_gives_says_so(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda **options: (_ for _ in ()).throw(ConnectionError("no hub here")))
    message = (
        r"task piqa cannot be loaded: ConnectionError: no hub here; .* evaluation.task_folder \(`make tasks` makes such a folder\)"
    )
    with pytest.raises(EvaluationError, match=message):
        measure(storage, EvaluationConfig(tasks=("piqa",)))


def test_unknown_tasks_are_refused_by_name(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks as harness

    # The real index takes ten seconds; some of its folders do as well here.
    index = harness.TaskManager
    root = Path(harness.__path__[0])
    monkeypatch.setattr(
        harness,
        "TaskManager",
        lambda include_path, include_defaults=True: index(
            include_path=[*(root / name for name in ("arc", "logiqa", "aexams")), *include_path], include_defaults=False
        ),
    )
    check_tasks(EvaluationConfig(tasks=("longer", "logiqa", "arc_easy"), task_folder=str(tasks)))
    with pytest.raises(ConfigError, match=r"there is no task 'logikqa' in lm-evaluation-harness .* similar names: logiqa"):
        check_tasks(EvaluationConfig(tasks=("longer", "logikqa"), task_folder=str(tasks)))
    with pytest.raises(ConfigError, match=r"'ai2_arc' stands for several tasks .* name them: arc_challenge, arc_easy"):
        check_tasks(EvaluationConfig(tasks=("ai2_arc",)))
    with pytest.raises(ConfigError, match=r"'aexams' stands for several tasks .* name them: aexams_Biology, "):
        check_tasks(EvaluationConfig(tasks=("aexams",)))


def test_names_that_are_known_are_checked_without_the_harness(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, module)
    check_tasks(EvaluationConfig())
    check_tasks(EvaluationConfig(tasks=("longer", "hellaswag"), task_folder=str(tasks)))
    assert "lm_eval" not in sys.modules


def test_the_paper_has_nine_tasks_and_one_of_them_no_public_data(tmp_path: Path) -> None:
    assert resolve_tasks(("piqa", "paper", "piqa")) == ("piqa", *(task for task in PAPER_TASKS if task != "piqa"))
    assert len(PAPER_TASKS) == 9
    others = ", ".join(PAPER_TASKS[:8])
    message = rf"data of storycloze_2018 are given on request only .* leave StoryCloze out: evaluation.tasks=\[{others}\]"
    with pytest.raises(ConfigError, match=message):
        check_tasks(EvaluationConfig(tasks=("paper",)))
    add_task(tmp_path, "storycloze_2018", [{"a": 1}])
    check_tasks(EvaluationConfig(tasks=("paper",), task_folder=str(tmp_path)))


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        ConfigError, match=r'which is not installed: pip install "miniplm\[eval\]", or leave evaluation.tasks empty'
    ):
        check_tasks(EvaluationConfig(tasks=("piqa",)))
    check_tasks(EvaluationConfig())


def test_a_task_folder_is_checked(tasks: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.task_folder: there is no folder 'nowhere'"):
        check_tasks(EvaluationConfig(tasks=("piqa",), task_folder="nowhere"))
    (tasks / "longer.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"longer.yaml names data that are not there: .*/tasks/longer.jsonl; paths .* are relative"
    ):
        check_tasks(EvaluationConfig(tasks=("longer",), task_folder=str(tasks)))
    add_task(tasks / "more", "shorter", [])
    with pytest.raises(ConfigError, match=r"task 'shorter' is in .* and in .*shorter.yaml; one name is one task"):
        find_local_tasks(str(tasks))
    (tasks / "more" / "shorter.yaml").write_text("task: [")
    with pytest.raises(ConfigError, match=r"shorter.yaml is not valid YAML"):
        find_local_tasks(str(tasks))


def test_a_task_is_another_one_when_what_it_includes_changes(tasks: Path) -> None:
    (tasks / "base.inc").write_text("output_type: multiple_choice\n")
    add_task(tasks, "derived", DOCUMENTS, include="base.inc", process_docs=None)
    before = find_local_tasks(str(tasks))
    (tasks / "base.inc").write_text("output_type: loglikelihood\n")
    after = find_local_tasks(str(tasks))
    assert before["longer"].digest() == after["longer"].digest()
    digest = after["derived"].digest()
    (tasks / "base.inc").write_text("output_type: multiple_choice\n")
    assert before["derived"].digest() != digest


def test_average_over_tasks() -> None:
    """(0.5 + 0.25 + 0.75) / 3, and sqrt(0.03^2 + 0.04^2 + 0.12^2) / 3 = 0.13 / 3."""
    results = {
        name: TaskResult(accuracy=accuracy, standard_error=error, metric="acc", num_documents=10)
        for name, accuracy, error in (("a", 0.5, 0.03), ("b", 0.25, 0.04), ("c", 0.75, 0.12))
    }
    assert average_accuracy(results) == (0.5, pytest.approx(0.13 / 3))
    results["b"] = results["b"].model_copy(update={"standard_error": None})
    assert average_accuracy(results) == (0.5, None)


def test_texts_of_a_task_are_its_fields_and_what_is_asked(tmp_path: Path) -> None:
    document = {"question": "who was it", "choices": ["the first one", "the other"], "gold": 1, "hint": "nobody asks"}
    add_task(tmp_path, "quiz", [document], **CHOICE | {"doc_to_text": "Q: {{question}}"})
    with open_tasks(["quiz"], str(tmp_path)) as load_task:
        (item,) = read_task_texts(load_task("quiz"))
    assert item.place == "document 0"
    fields = {"who was it", "the first one", "the other", "nobody asks"}
    assert set(item.texts) == {*fields, "Q: who was it the first one", "Q: who was it the other"}
