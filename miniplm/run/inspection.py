"""Looks into a run: single sequences with their text, origin and scores, and what became of each domain."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.corpus.reader import load_corpus, load_corpus_tokenizer
from miniplm.errors import ConfigError, CorpusError, RunError, ScoreError, list_offenders
from miniplm.proxy.labels import find_labelled
from miniplm.records.manifests import CorpusManifest, DomainCounts, Record, ShardEntry, Split
from miniplm.records.run import RunRecord
from miniplm.records.selections import DomainSelection, SelectionManifest
from miniplm.scoring.shards import check_score_shard
from miniplm.selection.connection import connect
from miniplm.selection.diversity_sample import SelectionDiversity, provide_diversity
from miniplm.selection.documents import document_scores
from miniplm.selection.join import candidate_scores
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage

Order = Literal["top", "bottom"]

_REPAIR = (
    "Delete that file and run `miniplm prepare CONFIG`: the corpus is made again, with the same content, and the scores stay good"
)


class DocumentOrigin(Record):
    """Where a document comes from: `record_number` of a source file counts from 1; None where the corpus does not tell.

    A record is a row of Parquet, a line of JSON Lines (blank lines are not counted), a whole text file.
    """

    document_id: int
    path: str | None
    record_number: int | None


class InspectedDocument(DocumentOrigin):
    """A document with the scores of all of it that lies among the candidates, in nats a scored token.

    `first_sequence_id` is the first of the `num_sequences` sequences that hold a part of it.
    """

    domain: str
    first_sequence_id: int
    num_sequences: int
    num_scored_tokens: int
    teacher_nll: float
    reference_nll: float
    difference_score: float


class InspectedDocuments(Record):
    """The documents at one end of the ranking; of `num_unattributed` sequences it is not known which part is which document's."""

    documents: tuple[InspectedDocument, ...]
    num_documents: int
    num_unattributed: int


class InspectedSequence(Record):
    """A sequence with its text. NLLs are in nats a scored token; the difference score is in the unit the run selects by.

    Scores are None where the sequence is no candidate or is not scored yet, `selected` where nothing is selected yet; of a selection by
    documents it says whether all of the sequence's were kept. `is_predicted` is given of scored candidates of a run with a proxy: true where
    the teacher's NLL, and with it the difference score, is what the proxy predicts.
    """

    sequence_id: int
    split: Split
    domain: str
    documents: tuple[DocumentOrigin, ...]
    num_tokens: int
    num_scored_tokens: int | None = None
    teacher_nll: float | None = None
    reference_nll: float | None = None
    difference_score: float | None = None
    selected: bool | None = None
    is_predicted: bool | None = Field(None, exclude_if=lambda predicted: predicted is None)
    text: str

    @property
    def document_ids(self) -> tuple[int, ...]:
        return tuple(document.document_id for document in self.documents)


class InspectedDomain(Record):
    """A domain in every split, and what was selected of it; `selection` is None before that, or without candidates."""

    domain: str
    splits: dict[Split, DomainCounts]
    selection: DomainSelection | None = None


def inspect_sequences(
    storage: Storage, record: RunRecord, order: Order = "top", domain: str | None = None, limit: int = 20
) -> list[InspectedSequence]:
    """The `limit` most (`top`) or least (`bottom`) wanted candidates of a run, or of one domain of it, best or worst first.

    Ranked by difference score, ties by the smaller sequence id, so the top is what a smaller ratio would still keep.
    Raises `ConfigError` for an unknown domain or order, `RunError` where the run is not scored yet, and
    `ScoreJoinError` where scores are missing or damaged.
    """
    corpus = _check_question(storage, record, order, domain, limit)
    with open_scores(storage, record, corpus) as connection:
        scores = rank_sequences(connection, order, domain, limit)
    return describe_sequences(storage, record, corpus, scores)


def _check_question(storage: Storage, record: RunRecord, order: str, domain: str | None, limit: int) -> CorpusManifest:
    """The corpus that is asked for."""
    if order not in ("top", "bottom"):
        raise ConfigError(f"order is {order!r}; it must be top (most wanted) or bottom (least wanted)")
    if limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    corpus = load_run_corpus(storage, record)
    if domain is not None:
        _check_domain(corpus, domain)
    return corpus


