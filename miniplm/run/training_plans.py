"""What the trainings of a run are to be, each as one plan: configuration, teacher, tokenizer and number of steps.

Nothing is trained here, and of models only the files are read.
"""

from __future__ import annotations

from miniplm.config.run import CorpusConfig, StudentConfig, TrainingConfig
from miniplm.corpus.reader import load_corpus
from miniplm.derived.conversion import ConversionJob
from miniplm.models.architectures import build_empty_model, count_parameters, resolve_vocab_size
from miniplm.models.configuration import read_config
from miniplm.models.opening import model_files
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.selections import SelectionManifest
from miniplm.records.texts import MeasuredText
from miniplm.run.outside_texts import find_text, list_texts, resolve_target_id
from miniplm.run.plan import PlannedTraining, RunPlan
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training.flops import match_training
from miniplm.training.methods import METHODS
from miniplm.training.needs import list_derived_jobs, plan_heldout
from miniplm.training.recipe import TrainingPlan, is_tokenizer_of, plan_training


def plan_reference(plan: RunPlan, corpus: CorpusManifest) -> TrainingPlan:
    """The training of the reference model, of a run that has one trained."""
    reference = plan.reference
    assert reference.architecture is not None
    assert reference.training is not None
    return plan_training(
        corpus,
        "reference",
        reference.architecture,
        reference.training,
        vocab_size=reference.vocab_size,
        device=plan.planning_device,
        trust_remote_code=reference.trust_remote_code,
        trust_tokenizer_code=plan.corpus.trust_remote_code,
    )


def plan_teacher(storage: Storage, plan: RunPlan, reference: ModelEntry) -> TrainingPlan:
    """The training of a teacher that is the reference, tuned on target text. Raises `CorpusError` where that text is not prepared."""
    tuned_on = plan.teacher.tuned_on
    assert tuned_on is not None
    target = load_corpus(storage, resolve_target_id(storage, plan))
    with model_files(storage, reference) as folder:
        own = read_config(folder, reference.trust_remote_code).get_text_config(decoder=True)
        return plan_training(
            target,
            "target",
            str(folder),
            tuned_on.training,
            vocab_size=own.vocab_size,
            device=plan.planning_device,
            trust_remote_code=reference.trust_remote_code,
            trust_tokenizer_code=plan.corpus.trust_remote_code,
            initial=reference,
        )


def describe_training(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> PlannedTraining:
    """What is to be known of a student's training without reading its parts again."""
    training = plan_student(plan, corpus, selection, student_name)
    return PlannedTraining(
        training_id=training.training_id,
        steps=training.config.steps,
        derived_ids=tuple(job.derived_id for job in list_derived_jobs(training)),
        heldout_ids=tuple(job.derived_id for job in list_text_conversions(storage, plan, corpus, student_name)),
    )


def plan_student(plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str) -> TrainingPlan:
    """The training of one student. Raises `ConfigError` where the run has no such student."""
    student = plan.find_student(student_name)
    teacher = plan.require_teacher() if METHODS[student.method].needs_teacher else None
    return plan_training(
        corpus,
        student.method,
        student.architecture,
        _match_training(student, corpus, teacher),
        vocab_size=student.vocab_size,
        selection=selection,
        selection_seed=plan.selection.seed,
        teacher=teacher,
        distillation=student.distillation,
        generation=student.generation,
        device=plan.planning_device,
        trust_tokenizer_code=plan.corpus.trust_remote_code,
        own_tokenizer=load_own_tokenizer(student, plan.corpus),
    )


def load_own_tokenizer(student: StudentConfig, corpus: CorpusConfig) -> CorpusTokenizer | None:
    """The tokenizer that a student's configuration names, None where it has the corpus's. Raises `TokenizerError`."""
    if student.tokenizer is None:
        return None
    field = f"eos_token of student {student.name}"
    return load_tokenizer(student.tokenizer, student.eos_token, corpus.trust_remote_code, field)


def list_text_conversions(storage: Storage, plan: RunPlan, corpus: CorpusManifest, student_name: str) -> list[ConversionJob]:
    """The held-out texts that are prepared in a student's own tokens; none where it has the corpus's."""
    texts = list_texts(storage, plan, corpus) if plan.evaluation.measures_losses else []
    found = {text: find_text(storage, text, corpus) for text in texts}
    jobs = [plan_text_conversion(plan, whole, text, student_name) for text, whole in found.items() if whole is not None]
    return [job for job in jobs if job is not None]


def plan_text_conversion(plan: RunPlan, whole: CorpusManifest, text: MeasuredText, student_name: str) -> ConversionJob | None:
    """One held-out text, of the corpus `whole`, in a student's own tokens; None where it has the corpus's."""
    own = load_own_tokenizer(plan.find_student(student_name), plan.corpus)
    return (
        None if own is None or is_tokenizer_of(whole, own) else plan_heldout(whole, own, plan.corpus.trust_remote_code, text.split)
    )


def _match_training(student: StudentConfig, corpus: CorpusManifest, teacher: ModelEntry | None) -> TrainingConfig:
    """The training as it will be: of a FLOP-matched student shorter by what the teacher costs."""
    if not student.flop_matched:
        return student.training
    assert teacher is not None, "only methods with a teacher are FLOP-matched"
    vocab_size = resolve_vocab_size(student.vocab_size, corpus.tokenizer.vocab_size)
    model = build_empty_model(student.architecture, vocab_size, corpus.sequence_length + 1)
    return match_training(student.training, count_parameters(model), teacher.num_parameters)
