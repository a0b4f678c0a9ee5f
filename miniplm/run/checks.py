"""Refuses, before anything is computed, what would otherwise fail only after hours."""

from __future__ import annotations

import torch

from miniplm.config.methods import METHOD_FACTS
from miniplm.config.run import ReferenceConfig, RunConfig, StudentConfig, TeacherConfig
from miniplm.derived.generation import check_generation
from miniplm.errors import ConfigError, ModelError, TokenizerError
from miniplm.evaluation.task_checks import check_tasks
from miniplm.models.architectures import check_architecture, resolve_vocab_size
from miniplm.models.configuration import read_config
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.files import check_finite_weights, has_tokenizer
from miniplm.models.lengths import find_max_positions
from miniplm.models.locations import locate_model
from miniplm.models.skeleton import Skeleton, check_forward, read_skeleton
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


def check_inputs(config: RunConfig, storage: Storage, emulated: bool = False) -> tuple[CorpusTokenizer, dict[str, Skeleton]]:
    """Raises a `ConfigError` or `MiniplmError` that names the field, unless the run can start. Returns the corpus's tokenizer, and the given
    models without their values, by role.

    Checks that the device exists, the storage root can be written, the tasks are known, the sources' globs match files, the tokenizer
    has an end-of-document token, and each given model is whole, has the corpus' tokenizer, room for its
    vocabulary and positions for its sequences. `emulated` allows a dtype that the device has not, for a calibration.
    """
    device = resolve_device(config.planning_device)
    for dtype in (config.teacher.dtype, config.reference.dtype):
        resolve_dtype(dtype, device, emulated or config.is_on_work_pool)
    if config.is_on_work_pool and storage.root.startswith("memory:"):
        raise ConfigError(
            "execution.fan_out is work-pool, but `storage` is memory://, which no other process sees; use s3:// or a shared folder"
        )
    storage.check_writable()
    check_tasks(config.evaluation)
    target = () if config.teacher.tuned_on is None else config.teacher.tuned_on.sources
    for source in (*config.corpus.sources, *config.evaluation.sources, *target):
        find_source_files(source)
    tokenizer = load_tokenizer(config.corpus.tokenizer, config.corpus.eos_token, config.corpus.trust_remote_code)
    check_rule(config.selection)
    if needs_calibration(config.teacher.dtype, config.reference.dtype):
        check_measurable(config.selection)
    check_exports(config)
    _check_trainings(config, device, tokenizer)
    skeletons = {}
    if config.teacher.model is not None:
        skeletons["teacher"] = check_model("teacher", config.teacher, config, storage, tokenizer)
    if config.reference.model is not None:
        skeletons["reference"] = check_model("reference", config.reference, config, storage, tokenizer)
    return tokenizer, skeletons


def _check_trainings(config: RunConfig, device: torch.device, tokenizer: CorpusTokenizer) -> None:
    """Raises `ConfigError` for an architecture, vocabulary size, dtype or number of processes that cannot be trained."""
    tuned_on, trainings = config.teacher.tuned_on, []
    fresh: list[tuple[StudentConfig | ReferenceConfig, CorpusTokenizer, bool]] = [
        *((student, load_own_tokenizer(student, config.corpus) or tokenizer, False) for student in config.students),
        (config.reference, tokenizer, config.reference.trust_remote_code),
    ]
    for student in config.students:
        if METHOD_FACTS[student.method].has_written_text:
            check_generation(student.generation, config.corpus.sequence_length)
    for section, own, trust_remote_code in fresh:
        if section.architecture is not None and section.training is not None:
            num_rows = resolve_vocab_size(section.vocab_size, own.entry.vocab_size)
            check_architecture(section.architecture, num_rows, config.corpus.sequence_length + 1, trust_remote_code)
            trainings.append(section.training)
    for training in trainings if tuned_on is None else [*trainings, tuned_on.training]:
        if not config.is_on_work_pool:  # else what is installed and how many GPUs there are is for the workers to say
            check_tracking(training)
            count_processes(training, device, find_inline_reason(config.execution.launcher, config.storage))
        resolve_training(training, device)


def check_model(
    role: str, given: TeacherConfig | ReferenceConfig, config: RunConfig, storage: Storage, tokenizer: CorpusTokenizer
) -> Skeleton:
    """Checks one given model's files against the corpus, and returns it without its values; weights that `storage` does not know to be
    finite are read for that.

    Raises `ModelError` for damaged files or weights, a config.json that does not fit them, too small a vocabulary or too few
    positions, `TokenizerError` where the model comes with another tokenizer than the corpus.
    """
    assert given.model is not None
    folder = locate_model(given.model, given.revision)
    # Before the weights, which a wrong size in config.json does not fit either: this says more.
    text = read_config(folder, given.trust_remote_code).get_text_config(decoder=True)
    num_rows, num_ids = getattr(text, "vocab_size", None), count_document_ids(tokenizer)
    if isinstance(num_rows, int) and num_rows < num_ids:
        raise ModelError(
            f"{role}: model {folder} has a vocabulary of {num_rows} ids, the tokenizer {config.corpus.tokenizer!r} gives ids up to "
            f"{num_ids - 1}; teacher and reference must share the tokenizer of the corpus"
        )
    skeleton = read_skeleton(folder, given.trust_remote_code)
    positions = find_max_positions(skeleton.model.config)
    if positions is not None and positions < config.corpus.sequence_length:
        raise ModelError(
            f"{role}: model {folder} has {positions} positions, corpus.sequence_length is {config.corpus.sequence_length}; make that at most {positions}"
        )
    disagreement = find_disagreement(folder, tokenizer, given.trust_remote_code) if has_tokenizer(folder) else None
    if disagreement is not None:
        raise TokenizerError(
            f"{role}: model {folder} has another tokenizer than the corpus ({config.corpus.tokenizer!r}): {disagreement}. Teacher and reference score the same token ids, so both must share the tokenizer of the corpus; use models of one family"
        )
    check_forward(skeleton.model, folder / "config.json", ModelError)
    pass_once(storage, "finite", skeleton.files, lambda: check_finite_weights(folder, skeleton.weights))
    return skeleton