def inspect_sequence(storage: Storage, record: RunRecord, sequence_id: int) -> InspectedSequence:
    """One sequence of any split by its id; its scores are None until both models have scored its shard.

    Raises `ConfigError` for an id that the corpus does not have, `ScoreJoinError` where its scores are damaged.
    """
    corpus = load_run_corpus(storage, record)
    entry = _find_shard(corpus, sequence_id)
    scores: dict[str, Any] = {"sequence_id": sequence_id}
    models = record.scorer_ids or ()
    scored = bool(models) and all(check_score_shard(storage, entry, model).state != "missing" for model in models)
    if entry.split == "candidate" and scored:
        one_shard = corpus.model_copy(update={"shards": (entry,)})
        with open_scores(storage, record, one_shard) as connection:
            scores = _fetch_scores(connection, "WHERE sequence_id = ?", [sequence_id])[0]
    return describe_sequences(storage, record, corpus, [scores])[0]


def inspect_documents(
    storage: Storage, record: RunRecord, order: Order = "top", domain: str | None = None, limit: int = 20
) -> InspectedDocuments:
    """The `limit` most or least wanted documents of a run by their own difference score, ties by the smaller document id.

    Raises as `inspect_sequences`, and `ScoreError` where the scores of documents are missing, as in runs of earlier versions.
    """
    corpus = _check_question(storage, record, order, domain, limit)
    if record.has_proxy:
        raise ScoreError(
            f"run {record.run_name!r} has the scores of a proxy, which predicts whole sequences and knows nothing of the documents in them; inspect "
            "sequences, or let the teacher score all (scoring.proxy: null)"
        )
    with open_scores(storage, record, corpus) as connection:
        assert record.scorer_ids is not None  # `open_scores` has refused a run without
        num_unattributed = document_scores(connection, storage, corpus, *record.scorer_ids, _score_kind(record))
        where, parameters = ("WHERE domain = ?", [domain]) if domain is not None else ("", [])
        ranking = "difference_score DESC, document_id ASC" if order == "top" else "difference_score ASC, document_id DESC"
        columns = [name for name in InspectedDocument.model_fields if name not in ("path", "record_number")]
        num_documents = connection.execute(f"SELECT count(*) FROM document_scores {where}", parameters).fetchall()[0][0]
        rows = connection.execute(
            f"SELECT {', '.join(columns)} FROM document_scores {where} ORDER BY {ranking} LIMIT {int(limit)}", parameters
        ).fetchall()
    documents = []
    for row in rows:
        scores = dict(zip(columns, row, strict=True))
        documents.append(InspectedDocument(**scores | _trace_document(corpus, scores["document_id"]).model_dump()))
    return InspectedDocuments(documents=tuple(documents), num_documents=num_documents, num_unattributed=num_unattributed)


def inspect_domains(storage: Storage, record: RunRecord) -> list[InspectedDomain]:
    """Every domain of a run's corpus by name, with its counts by split and what the selection kept of it."""
    corpus = load_run_corpus(storage, record)
    selection = load_selection(storage, record.selection_id) if record.selection_id is not None else None
    return describe_domains(corpus, selection)


def inspect_diversity(storage: Storage, record: RunRecord) -> SelectionDiversity:
    """How varied and how hard a sample of what was kept is, with the embeddings, which the report shows from then on.

    Raises `RunError` where nothing is selected yet, and as `provide_diversity`.
    """
    corpus = load_run_corpus(storage, record)
    if record.selection_id is None or record.reference is None:
        raise RunError(f"run {record.run_name!r} has no selection yet; `miniplm run` with its config makes it")
    selection = load_selection(storage, record.selection_id)
    if selection.unit == "document":
        raise RunError(f"run {record.run_name!r} selects documents, and diversity is measured of kept sequences")
    trust_remote_code = bool(record.config.get("corpus", {}).get("trust_remote_code", False))
    return provide_diversity(storage, corpus, selection, record.reference, trust_remote_code)


def describe_domains(corpus: CorpusManifest, selection: SelectionManifest | None) -> list[InspectedDomain]:
    return [
        InspectedDomain(
            domain=domain,
            splits={split: counts[domain] for split, counts in corpus.domains.items() if domain in counts},
            selection=selection.domains.get(domain) if selection is not None else None,
        )
        for domain in _list_domains(corpus)
    ]


