"""What a run will cost, before it runs: tokens from counts or a sample, rates from a short probe of this machine's device.

Shapes: B sequences, T tokens of each, S = T - 1 of them that are inputs, H width of the hidden state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from miniplm.config.methods import METHOD_FACTS
from miniplm.config.run import TrainingConfig
from miniplm.corpus.identity import CorpusPlan, plan_corpus
from miniplm.corpus.reader import find_corpus
from miniplm.models.architectures import build_model, count_parameters, resolve_vocab_size
from miniplm.models.devices import (
    describe_device,
    has_native_bfloat16,
    resolve_device,
    resolve_dtype,
    synchronize,
    torch_dtype,
)
from miniplm.models.files import locate_model
from miniplm.models.fp8 import FP8_DTYPES, HEAD_TOO, convert_to_fp8
from miniplm.models.fused_linear import fuse_linears
from miniplm.models.loading import LoadedModel, load_model, split_head
from miniplm.models.nll import sum_nll_of_hidden
from miniplm.models.skeleton import read_skeleton
from miniplm.models.throughput import Throughput
from miniplm.records.manifests import CorpusManifest, ModelEntry, Record
from miniplm.run.plan import RunPlan
from miniplm.run.references import find_reference
from miniplm.run.training_plans import load_own_tokenizer
from miniplm.scoring.engine import Scorer
from miniplm.scoring.shards import check_score_shards
from miniplm.sources.documents import Document
from miniplm.sources.reading import read_source_records
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training.flops import match_training
from miniplm.training.micro_batches import choose_on_device

_PROBE_SECONDS = 3.0
_SAMPLE_CHARACTERS = 4 << 20
_SAMPLE_FILES = 4
_SCORE_BYTES = 20  # a row: sequence id, number of scored tokens, sum of NLL


class StageCost(Record):
    """One stage: `num_tokens` still to be computed at `tokens_per_second`, both passes counted for training.

    `matmul_peak_share` is, for scoring, the FLOP/s of the probe over those of a large matrix product on the device.
    """

    name: str
    num_tokens: int
    num_shards: int | None = None
    tokens_per_second: float
    hours: float
    matmul_peak_share: float | None = None


class RunCost(Record):
    """What is left of a run; `storage_bytes` is what it adds at the storage root, `usd` at `usd_per_gpu_hour`."""

    run_name: str
    storage: str
    device: str
    corpus_is_prepared: bool
    num_corpus_tokens: int
    stages: tuple[StageCost, ...]
    hours: float
    unit: str
    storage_bytes: int
    usd_per_gpu_hour: float | None = None
    usd: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Counts:
    """Tokens of the whole corpus; `prepared` is what is there of it, `new_...` what is yet to be prepared, estimated."""

    candidate_tokens: int
    reference_tokens: int
    total_tokens: int
    num_shards: int
    prepared: CorpusManifest | None
    new_candidate_tokens: int = 0
    new_tokens: int = 0


def plan_run(plan: RunPlan, usd_per_gpu_hour: float | None = None) -> RunCost:
    """Counts, samples and measures; writes nothing but the digests of source files. Takes some seconds a model.

    An unprepared corpus is estimated from up to 4 MB of text of each source. Rates are of this machine's device.
    Raises what a run would raise for its inputs.
    """
    storage = Storage(plan.storage)
    device = resolve_device(plan.scoring.device)
    tokenizer = load_tokenizer(plan.corpus.tokenizer, plan.corpus.eos_token, plan.corpus.trust_remote_code)
    counts, prepare_rate, notes = _count_tokens(storage, plan, tokenizer)
    teacher_folder = locate_model(plan.teacher.model, plan.teacher.revision)
    num_teacher_parameters = read_skeleton(teacher_folder, plan.teacher.trust_remote_code).num_parameters
    stages = []
    if counts.prepared is None or counts.new_tokens:
        stages.append(_stage("prepare", counts.new_tokens, prepare_rate))
    teacher = load_model(
        teacher_folder,
        resolve_dtype(plan.teacher.dtype, device),
        device,
        plan.teacher.trust_remote_code,
        plan.scoring.compile is True,
    )
    left = _left_to_score(storage, counts, plan.require_teacher() if counts.prepared else None)
    by_teacher = probe_scoring(teacher, plan, tokenizer)
    stages.append(_scoring_stage("score teacher", left, by_teacher, counts.num_shards))
    del teacher
    stages += _plan_reference(storage, plan, counts, tokenizer, device)
    model_bytes = 0
    selected = int(counts.candidate_tokens * plan.selection.expect_share(counts.candidate_tokens))
    if plan.selection.threshold is not None:
        notes.append(
            "selection.threshold: how much is kept is known once all is scored; students are planned as if it were everything"
        )
    if plan.selection.where is not None:
        notes.append("selection.where leaves candidates out that are counted here")
    for student in plan.students:
        own = load_own_tokenizer(student, plan.corpus) or tokenizer
        vocab_size = resolve_vocab_size(student.vocab_size, own.entry.vocab_size)
        model = build_model(student.architecture, vocab_size, plan.corpus.sequence_length + 1, student.training.seed)
        num_parameters = count_parameters(model)
        model_bytes += 4 * num_parameters
        training = student.training
        if student.flop_matched:
            training = match_training(training, num_parameters, num_teacher_parameters)
            notes.append(f"{student.name}: {_describe_matching(student.training, training)}")
        rate = probe_training(model, training, plan, device)
        if student.is_distilled:
            # The teacher reads each micro-batch first, about as fast as it scores.
            rate = 1 / (1 / rate + 1 / by_teacher.tokens_per_second)
        stages.append(_stage(f"train {student.name}", _training_tokens(training, plan, selected), rate))
    notes += [f"{name}: the time in which the teacher writes its text is not in here" for name in _list_generated(plan)]
    hours = sum(stage.hours for stage in stages)
    if device.type == "cpu" and has_native_bfloat16() and plan.teacher.dtype == "float32":
        notes.append(
            "this CPU multiplies bfloat16 itself: teacher.dtype=auto scores faster; `miniplm score CONFIG --set teacher.dtype=auto "
            "--calibrate 200` tells by how much and what it changes"
        )
    # Training keeps weights and two moments in float32, for each kept checkpoint.
    kept = max((student.training.keep_checkpoints for student in plan.students), default=0)
    corpus_bytes = counts.new_tokens * (2 if tokenizer.entry.vocab_size <= 65536 else 4)
    scores_bytes = 2 * _SCORE_BYTES * counts.candidate_tokens // plan.corpus.sequence_length
    return RunCost(
        run_name=plan.name,
        storage=plan.storage,
        device=describe_device(device),
        corpus_is_prepared=counts.prepared is not None and not counts.new_tokens,
        num_corpus_tokens=counts.total_tokens,
        stages=tuple(stages),
        hours=hours,
        unit="GPU-hour" if device.type == "cuda" else "machine hour",
        storage_bytes=corpus_bytes + scores_bytes + model_bytes * (1 + 3 * kept),
        usd_per_gpu_hour=usd_per_gpu_hour,
        usd=None if usd_per_gpu_hour is None else hours * usd_per_gpu_hour,
        notes=tuple(notes),
    )


def _list_generated(plan: RunPlan) -> list[str]:
    return [student.name for student in plan.students if METHOD_FACTS[student.method].has_written_text]


def probe_scoring(model: LoadedModel, plan: RunPlan, tokenizer: CorpusTokenizer) -> Throughput:
    """What a loaded model achieves on random full-length sequences, once it is compiled."""
    scorer = Scorer(model, plan.scoring.tokens_per_batch, plan.scoring.attention, plan.scoring.compile)
    scorer.warm_up(plan.corpus.sequence_length)
    length = plan.corpus.sequence_length + 1
    rng = np.random.default_rng(0)
    num = max(1, scorer.tokens_per_batch // length) * (1 if model.device.type == "cpu" else 4)
    sequences = list(rng.integers(0, min(model.vocab_size, tokenizer.entry.vocab_size), (num, length)))
    scorer.score(sequences[:1], tokenizer.eos_token_id)
    num_tokens, seconds = 0, 0.0
    while seconds < _PROBE_SECONDS:
        achieved = scorer.score(sequences, tokenizer.eos_token_id).throughput
        num_tokens, seconds = num_tokens + achieved.num_tokens, seconds + achieved.seconds
    return replace(achieved, num_tokens=num_tokens, seconds=seconds, wait_seconds=None)


def probe_training(model: torch.nn.Module, training: TrainingConfig, plan: RunPlan, device: torch.device) -> float:
    """Tokens a second of forward and backward passes over random full-length sequences."""
    model = model.to(device).train()
    body, head = split_head(model)
    length, dtype_name = plan.corpus.sequence_length, resolve_dtype(training.dtype, device)
    rows = choose_on_device(training, cast(Any, model), length, dtype_name, device)
    dtype = torch_dtype(dtype_name)
    generator = torch.Generator().manual_seed(0)
    token_ids_BT = torch.randint(0, head.weight_VH.shape[0], (rows, length + 1), generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            hidden_BSH = body(input_ids=token_ids_BT[:, :-1], use_cache=False).last_hidden_state
            loss = sum_nll_of_hidden(head, hidden_BSH.flatten(0, 1), token_ids_BT[:, 1:].flatten())
        loss.backward()
        model.zero_grad(set_to_none=True)

    return _measure(step, rows * (length + 1), device)


def _measure(work: Callable[[], object], num_tokens: int, device: torch.device) -> float:
    work()
    synchronize(device)
    started, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - started < _PROBE_SECONDS:
        work()
        synchronize(device)
        passes += 1
    return passes * num_tokens / (time.perf_counter() - started)


def _scoring_stage(name: str, num_tokens: int, achieved: Throughput, num_shards: int) -> StageCost:
    stage = _stage(name, num_tokens, achieved.tokens_per_second, num_shards)
    return stage.model_copy(update={"matmul_peak_share": achieved.matmul_peak_share})


def _stage(name: str, num_tokens: int, rate: float, num_shards: int | None = None) -> StageCost:
    return StageCost(
        name=name,
        num_tokens=num_tokens,
        num_shards=num_shards,
        tokens_per_second=rate,
        hours=num_tokens / rate / 3600 if rate else 0.0,
    )


def _plan_reference(
    storage: Storage, plan: RunPlan, counts: _Counts, tokenizer: CorpusTokenizer, device: torch.device
) -> list[StageCost]:
    reference, stages = plan.reference, []
    entry = find_reference(storage, plan, counts.prepared) if counts.prepared else None
    dtype = resolve_dtype(reference.dtype, device)
    if reference.model is not None:
        loaded = load_model(locate_model(reference.model, reference.revision), dtype, device, reference.trust_remote_code)
    else:
        assert reference.architecture is not None
        assert reference.training is not None
        vocab_size = resolve_vocab_size(reference.vocab_size, tokenizer.entry.vocab_size)
        model = build_model(reference.architecture, vocab_size, plan.corpus.sequence_length + 1, reference.training.seed)
        if entry is None:
            num_tokens = _training_tokens(reference.training, plan, counts.reference_tokens)
            stages.append(_stage("train reference", num_tokens, probe_training(model, reference.training, plan, device)))
        model = model.to(device, torch_dtype(dtype)).eval().requires_grad_(False)
        body, head = split_head(model)
        if device.type == "cuda":
            fuse_linears(body)
        if dtype in FP8_DTYPES:
            convert_to_fp8(body)
        loaded = LoadedModel(
            body,
            head,
            device,
            head.weight_VH.shape[0],
            None,
            reference.architecture,
            model.config._attn_implementation,
            has_fp8_head=dtype == HEAD_TOO,
        )
    left = _left_to_score(storage, counts, entry)
    return [*stages, _scoring_stage("score reference", left, probe_scoring(loaded, plan, tokenizer), counts.num_shards)]


def _left_to_score(storage: Storage, counts: _Counts, entry: ModelEntry | None) -> int:
    if counts.prepared is None or entry is None:
        return counts.candidate_tokens
    done = {state.shard_index for state in check_score_shards(storage, counts.prepared, entry.model_id) if state.state == "done"}
    left = sum(shard.num_tokens for shard in counts.prepared.split_shards("candidate") if shard.shard_index not in done)
    return left + counts.new_candidate_tokens


def _describe_matching(given: TrainingConfig, matched: TrainingConfig) -> str:
    if matched.steps is not None and given.steps is not None:
        return f"{matched.steps:,} of {given.steps:,} steps: FLOP-matched"
    return f"{matched.epochs:.3g} of {given.epochs:g} epochs: FLOP-matched"


def _training_tokens(training: TrainingConfig, plan: RunPlan, data_tokens: int) -> int:
    if training.epochs is not None:
        return int(training.epochs * data_tokens)
    assert training.steps is not None
    return training.steps * training.batch_size * plan.corpus.sequence_length


def _count_tokens(storage: Storage, plan: RunPlan, tokenizer: CorpusTokenizer) -> tuple[_Counts, float, list[str]]:
    """What is prepared is counted, the rest estimated: the whole corpus, or the new files of one that grows."""
    planned = plan_corpus(storage, plan.corpus, plan.tokenizer)
    prepared = find_corpus(storage, planned.corpus_id)
    is_whole = prepared is not None
    prepared = prepared or planned.parent
    tokens = {split: prepared.split_counts(split).num_tokens for split in prepared.domains} if prepared else {}
    num_shards = len(prepared.split_shards("candidate")) if prepared else 0
    # The reference stays that of the first corpus.
    reference_tokens = sum(shard.num_tokens for shard in prepared.root_shards("reference")) if prepared else 0
    total, rate, notes = (0, 0.0, []) if is_whole else _estimate_tokens(plan, planned, tokenizer)
    splits = plan.corpus.splits
    candidates = int(total * (1 - splits.reference - splits.heldout))
    num_sequences = candidates / (plan.corpus.sequence_length + 1)
    num_new_shards = 0 if is_whole else max(1, -(-int(num_sequences) // plan.corpus.sequences_per_shard))
    counts = _Counts(
        candidate_tokens=tokens.get("candidate", 0) + candidates,
        reference_tokens=reference_tokens if prepared else int(total * splits.reference),
        total_tokens=sum(tokens.values()) + total,
        num_shards=num_shards + num_new_shards,
        prepared=prepared,
        new_candidate_tokens=candidates,
        new_tokens=total,
    )
    return counts, rate, notes


def _estimate_tokens(plan: RunPlan, planned: CorpusPlan, tokenizer: CorpusTokenizer) -> tuple[int, float, list[str]]:
    """Tokens of all files to be prepared by the tokens a stored byte of a sample, and the tokens a second that the sample took."""
    total, seconds, sampled, notes = 0.0, 0.0, 0, []
    for source in plan.corpus.sources:
        files = [file.file for file in planned.files if file.source is source]
        if not files:
            continue
        step = max(1, len(files) // _SAMPLE_FILES)
        num_bytes, num_tokens = 0, 0

        def on_bytes(count: int) -> None:
            nonlocal num_bytes
            num_bytes += count

        for file in files[::step][:_SAMPLE_FILES]:
            texts, characters = [], 0
            for record in read_source_records(file, source, 0, 0, on_bytes):
                if isinstance(record, Document):
                    texts.append(record.text)
                    characters += len(record.text)
                if characters >= _SAMPLE_CHARACTERS // _SAMPLE_FILES:
                    break
            started = time.perf_counter()
            num_tokens += sum(len(token_ids) + 1 for token_ids in tokenizer.encode_documents(texts))
            seconds += time.perf_counter() - started
        source_bytes = sum(file.num_bytes for file in files)
        share = min(1.0, num_bytes / max(1, source_bytes))
        total += num_tokens / max(share, 1e-12)
        sampled += num_tokens
        if share < 1:
            notes.append(f"{source.path}: tokens estimated from {share:.2%} of {source_bytes / 1e9:.2f} GB")
    return int(total), sampled / max(seconds, 1e-9), notes
