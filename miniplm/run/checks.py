"""Refuses, before anything is computed, what would otherwise fail only after hours."""

from __future__ import annotations

from pathlib import Path

from miniplm.config.methods import METHOD_FACTS
from miniplm.config.run import RunConfig, TrainingConfig
from miniplm.derived.generation import check_generation
from miniplm.errors import ConfigError, ModelError, TokenizerError
from miniplm.evaluation.task_checks import check_tasks
from miniplm.models.architectures import check_architecture, resolve_vocab_size
from miniplm.models.configuration import read_config
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.files import check_finite_weights, has_tokenizer, list_weight_files, locate_model
from miniplm.models.lengths import find_max_positions
from miniplm.models.skeleton import check_forward, read_skeleton
from miniplm.run.exports import check_exports
from miniplm.run.training_plans import load_own_tokenizer
from miniplm.selection.fidelity import check_measurable, needs_calibration
from miniplm.selection.steering import check_rule
from miniplm.sources.files import find_source_files
from miniplm.storage.file_facts import pass_once
from miniplm.storage.root import Storage
from miniplm.tokenizers.agreement import find_disagreement
from miniplm.tokenizers.document_ids import count_document_ids
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training.processes.count import count_processes, find_inline_reason
from miniplm.training.recipe import resolve_training
from miniplm.training.tracking import check_tracking


def check_inputs(config: RunConfig, emulated: bool = False) -> CorpusTokenizer:
    """Raises a `ConfigError` or `MiniplmError` that names the field, unless the run can start. Returns the corpus's tokenizer.

    Checks that the device exists, the storage root can be written, the tasks are known, the sources' globs match files, the tokenizer
    has an end-of-document token, and each given model is whole, has the corpus' tokenizer, room for its
    vocabulary and positions for its sequences. `emulated` allows a dtype that the device has not, for a calibration.
    """
    device = resolve_device(config.planning_device)
    for dtype in (config.teacher.dtype, config.reference.dtype):
        resolve_dtype(dtype, device, emulated or config.is_on_work_pool)
    if config.is_on_work_pool and Storage(config.storage).root.startswith("memory:"):
        raise ConfigError(
            "execution.fan_out is work-pool, but `storage` is memory://, which no other process sees; use s3:// or a shared folder"
        )
    Storage(config.storage).check_writable()
    check_tasks(config.evaluation)
    target = () if config.teacher.tuned_on is None else config.teacher.tuned_on.sources
    for source in (*config.corpus.sources, *config.evaluation.sources, *target):
        find_source_files(source)
    tokenizer = load_tokenizer(config.corpus.tokenizer, config.corpus.eos_token, config.corpus.trust_remote_code)
    check_rule(config.selection)
    if needs_calibration(config.teacher.dtype, config.reference.dtype):
        check_measurable(config.selection)
    check_exports(config)
    _check_trainings(config, tokenizer)
    if config.teacher.model is not None:
        check_model("teacher", locate_model(config.teacher.model, config.teacher.revision), config, tokenizer)
    if config.reference.model is not None:
        check_model("reference", locate_model(config.reference.model, config.reference.revision), config, tokenizer)
    return tokenizer


def _check_trainings(config: RunConfig, tokenizer: CorpusTokenizer) -> None:
    """Raises `ConfigError` for an architecture, vocabulary size, dtype or number of processes that cannot be trained."""
    trainings = [
        (student.architecture, student.vocab_size, student.training, load_own_tokenizer(student, config.corpus) or tokenizer, False)
        for student in config.students
    ]
    reference = config.reference
    if reference.architecture is not None and reference.training is not None:
        trainings.append((reference.architecture, reference.vocab_size, reference.training, tokenizer, reference.trust_remote_code))
    for student in config.students:
        if METHOD_FACTS[student.method].has_written_text:
            check_generation(student.generation, config.corpus.sequence_length)
    for architecture, vocab_size, training, own, trust_remote_code in trainings:
        num_rows = resolve_vocab_size(vocab_size, own.entry.vocab_size)
        check_architecture(architecture, num_rows, config.corpus.sequence_length + 1, trust_remote_code)
        _check_training(training, config)
    if config.teacher.tuned_on is not None:
        _check_training(config.teacher.tuned_on.training, config)


def _check_training(training: TrainingConfig, config: RunConfig) -> None:
    resolve_training(training, config.planning_device)
    if not config.is_on_work_pool:  # else what is installed and how many GPUs there are is for the workers to say
        check_tracking(training)
        why_one = find_inline_reason(config.execution.launcher, config.storage)
        count_processes(training, resolve_device(config.planning_device), why_one)


def check_model(role: str, folder: Path, config: RunConfig, tokenizer: CorpusTokenizer) -> None:
    """Checks one given model's files against the corpus; weights that were not seen to be finite before are read for that.

    Raises `ModelError` for damaged files or weights, a config.json that does not fit them, too small a vocabulary or too few
    positions, `TokenizerError` where the model comes with another tokenizer than the corpus.
    """
    trust = config.teacher.trust_remote_code if role == "teacher" else config.reference.trust_remote_code
    num_rows = getattr(read_config(folder, trust).get_text_config(decoder=True), "vocab_size", None)
    num_ids = count_document_ids(tokenizer)
    if isinstance(num_rows, int) and num_rows < num_ids:
        raise ModelError(
            f"{role}: model {folder} has a vocabulary of {num_rows} ids, the tokenizer {config.corpus.tokenizer!r} gives ids up to "
            f"{num_ids - 1}; teacher and reference must share the tokenizer of the corpus"
        )
    skeleton = read_skeleton(folder, trust)
    positions = find_max_positions(skeleton.model.config)
    if positions is not None and positions < config.corpus.sequence_length:
        raise ModelError(
            f"{role}: model {folder} has {positions} positions, corpus.sequence_length is {config.corpus.sequence_length}; make that at most {positions}"
        )
    if has_tokenizer(folder):
        _check_tokenizer(role, folder, trust, config, tokenizer)
    check_forward(skeleton.model, folder / "config.json", ModelError)
    files = list_weight_files(folder)
    pass_once(Storage(config.storage), "finite", files, lambda: check_finite_weights(folder, skeleton.weights))


def _check_tokenizer(role: str, folder: Path, trust_remote_code: bool, config: RunConfig, tokenizer: CorpusTokenizer) -> None:
    disagreement = find_disagreement(folder, tokenizer, trust_remote_code)
    if disagreement is None:
        return
    raise TokenizerError(
        f"{role}: model {folder} has another tokenizer than the corpus ({config.corpus.tokenizer!r}): {disagreement}. Teacher and reference score the same token ids, so both must share the tokenizer of the corpus; use models of one family"
    )