def load_run_corpus(storage: Storage, record: RunRecord) -> CorpusManifest:
    """The corpus of a run; `RunError` where it is not prepared yet."""
    if record.corpus_id is None:
        raise RunError(f"run {record.run_name!r} has no corpus yet; `miniplm run` with its config prepares it")
    return load_corpus(storage, record.corpus_id)


@contextmanager
def open_scores(storage: Storage, record: RunRecord, corpus: CorpusManifest) -> Iterator[Any]:
    """A DuckDB connection with the table `candidate_scores` of the corpus's candidates under the run's two models.

    The difference score is of the kind (mean or sum) that the run's configuration selects by.
    """
    if record.scorer_ids is None:
        raise RunError(f"run {record.run_name!r} has no scores yet; `miniplm run` with its config computes them")
    with connect(storage) as connection:
        candidate_scores(connection, storage, corpus, *record.scorer_ids, _score_kind(record))
        yield connection


def is_predicted(record: RunRecord, sequence_id: int) -> bool | None:
    """Whether a candidate's teacher NLL is what a proxy predicts; None in a run without a proxy."""
    content = record.config.get("scoring", {}).get("proxy")
    if content is None:
        return None
    config = ProxyConfig.model_validate(content)
    return not find_labelled(np.array([sequence_id], dtype=np.int64), config.share, config.seed)[0]


def _score_kind(record: RunRecord) -> str:
    kind: str = record.config.get("selection", {}).get("score", "mean")
    return kind


