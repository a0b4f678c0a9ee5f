"""Every configuration that is shipped parses, and the published one holds the published figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniplm.config import RunConfig
from miniplm.config_files import load_config

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "deployments" / "configs").glob("*.y*ml"))


@pytest.fixture
def pile_qwen() -> RunConfig:
    return load_config(str(ROOT / "deployments/configs/pile-qwen.yaml"))


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


def test_the_demo_compares_the_selection_with_random_tokens_and_nothing_else_differs(demo: RunConfig) -> None:
    assert [student.method for student in demo.students] == ["miniplm", "pretrain"]
    first, second = demo.students
    assert (first.architecture, first.vocab_size, first.training) == (second.architecture, second.vocab_size, second.training)


def test_the_demo_scores_with_the_real_teacher_on_its_own_tokens(demo: RunConfig) -> None:
    assert demo.teacher.model == demo.corpus.tokenizer == "models/smollm2-135m"
    assert demo.corpus.eos_token == "<|endoftext|>"
    assert demo.reference.model is None
    assert demo.corpus.splits.heldout > 0


def test_a_ratio_is_changed_from_the_command_line() -> None:
    path = str(ROOT / "deployments/configs/demo.yaml")
    assert load_config(path, ["selection.ratio=0.3"]).selection.ratio == 0.3
