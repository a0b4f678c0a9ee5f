"""What the training of a student is to be: its configuration, teacher, tokenizer and number of steps, as one plan.

Nothing is trained here, and of models only the files are read.
"""

from __future__ import annotations

from miniplm.architectures import build_empty_model, count_parameters, resolve_vocab_size
from miniplm.artifacts import CorpusManifest, ModelEntry, SelectionManifest
from miniplm.config import RunConfig, StudentConfig, TrainingConfig
from miniplm.derived.conversion import ConversionJob
from miniplm.derived.needs import plan_heldout
from miniplm.errors import ConfigError
from miniplm.scorers import identify_teacher
from miniplm.tokenization import CorpusTokenizer, load_tokenizer
from miniplm.training.flops import match_training
from miniplm.training.methods import METHODS
from miniplm.training.recipe import TrainingPlan, is_tokenizer_of, plan_training


def find_student_config(config: RunConfig, student_name: str) -> StudentConfig:
    for student in config.students:
        if student.name == student_name:
            return student
    names = ", ".join(student.name for student in config.students) or "none"
    raise ConfigError(f"run {config.name} has no student {student_name!r}; its students are {names}")


def plan_student(config: RunConfig, corpus: CorpusManifest, selection: SelectionManifest, student_name: str) -> TrainingPlan:
    """The training of one student. Raises `ConfigError` where the run has no such student."""
    student = find_student_config(config, student_name)
    teacher = identify_teacher(config) if METHODS[student.method].needs_teacher else None
    return plan_training(
        corpus,
        student.method,
        student.architecture,
        _match_training(student, corpus, teacher),
        vocab_size=student.vocab_size,
        selection=selection,
        selection_seed=config.selection.seed,
        teacher=teacher,
        distillation=student.distillation,
        generation=student.generation,
        device=config.planning_device,
        trust_tokenizer_code=config.corpus.trust_remote_code,
        own_tokenizer=load_own_tokenizer(config, student),
    )


def load_own_tokenizer(config: RunConfig, student: StudentConfig) -> CorpusTokenizer | None:
    """The tokenizer that a student's configuration names, None where it has the corpus's. Raises `TokenizerError`."""
    if student.tokenizer is None:
        return None
    field = f"eos_token of student {student.name}"
    return load_tokenizer(student.tokenizer, student.eos_token, config.corpus.trust_remote_code, field)


def plan_heldout_conversion(config: RunConfig, corpus: CorpusManifest, student_name: str) -> ConversionJob | None:
    """The held-out split in a student's own tokens; None where it has the corpus's."""
    own = load_own_tokenizer(config, find_student_config(config, student_name))
    return None if own is None or is_tokenizer_of(corpus, own) else plan_heldout(corpus, own, config.corpus.trust_remote_code)


def _match_training(student: StudentConfig, corpus: CorpusManifest, teacher: ModelEntry | None) -> TrainingConfig:
    """The training as it will be: of a FLOP-matched student shorter by what the teacher costs."""
    if not student.flop_matched:
        return student.training
    assert teacher is not None, "only methods with a teacher are FLOP-matched"
    vocab_size = resolve_vocab_size(student.vocab_size, corpus.tokenizer.vocab_size)
    model = build_empty_model(student.architecture, vocab_size, corpus.sequence_length + 1)
    return match_training(student.training, count_parameters(model), teacher.num_parameters)