def rank_sequences(connection: Any, order: Order, domain: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """Rows of `candidate_scores` from one end of the ranking; DuckDB keeps `limit` rows in memory, however many there are."""
    where, parameters = ("WHERE domain = ?", [domain]) if domain is not None else ("", [])
    # The bottom is the ranking read from its end, where the larger id is the less wanted of two equal scores.
    ranking = "difference_score DESC, sequence_id ASC" if order == "top" else "difference_score ASC, sequence_id DESC"
    return _fetch_scores(connection, f"{where} ORDER BY {ranking} LIMIT {int(limit)}", parameters)


def describe_sequences(
    storage: Storage, record: RunRecord, corpus: CorpusManifest, scores: Sequence[dict[str, Any]]
) -> list[InspectedSequence]:
    """The sequences of `scores` (rows of `candidate_scores`, or only an id), decoded, in that order.

    Reads only row groups that hold one of them.
    """
    trust_remote_code = bool(record.config.get("corpus", {}).get("trust_remote_code", False))
    tokenizer = load_corpus_tokenizer(storage, corpus.corpus_id, trust_remote_code, only_decodes=True)
    by_shard: dict[ShardEntry, list[int]] = {}
    for row in scores:
        by_shard.setdefault(_find_shard(corpus, row["sequence_id"]), []).append(row["sequence_id"])
    sequences: dict[int, dict[str, Any]] = {}
    selected: dict[int, bool | None] = {}
    for entry, sequence_ids in by_shard.items():
        for sequence in _read_sequences(storage, entry, sequence_ids):
            sequences[sequence["sequence_id"]] = {**sequence, "split": entry.split}
        selected.update(_find_selected(storage, record, entry, {row: sequences[row]["document_ids"] for row in sequence_ids}))
    inspected = []
    for row in scores:
        sequence = sequences[row["sequence_id"]]
        inspected.append(
            InspectedSequence(
                sequence_id=sequence["sequence_id"],
                split=sequence["split"],
                domain=sequence["domain"],
                documents=tuple(_trace_document(corpus, document_id) for document_id in sequence["document_ids"]),
                num_tokens=sequence["num_tokens"],
                num_scored_tokens=row.get("num_scored_tokens"),
                teacher_nll=row.get("teacher_nll"),
                reference_nll=row.get("reference_nll"),
                difference_score=row.get("difference_score"),
                selected=selected[sequence["sequence_id"]],
                is_predicted=is_predicted(record, row["sequence_id"]) if row.get("teacher_nll") is not None else None,
                text=tokenizer.decode(sequence["token_ids"]),
            )
        )
    return inspected


def _fetch_scores(connection: Any, clause: str, parameters: list[Any]) -> list[dict[str, Any]]:
    columns = ("sequence_id", "num_scored_tokens", "teacher_nll", "reference_nll", "difference_score")
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM candidate_scores {clause}", parameters).fetchall()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _list_domains(corpus: CorpusManifest) -> list[str]:
    return sorted({domain for counts in corpus.domains.values() for domain in counts})


def _check_domain(corpus: CorpusManifest, domain: str) -> None:
    domains = _list_domains(corpus)
    if domain not in domains:
        raise ConfigError(f"corpus {corpus.corpus_id} has no domain {domain!r}; its domains: {list_offenders(domains, most=50)}")


def _find_shard(corpus: CorpusManifest, sequence_id: int) -> ShardEntry:
    shards = sorted((shard for shard in corpus.shards if shard.num_sequences), key=lambda shard: shard.first_sequence_id)
    position = bisect_right([shard.first_sequence_id for shard in shards], sequence_id) - 1
    if position >= 0 and sequence_id < shards[position].first_sequence_id + shards[position].num_sequences:
        return shards[position]
    if not shards:
        raise ConfigError(f"corpus {corpus.corpus_id} has no sequence {sequence_id}; it has none at all")
    last = shards[-1].first_sequence_id + shards[-1].num_sequences - 1
    raise ConfigError(
        f"corpus {corpus.corpus_id} has no sequence {sequence_id}; its sequence ids go from {shards[0].first_sequence_id} to {last}"
    )


def _read_sequences(storage: Storage, entry: ShardEntry, sequence_ids: Iterable[int]) -> list[dict[str, Any]]:
    """Rows of a shard by id. Ids are dense, so the row is known; a file that disagrees is refused with `CorpusError`."""
    relative = layout.corpus_shard(entry.corpus_id, entry.split, entry.shard_index)
    wanted = sorted(sequence_ids)
    found: list[dict[str, Any]] = []
    try:
        with storage.open(relative) as file:
            shard = pq.ParquetFile(file)
            first = entry.first_sequence_id
            for group in range(shard.num_row_groups):
                num_rows = shard.metadata.row_group(group).num_rows
                rows = [sequence_id - first for sequence_id in wanted if first <= sequence_id < first + num_rows]
                if rows:
                    found += shard.read_row_group(group).take(rows).to_pylist()
                first += num_rows
    except (pa.ArrowException, FileNotFoundError) as error:
        raise CorpusError(f"{storage.url(relative)} cannot be read ({error}). {_REPAIR}") from error
    if [row["sequence_id"] for row in found] != wanted:
        raise CorpusError(
            f"{storage.url(relative)} does not hold the sequences that the manifest of corpus {entry.corpus_id} says "
            f"(looked for {list_offenders(wanted)}). {_REPAIR}"
        )
    return found


def _find_selected(
    storage: Storage, record: RunRecord, entry: ShardEntry, document_ids: Mapping[int, Sequence[int]]
) -> dict[int, bool | None]:
    """Whether sequences were kept, by id; `document_ids` are those of each, since of a selection by documents all of them have to be."""
    sequence_ids = list(document_ids)
    if record.selection_id is None:
        return dict.fromkeys(sequence_ids, None)
    if entry.split != "candidate":
        return dict.fromkeys(sequence_ids, False)
    relative = layout.selection_shard(record.selection_id, entry.shard_index)
    try:
        with storage.open(relative) as file:
            table = pq.ParquetFile(file)
            of_documents = "document_id" in table.schema_arrow.names
            kept = set(table.read(columns=["document_id" if of_documents else "sequence_id"])[0].to_pylist())
    except (pa.ArrowException, FileNotFoundError) as error:
        raise CorpusError(
            f"{storage.url(relative)} cannot be read ({error}); make it again with `miniplm select CONFIG`"
        ) from error
    if of_documents:
        return {sequence_id: kept.issuperset(ids) for sequence_id, ids in document_ids.items()}
    return {sequence_id: sequence_id in kept for sequence_id in sequence_ids}


def _trace_document(corpus: CorpusManifest, document_id: int) -> DocumentOrigin:
    sources = sorted((source for source in corpus.sources if source.num_records), key=lambda source: source.first_document_id)
    position = bisect_right([source.first_document_id for source in sources], document_id) - 1
    if position >= 0:
        source = sources[position]
        record_index = document_id - source.first_document_id
        if record_index < source.num_records:
            return DocumentOrigin(document_id=document_id, path=source.path, record_number=record_index + 1)
    return DocumentOrigin(document_id=document_id, path=None, record_number=None)
