"""What a run will cost, before it runs: tokens from counts or a sample, rates from a short probe of this machine's device.

Shapes: B sequences, T tokens of each, S = T - 1 of them that are inputs, H width of the hidden state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from miniplm.config.methods import METHOD_FACTS
from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import build_model, count_parameters, resolve_vocab_size
from miniplm.models.devices import (
    describe_device,
    has_native_bfloat16,
    resolve_device,
    resolve_dtype,
    synchronize,
    torch_dtype,
)
from miniplm.models.dtypes import choose_scoring_dtype
from miniplm.models.fp8 import FP8_DTYPES, HEAD_TOO, convert_to_fp8
from miniplm.models.fused_linear import fuse_linears
from miniplm.models.loading import LoadedModel, load_model, split_head
from miniplm.models.locations import locate_model
from miniplm.models.nll import sum_nll_of_hidden
from miniplm.models.throughput import Throughput
from miniplm.records.manifests import Record
from miniplm.run.model_entries import find_reference, with_teacher
from miniplm.run.pinning import find_width
from miniplm.run.plan import RunPlan
from miniplm.run.proxy_cost import count_left_tokens, count_proxy_tokens, count_teacher_tokens, describe_proxy, probe_proxy
from miniplm.run.token_counts import CorpusCounts, count_target_tokens, count_tokens
from miniplm.run.training_plans import load_own_tokenizer
from miniplm.scoring.engine import Scorer
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training.flops import match_training
from miniplm.training.micro_batches import choose_on_device

_PROBE_SECONDS = 3.0
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


def plan_run(plan: RunPlan, usd_per_gpu_hour: float | None = None) -> RunCost:
    """Counts, samples and measures; writes nothing but the digests of source files. Takes some seconds a model.

    An unprepared corpus is estimated from up to 4 MB of text of each source. Rates are of this machine's device.
    Raises what a run would raise for its inputs.
    """
    storage = Storage(plan.storage)
    device = resolve_device(plan.scoring.device)
    tokenizer = load_tokenizer(plan.corpus.tokenizer, plan.corpus.eos_token, plan.corpus.trust_remote_code)
    counts, prepare_rate, notes = count_tokens(storage, plan, tokenizer)
    plan = with_teacher(storage, plan, None if counts.new_tokens else counts.prepared)
    stages = []
    if counts.prepared is None or counts.new_tokens:
        stages.append(_stage("prepare", counts.new_tokens, prepare_rate))
    num_teacher_parameters, by_teacher, of_scorers, of_proxy = _plan_scorers(storage, plan, counts, tokenizer, device)
    stages += of_scorers
    notes += of_proxy
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
    if device.type == "cpu" and plan.teacher.dtype == "float32" and _is_faster_in_bfloat16(plan):
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


def _plan_scorers(
    storage: Storage, plan: RunPlan, counts: CorpusCounts, tokenizer: CorpusTokenizer, device: torch.device
) -> tuple[int, Throughput, list[StageCost], list[str]]:
    """Parameters and throughput of the teacher, what is left for both models and a proxy to score, and what the proxy saves."""
    given = plan.teacher
    left = count_teacher_tokens(storage, plan, counts)
    if given.model is not None:
        folder = locate_model(given.model, given.revision)
        dtype = resolve_dtype(given.dtype, device)
        teacher = load_model(folder, dtype, device, given.trust_remote_code, plan.scoring.compile is True)
        by_teacher = probe_scoring(teacher, plan, tokenizer)
        del teacher
        num_parameters = plan.require_teacher().num_parameters
        num_reference_parameters, _, of_reference = _plan_reference(storage, plan, counts, tokenizer, device)
        scoring = _scoring_stage("score teacher", left, by_teacher, counts.num_shards)
        notes = describe_proxy(plan, counts, num_parameters, num_reference_parameters)
        return num_parameters, by_teacher, [scoring, *of_reference], notes
    # The teacher is the reference with other weights, and a step costs about three forward passes.
    num_parameters, by_reference, of_reference = _plan_reference(storage, plan, counts, tokenizer, device)
    tuning = []
    if plan.teacher_entry is None:
        assert given.tuned_on is not None
        num_tokens = _training_tokens(given.tuned_on.training, plan, count_target_tokens(storage, plan, tokenizer))
        tuning = [_stage("tune teacher", num_tokens, by_reference.tokens_per_second / 3)]
    scoring = _scoring_stage("score teacher", left, by_reference, counts.num_shards)
    return num_parameters, by_reference, [*of_reference, *tuning, scoring], []


def _is_faster_in_bfloat16(plan: RunPlan) -> bool:
    given = plan.teacher if plan.teacher.model is not None else plan.reference
    return has_native_bfloat16() and choose_scoring_dtype("cpu", True, find_width(given)) == "bfloat16"


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
    storage: Storage, plan: RunPlan, counts: CorpusCounts, tokenizer: CorpusTokenizer, device: torch.device
) -> tuple[int, Throughput, list[StageCost]]:
    """Parameters and throughput of the reference, and what is left of its training and scoring."""
    reference, stages = plan.reference, []
    entry = find_reference(storage, plan, counts.prepared) if counts.prepared else None
    dtype = resolve_dtype(reference.dtype, device)
    if reference.model is not None:
        folder = locate_model(reference.model, reference.revision)
        loaded = load_model(folder, dtype, device, reference.trust_remote_code)
        assert plan.reference_entry is not None
        num_parameters = plan.reference_entry.num_parameters
    else:
        assert reference.architecture is not None
        assert reference.training is not None
        vocab_size = resolve_vocab_size(reference.vocab_size, tokenizer.entry.vocab_size)
        model = build_model(reference.architecture, vocab_size, plan.corpus.sequence_length + 1, reference.training.seed)
        num_parameters = count_parameters(model)
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
    achieved = probe_scoring(loaded, plan, tokenizer)
    stages.append(_scoring_stage("score reference", count_left_tokens(storage, counts, entry), achieved, counts.num_shards))
    if plan.scoring.proxy is not None:
        scorer = Scorer(loaded, plan.scoring.tokens_per_batch, plan.scoring.attention, plan.scoring.compile)
        rate = probe_proxy(plan, plan.scoring.proxy, scorer, tokenizer.entry.vocab_size, tokenizer.eos_token_id)
        stages.append(_stage("score proxy", count_proxy_tokens(storage, plan, counts, entry), rate, counts.num_shards))
    return num_parameters, achieved, stages


def _describe_matching(given: TrainingConfig, matched: TrainingConfig) -> str:
    if matched.steps is not None and given.steps is not None:
        return f"{matched.steps:,} of {given.steps:,} steps: FLOP-matched"
    return f"{matched.epochs:.3g} of {given.epochs:g} epochs: FLOP-matched"


def _training_tokens(training: TrainingConfig, plan: RunPlan, data_tokens: int) -> int:
    if training.epochs is not None:
        return int(training.epochs * data_tokens)
    assert training.steps is not None
    return training.steps * training.batch_size * plan.corpus.sequence_length
