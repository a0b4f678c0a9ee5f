"""The held-out losses of a run's students by training FLOPs, the laws fitted to them, and what students save against the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

from miniplm.config.methods import BASELINE_METHOD, has_teacher_along
from miniplm.config.run import EvaluationConfig, TrainingConfig
from miniplm.errors import RunError
from miniplm.evaluation.baselines import find_tokenizer, rank_baselines
from miniplm.evaluation.milestones import find_checkpoint_evaluations
from miniplm.evaluation.scaling import (
    ScalingFit,
    compute_saving,
    data_saving,
    explain_unfit,
    find_saving_interval,
    fit_scaling_law,
)
from miniplm.records.manifests import CheckpointMetrics, Evaluation
from miniplm.records.metrics import read_student_metrics
from miniplm.records.run import RunRecord, StudentRecord
from miniplm.records.texts import MeasuredText
from miniplm.storage.root import Storage
from miniplm.training.flops import training_flops_per_token


@dataclass(frozen=True)
class CurvePoint:
    """A checkpoint that was measured: held-out loss in nats a token after `num_tokens` of training; `is_fitted`: not in warm-up."""

    step: int
    num_tokens: int
    flops: float
    loss: float
    standard_error: float | None
    is_fitted: bool


@dataclass(frozen=True)
class Extrapolation:
    """The loss that a fit tells for `num_tokens` of training, `times_beyond` the FLOPs of the last measured checkpoint."""

    num_tokens: float
    flops: float
    loss: float
    interval: tuple[float, float]
    times_beyond: float


@dataclass(frozen=True)
class Saving:
    """What a student saves against `baseline`, where both have the loss that the student's fit tells for its own FLOPs.

    `compute` is C_baseline / C_student, `data` tokens_baseline / tokens_student; infinite: the baseline never has that
    loss by its fit. `measured_compute` takes the student's measured final loss instead of its fit. `times_beyond` is how
    far the baseline was followed beyond its last measured checkpoint: FLOPs over FLOPs, at most 1 where it need not be.
    """

    baseline: str
    loss: float
    compute: float
    compute_interval: tuple[float, float]
    data: float
    data_interval: tuple[float, float]
    measured_compute: float
    times_beyond: float


@dataclass(frozen=True)
class StudentCurve:
    """A student's measured checkpoints, and the law fitted to them: or in `no_fit` and `no_saving`, why there is none."""

    method: str
    num_parameters: int
    flops_per_token: float
    points: tuple[CurvePoint, ...]
    fit: ScalingFit | None
    no_fit: str | None
    extrapolations: tuple[Extrapolation, ...] = ()
    saving: Saving | None = None
    no_saving: str | None = None


def gather_curves(
    storage: Storage,
    record: RunRecord,
    metrics: Mapping[str, Mapping[int, CheckpointMetrics]] | None = None,
    num_samples: int = 200,
) -> dict[str, StudentCurve]:
    """The curve of each student of a run, in their order; computed from what is stored, the same for the same state.

    Checkpoints up to the end of the warm-up are left out of the fits: there the loss follows the rising learning rate.
    `metrics` are those of `read_student_metrics`, if they are at hand; `num_samples` are drawn for the intervals. Raises `RunError` where a student had a teacher in
    training and the record does not tell its size.
    """
    metrics = read_student_metrics(storage, record) if metrics is None else metrics
    tokens = record.config.get("evaluation", {}).get("extrapolate_tokens", EvaluationConfig().extrapolate_tokens)
    curves = {
        name: _make_curve(storage, record, name, student, metrics.get(name, {}), tokens, num_samples)
        for name, student in record.students.items()
    }
    return {name: _add_saving(record, name, curves) for name in curves}


def describe_curve(curve: StudentCurve) -> dict[str, Any]:
    """A curve as JSON-like facts; null stands for what is infinite (never, by the fit) or not there."""
    facts = asdict(replace(curve, fit=None))
    if curve.fit is not None:
        fit = curve.fit
        facts["fit"] = {
            "loss_floor": fit.law.loss_floor,
            "loss_floor_interval": fit.find_interval(lambda law: law.loss_floor),
            "amplitude": fit.law.amplitude,
            "amplitude_interval": fit.find_interval(lambda law: law.amplitude),
            "exponent": fit.law.exponent,
            "exponent_interval": fit.find_interval(lambda law: law.exponent),
            "num_points": fit.num_points,
            "residual_spread": fit.residual_spread,
            "doubts": fit.doubts,
        }
    plain: dict[str, Any] = _without_infinities(facts)
    return plain


