"""The exports of a run: each as a job, and whether it is done."""

from __future__ import annotations

from miniplm.config.exports import SELECTION, ExportConfig
from miniplm.config.run import RunConfig
from miniplm.export.job import ExportJob
from miniplm.export.records import ExportManifest
from miniplm.export.target import ExportTarget
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer


def plan_export(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, export: ExportConfig
) -> ExportJob:
    """What an export of a run's selection is to be."""
    return ExportJob(storage, corpus, selection, export.resolve(selection.selection_id), plan.corpus.trust_remote_code)


def find_export(job: ExportJob) -> ExportManifest | None:
    """The manifest of an export that is done, its files being there with their sizes. Raises `DamagedFileError` where one is not."""
    return ExportTarget(job.config.to).find_manifest(job.export_id)


def check_exports(config: RunConfig) -> None:
    """Raises a `ConfigError` or `MiniplmError` for a target that holds other files, or a tokenizer that cannot be loaded."""
    for export in config.exports:
        if SELECTION not in export.to:
            ExportTarget(export.to).check_usable()
        if export.tokenizer is not None:
            load_tokenizer(export.tokenizer, export.eos_token, field="exports.eos_token")
