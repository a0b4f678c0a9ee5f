"""Every configuration that is shipped parses, and the published one holds the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from miniplm.config.files import load_config
from miniplm.config.run import Method, RunConfig
from miniplm.models.presets import PRESETS
from miniplm.training.flops import match_training

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = [path for folder in ("deployments/configs", "examples") for path in sorted((ROOT / folder).glob("*.y*ml"))]


@pytest.fixture
def pile_qwen() -> RunConfig:
    return load_config(str(ROOT / "deployments/configs/pile-qwen.yaml"))


@pytest.fixture
def pile_families() -> RunConfig:
    return load_config(str(ROOT / "deployments/configs/pile-families.yaml"))


@pytest.fixture
def pile_baselines() -> RunConfig:
    return load_config(str(ROOT / "deployments/configs/pile-baselines.yaml"))


@pytest.fixture
def demo() -> RunConfig:
    return load_config(str(ROOT / "deployments/configs/demo.yaml"))


def test_the_two_promised_configs_are_shipped() -> None:
    assert {"demo.yaml", "pile-qwen.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_parses_and_is_named_after_its_file(path: Path) -> None:
    assert load_config(str(path)).name == path.stem


def test_pile_qwen_splits_105_billion_tokens_into_5_for_the_reference_and_100_candidates(pile_qwen: RunConfig) -> None:
    splits = pile_qwen.corpus.splits
    assert splits.reference * 105e9 == pytest.approx(5e9, rel=1e-3)
    assert (1 - splits.reference - splits.heldout) * 105e9 == pytest.approx(100e9, rel=1e-3)
    assert pile_qwen.selection.ratio == 0.5
    assert pile_qwen.selection.score == "mean"
    assert pile_qwen.corpus.sequence_length == 1024
    assert pile_qwen.corpus.sources[0].text == "text"
    assert pile_qwen.corpus.sources[0].domain == "meta.pile_set_name"


def test_pile_qwen_names_the_published_models(pile_qwen: RunConfig) -> None:
    assert pile_qwen.teacher.model == pile_qwen.corpus.tokenizer == "Qwen/Qwen1.5-1.8B"
    assert pile_qwen.reference.architecture == "qwen-104m"
    assert pile_qwen.reference.vocab_size == 151_936
    assert [(student.method, student.architecture, student.vocab_size) for student in pile_qwen.students] == [
        ("miniplm", "qwen-200m", 151_936),
        ("pretrain", "qwen-200m", 151_936),
    ]


def test_pile_qwen_trains_as_published(pile_qwen: RunConfig) -> None:
    assert pile_qwen.reference.training is not None
    # 5e9 // (512 * 1024) whole batches pass once over D_ref
    assert pile_qwen.reference.training.steps == 9536
    for student in pile_qwen.students:
        assert student.training.steps == 100_000
        assert student.training.checkpoint_every_steps == 5_000
    for training in (pile_qwen.reference.training, *(student.training for student in pile_qwen.students)):
        assert training.batch_size == 512
        assert training.learning_rate == 6e-4
        assert training.warmup_steps == 2_000
        assert training.min_learning_rate_ratio == 0.1
        assert (training.beta1, training.beta2, training.epsilon) == (0.9, 0.98, 1e-6)
        assert (training.weight_decay, training.clip_norm) == (0.01, 1.0)


@pytest.mark.parametrize("name", ["pile-families", "pile-baselines"])
def test_further_students_take_corpus_scores_and_selection_of_pile_qwen(pile_qwen: RunConfig, name: str) -> None:
    other = load_config(str(ROOT / f"deployments/configs/{name}.yaml"))
    changed = {"name": pile_qwen.name, "students": pile_qwen.students, "evaluation": pile_qwen.evaluation}
    assert other.model_copy(update=changed) == pile_qwen


def test_pile_families_trains_a_llama_and_a_mamba_as_published(pile_families: RunConfig) -> None:
    assert [
        (student.method, student.architecture, student.tokenizer, student.vocab_size) for student in pile_families.students
    ] == [
        ("miniplm", "llama-3.1-212m", "meta-llama/Llama-3.1-8B", 128_256),
        ("pretrain", "llama-3.1-212m", "meta-llama/Llama-3.1-8B", 128_256),
        ("miniplm", "mamba-130m", "EleutherAI/gpt-neox-20b", 50_280),
        ("pretrain", "mamba-130m", "EleutherAI/gpt-neox-20b", 50_280),
    ]
    for student in pile_families.students:
        training = student.training
        assert student.architecture in PRESETS
        assert (training.steps, training.batch_size, training.clip_norm) == (100_000, 512, 1.0)
        lowest = training.learning_rate * training.min_learning_rate_ratio
        published = (training.learning_rate, lowest, training.warmup_steps, training.weight_decay, training.beta2)
        if student.architecture == "mamba-130m":
            assert published == pytest.approx((2e-3, 1e-5, 10_000, 0.1, 0.95))
        else:
            assert published == pytest.approx((6e-4, 6e-5, 2_000, 0.01, 0.98))


def test_pile_baselines_compares_every_method_at_equal_flops(pile_qwen: RunConfig, pile_baselines: RunConfig) -> None:
    students = pile_baselines.students
    assert {student.method for student in students} == set(get_args(Method))
    assert {student.name for student in students if student.flop_matched} == {"vanilla-kd-200m", "miniplm-vanilla-kd-200m"}
    assert {(student.architecture, student.vocab_size) for student in students} == {("qwen-200m", 151_936)}
    trained = pile_qwen.students[0].training
    for student in students:
        assert student.training.model_copy(update={"milestone_every_steps": None}) == trained
        assert (student.distillation.kl_weight, student.generation.prompt_tokens) == (0.5, 768)
    teacher = 1_836_828_672  # Qwen1.5-1.8B
    assert match_training(trained, 203_437_824, teacher).steps == pytest.approx(25_000, rel=0.01)


def test_pile_data_limited_keeps_a_quarter_for_four_epochs(pile_qwen: RunConfig) -> None:
    limited = load_config(str(ROOT / "deployments/configs/pile-data-limited.yaml"))
    assert limited.selection.ratio == 0.25
    assert {student.training.epochs for student in limited.students} == {4}
    splits = limited.corpus.splits
    num_candidates = (1 - splits.reference - splits.heldout) * 52.5e9
    assert num_candidates == pytest.approx(50e9, rel=1e-3)
    assert 4 * limited.selection.ratio * num_candidates == pytest.approx(50e9, rel=1e-3)
    assert limited.reference.training is not None
    assert limited.reference.training.steps == int(splits.reference * 52.5e9) // (512 * 1024)
    for student, full in zip(limited.students, pile_qwen.students, strict=True):
        assert student.training.model_copy(update={"steps": 100_000, "epochs": None}) == full.training
        assert student.model_copy(update={"training": full.training}) == full


def test_the_demo_compares_the_selection_with_random_tokens_and_nothing_else_differs(demo: RunConfig) -> None:
    assert [student.method for student in demo.students] == ["miniplm", "pretrain"]
    first, second = demo.students
    assert (first.architecture, first.vocab_size, first.training) == (second.architecture, second.vocab_size, second.training)


def test_the_demo_scores_with_the_real_teacher_on_its_own_tokens(demo: RunConfig) -> None:
    assert demo.teacher.model == demo.corpus.tokenizer == "models/smollm2-135m"
    assert demo.corpus.eos_token == "<|endoftext|>"
    assert demo.reference.model is None
    assert demo.evaluation.measures_losses


def test_a_ratio_is_changed_from_the_command_line() -> None:
    path = str(ROOT / "deployments/configs/demo.yaml")
    assert load_config(path, ["selection.ratio=0.3"]).selection.ratio == 0.3