def student_flops_per_token(record: RunRecord, student_name: str) -> float:
    """Training FLOPs a token of a student of a run, its teacher's forward pass counted where that runs along."""
    student = record.students[student_name]
    if not has_teacher_along(student.method):
        return training_flops_per_token(student.num_parameters)
    if record.teacher is None:
        raise RunError(
            f"run {record.run_name}: student {student_name} was trained by {student.method}, but the run's record names no teacher; "
            "run `miniplm run` with its config again, finished work is kept"
        )
    return training_flops_per_token(student.num_parameters, record.teacher.num_parameters)


def _make_curve(
    storage: Storage,
    record: RunRecord,
    name: str,
    student: StudentRecord,
    metrics: Mapping[int, CheckpointMetrics],
    extrapolate_tokens: Sequence[float],
    num_samples: int,
) -> StudentCurve:
    flops_per_token = student_flops_per_token(record, name)
    settings = record.find_student_settings(name).get("training", {})
    # A config that says nothing else: only the rule for a warm-up that is not given is wanted of it.
    warmup_steps = TrainingConfig(epochs=1, warmup_steps=settings.get("warmup_steps")).resolve_warmup_steps(student.num_steps)
    num_tokens = dict(zip(metrics, accumulate(row.num_tokens for row in metrics.values()), strict=True))
    points = tuple(
        CurvePoint(
            step=step,
            num_tokens=num_tokens[step],
            flops=flops_per_token * num_tokens[step],
            loss=evaluation.overall.nats_per_token,
            standard_error=evaluation.overall.nats_standard_error,
            is_fitted=step > warmup_steps,
        )
        for step, evaluation in sorted(_find_evaluations(storage, record, student).items())
        if step in num_tokens
    )
    fitted = [point for point in points if point.is_fitted]
    flops, losses = [point.flops for point in fitted], [point.loss for point in fitted]
    no_fit = explain_unfit(flops, losses)
    fit = fit_scaling_law(flops, losses, num_samples) if no_fit is None else None
    extrapolations = [_extrapolate(fit, tokens, flops_per_token) for tokens in extrapolate_tokens] if fit else []
    return StudentCurve(student.method, student.num_parameters, flops_per_token, points, fit, no_fit, tuple(extrapolations))


def _find_evaluations(storage: Storage, record: RunRecord, student: StudentRecord) -> dict[int, Evaluation]:
    """Evaluations of a student's checkpoints by step, the final one among them; on the text that it was measured on, and not damaged."""
    own = MeasuredText(corpus_id=record.corpus_id or "")
    text = own if student.evaluation is None else MeasuredText.of(student.evaluation)
    found = find_checkpoint_evaluations(storage, text, student.training_id)
    return found if student.evaluation is None else {**found, student.num_steps: student.evaluation}


def _extrapolate(fit: ScalingFit, num_tokens: float, flops_per_token: float) -> Extrapolation:
    flops = num_tokens * flops_per_token
    return Extrapolation(
        num_tokens=num_tokens,
        flops=flops,
        loss=fit.law.predict_loss(flops),
        interval=fit.find_interval(lambda law: law.predict_loss(flops)),
        times_beyond=flops / fit.max_flops,
    )


def _add_saving(record: RunRecord, name: str, curves: Mapping[str, StudentCurve]) -> StudentCurve:
    curve = curves[name]
    if curve.method == BASELINE_METHOD:
        return curve
    # Laws are fitted to nats a token, which compare within one tokenizer only.
    same = [
        other
        for other in rank_baselines(record, name)
        if record.students[other].architecture == record.students[name].architecture
        and find_tokenizer(record, other) == find_tokenizer(record, name)
    ]
    no_saving = None
    if not same:
        no_saving = "no student of method pretrain with the same architecture and tokenizer is there to compare with"
    elif curve.fit is None:
        no_saving = "its own curve has no fit"
    elif curves[same[0]].fit is None:
        no_saving = f"the curve of the baseline {same[0]} has no fit"
    if no_saving is not None:
        return replace(curve, no_saving=no_saving)
    baseline, final = curves[same[0]], curve.points[-1]
    assert curve.fit is not None
    assert baseline.fit is not None
    loss = curve.fit.law.predict_loss(final.flops)
    compute = compute_saving(baseline.fit.law, final.flops, loss)
    interval = find_saving_interval(baseline.fit, curve.fit, final.flops)

    def in_tokens(saving: float) -> float:
        return data_saving(saving, curve.flops_per_token, baseline.flops_per_token)

    return replace(
        curve,
        saving=Saving(
            baseline=same[0],
            loss=loss,
            compute=compute,
            compute_interval=interval,
            data=in_tokens(compute),
            data_interval=(in_tokens(interval[0]), in_tokens(interval[1])),
            measured_compute=compute_saving(baseline.fit.law, final.flops, final.loss),
            times_beyond=compute * final.flops / baseline.fit.max_flops,
        ),
    )


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
