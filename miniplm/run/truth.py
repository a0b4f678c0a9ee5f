"""What a run kept of each kind of document, where `corpus.truth` names the field that says it."""

from __future__ import annotations

from miniplm.config.run import CorpusConfig, RunConfig, config_as_dict
from miniplm.corpus.reader import load_corpus
from miniplm.corpus.truth import provide_truth
from miniplm.errors import ConfigError, RunError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import RunRecord
from miniplm.records.selections import SelectionManifest
from miniplm.records.truth import TruthSummary
from miniplm.selection.connection import connect
from miniplm.selection.join import candidate_scores
from miniplm.selection.ranking import load_selection
from miniplm.selection.truth import summarise_truth
from miniplm.storage.root import Storage

_FIELDS = ("truth", "clean")


def judge_selection(storage: Storage, config: CorpusConfig, corpus: CorpusManifest, selection: SelectionManifest) -> TruthSummary:
    """A selection held against the labels of `config.truth`; raises what `provide_truth` and `summarise_truth` raise."""
    truth = provide_truth(storage, config, corpus)
    with connect(storage) as connection:
        candidate_scores(connection, storage, corpus, selection.teacher_id, selection.reference_id, selection.score)
        return summarise_truth(connection, storage, corpus, selection, truth, config.clean)


def find_truth(storage: Storage, record: RunRecord) -> TruthSummary | None:
    """The truth about what a run selected; None where it names no field, has selected nothing yet, or selects documents."""
    corpus = record.config.get("corpus", {})
    if corpus.get("truth") is None or record.corpus_id is None or record.selection_id is None:
        return None
    selection = load_selection(storage, record.selection_id)
    if selection.unit == "document":  # the labels are of sequences
        return None
    return judge_selection(storage, CorpusConfig.model_validate(corpus), load_corpus(storage, record.corpus_id), selection)


def inspect_truth(storage: Storage, record: RunRecord) -> TruthSummary:
    """As `find_truth`; raises `ConfigError` where the run names no field, `RunError` where it has selected nothing yet."""
    summary = find_truth(storage, record)
    if summary is not None:
        return summary
    if record.config.get("corpus", {}).get("truth") is None:
        raise ConfigError(
            f"run {record.run_name} names no field that says what its documents are; add --set corpus.truth=FIELD, e.g. meta.kind, and "
            "--set corpus.clean=[LABEL] for the labels of clean text"
        )
    if record.selection_id is not None:
        raise ConfigError(
            f"run {record.run_name} selects documents, and what was kept of each kind is known of sequences; look at documents one by one "
            "with `miniplm inspect RUN --documents`"
        )
    raise RunError(f"run {record.run_name!r} has selected nothing yet; `miniplm run` with its config does")


def with_truth(record: RunRecord, config: RunConfig) -> RunRecord:
    """The record with the field that a configuration names now: it decides nothing that was made, so it may be named afterwards."""
    corpus = record.config.get("corpus", {})
    named = {key: value for key, value in config_as_dict(config.corpus).items() if key in _FIELDS}
    if {key: corpus.get(key) for key in _FIELDS} == named or (named["truth"] is None and corpus.get("truth") is None):
        return record
    return record.model_copy(update={"config": record.config | {"corpus": corpus | named}})
