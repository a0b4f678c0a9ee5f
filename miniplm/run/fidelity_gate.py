"""The fidelity gate of a run: a dtype scores only where a calibration says that it selects what float32 does."""

from __future__ import annotations

from miniplm.errors import FidelityError
from miniplm.models.devices import describe_device, resolve_device
from miniplm.records.calibrations import Calibration
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.run.plan import RunPlan
from miniplm.run.signal_keys import provide_signal_keys
from miniplm.selection.fidelity import Fidelity, check_measurable, find_calibration, measure_fidelity, needs_calibration
from miniplm.storage.root import Storage


def find_sufficient(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, reference: ModelEntry, plan: RunPlan
) -> Calibration | None:
    """The calibration that may let fp8 pass: on enough sequences, and made on the device that is to score, not emulated elsewhere.

    Raises `ConfigError` where none can measure the rule.
    """
    check_measurable(plan.selection)
    calibration = _find(storage, corpus, teacher, reference, plan)
    return calibration if calibration is not None and _suffices(calibration, corpus, plan) else None


def _suffices(calibration: Calibration, corpus: CorpusManifest, plan: RunPlan) -> bool:
    wanted = min(plan.scoring.calibration_sequences, corpus.split_counts("candidate").num_sequences)
    return len(calibration.sequence_ids) >= wanted and _is_measured(calibration, plan)


def _is_measured(calibration: Calibration, plan: RunPlan) -> bool:
    """Whether it was made where the scores will be: on this device, or by a worker of the pool, which is no CPU that emulates."""
    if plan.is_on_work_pool:
        return not calibration.device.startswith("cpu")
    return calibration.device == describe_device(resolve_device(plan.scoring.device))


def check_fidelity(storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, reference: ModelEntry, plan: RunPlan) -> None:
    """Raises `FidelityError` where a calibration falls under `scoring.min_overlap`, or where fp8 has no sufficient one, and `ConfigError`
    where none can measure the rule."""
    needed = needs_calibration(teacher.dtype, reference.dtype)
    if needed:
        check_measurable(plan.selection)
    calibration = _find(storage, corpus, teacher, reference, plan)
    if needed and (calibration is None or not _suffices(calibration, corpus, plan)):
        raise FidelityError(
            f"teacher {teacher.dtype}, reference {reference.dtype}: fp8 was not compared with float32 on corpus "
            f"{corpus.corpus_id} on this device yet; run `miniplm score CONFIG --calibrate {plan.scoring.calibration_sequences}` "
            "first (`miniplm run` does so by itself)"
        )
    if calibration is not None:
        judge_fidelity(storage, corpus, calibration, plan)


def _find(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, reference: ModelEntry, plan: RunPlan
) -> Calibration | None:
    """What was measured that says something of the run's rule."""
    if plan.selection.unit == "document":  # a run that ranks sequences may have left one
        return None
    return find_calibration(storage, corpus.corpus_id, teacher.model_id, reference.model_id, plan.selection.within)


def measure_run(storage: Storage, corpus: CorpusManifest, calibration: Calibration, plan: RunPlan) -> Fidelity:
    """What a calibration says of the run's selection. Raises as `measure_fidelity`, and where texts of signals cannot be read."""
    provide_signal_keys(storage, corpus, plan)
    return measure_fidelity(storage, corpus, calibration, plan.selection)


def judge_fidelity(storage: Storage, corpus: CorpusManifest, calibration: Calibration, plan: RunPlan) -> None:
    """Raises `FidelityError` where a calibration falls under `scoring.min_overlap`, or has too few sequences to select any."""
    assert calibration.within == plan.selection.within, "a calibration says nothing of another rule"
    fidelity = measure_run(storage, corpus, calibration, plan)
    of_each = " of each domain" if calibration.within == "domain" else ""
    if fidelity.num_selected == 0:
        raise FidelityError(
            f"teacher {calibration.teacher.dtype}, reference {calibration.reference.dtype}: of {fidelity.num_sequences} sequences "
            f"selection.{plan.selection.title} selects none, so that nothing was measured; "
            "measure on more sequences with `miniplm score CONFIG --calibrate N`, or keep more"
        )
    if not fidelity.passes(plan.scoring.min_overlap):
        raise FidelityError(
            f"teacher {calibration.teacher.dtype}, reference {calibration.reference.dtype}: of the {fidelity.num_selected} sequences that float32 scores select from {fidelity.num_sequences}{of_each and ', the best' + of_each}, these dtypes "
            f"select {fidelity.overlap:.1%}, less than scoring.min_overlap {plan.scoring.min_overlap:g} (Spearman {fidelity.spearman:.4f}). "
            f"Use dtype {'bfloat16 or float32' if needs_calibration(calibration.teacher.dtype, calibration.reference.dtype) else 'float32'}, measure on more sequences with `miniplm score CONFIG --calibrate N`, or allow less overlap"
        )
