"""The whole road once with the vocabulary of the published set-up: 151,936 rows, EOS 151,643, text whose ids lie beyond 65,535.

Whatever keeps a token id in 16 bits, takes EOS for a small number, or counts rows of a model where it means ids, fails here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from miniplm import layout
from miniplm.config.run import RunConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.derived.reader import load_derived, read_derived_shard
from miniplm.derived.sets import make_set
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.run import scoring_models as scorers
from miniplm.run import students
from miniplm.run.resolution import resolve
from miniplm.run.students import list_pending_jobs
from miniplm.scoring.shards import score_shard
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer
from scripts.demo_corpus import EOS
from tests.tiny_runs import make_documents, make_teacher, make_tokenizer, write_jsonl

NUM_ROWS, EOS_ID = 151_936, 151_643
NUM_DOCUMENTS = 40
# The words of the text have the ids right below EOS, single bytes the first ones, as in the published tokenizer; no text has what lies between.
FIRST_WORD = EOS_ID - 144
TRAINING = {
    "steps": 2,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "checkpoint_every_steps": 2,
}
METHODS = ("pretrain", "miniplm", "vanilla-kd", "seqkd", "miniplm+vanilla-kd")


def make_published_tokenizer(folder: Path, documents: list[dict[str, Any]]) -> None:
    """A BPE whose merged words have the highest ids of the published vocabulary, with its special tokens from EOS on."""
    small = json.loads(make_tokenizer(folder, documents).backend_tokenizer.to_str())["model"]
    words = sorted((word for word in small["vocab"] if word != EOS), key=small["vocab"].__getitem__)
    assert len(words) == 399
    ids = {word: index if index < 255 else FIRST_WORD + index - 255 for index, word in enumerate(words)}
    unused = {f"<unused-{index}>": index for index in range(255, FIRST_WORD)}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in small["merges"]]
    backend = Tokenizer(models.BPE(ids | unused, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (EOS, "<|im_start|>", "<|im_end|>")])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(folder)


@dataclass(frozen=True)
class Road:
    """What the road left at the storage root."""

    storage: Storage
    config: RunConfig
    corpus: CorpusManifest
    teacher: ModelEntry
    reference: ModelEntry
    selection: SelectionManifest
    students: dict[str, StudentRecord]
    derived_ids: tuple[str, ...]
    tokenizer: CorpusTokenizer


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    folder = tmp_path_factory.mktemp("published")
    documents = make_documents(NUM_DOCUMENTS)
    make_published_tokenizer(folder / "teacher", documents)
    make_teacher(folder / "teacher", NUM_ROWS)
    write_jsonl(folder / "sources.jsonl", documents)
    make_tokenizer(folder / "own", make_documents(40, seed=5), vocab_size=300)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2Config(vocab_size=NUM_ROWS, tie_word_embeddings=True, **sizes).save_pretrained(folder / "small")
    LlamaConfig(vocab_size=999, **sizes).save_pretrained(folder / "llama")
    chosen: list[dict[str, Any]] = [
        {"name": method.replace("+", "-"), "method": method, "architecture": str(folder / "small"), "vocab_size": NUM_ROWS}
        for method in METHODS
    ]
    chosen.append({"name": "own", "architecture": str(folder / "llama"), "tokenizer": str(folder / "own")})
    config = RunConfig.model_validate(
        {
            "name": "published",
            "storage": str(folder / "data"),
            "corpus": {
                "sources": [{"path": str(folder / "sources.jsonl"), "domain": "meta.domain"}],
                "tokenizer": str(folder / "teacher"),
                "sequence_length": 64,
                "sequences_per_shard": 32,
                "splits": {"reference": 0.2, "heldout": 0.1},
            },
            "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},  # as their scores are held against float64
            "reference": {"architecture": str(folder / "small"), "vocab_size": NUM_ROWS, "training": TRAINING, "dtype": "float32"},
            "students": [student | {"generation": {"prompt_tokens": 60}, "training": TRAINING} for student in chosen],
            "scoring": {"compile": False},
            "execution": {"launcher": "inline"},
        }
    )
    storage, plan = Storage(config.storage), resolve(config, checks=False)
    corpus = prepare_corpus(storage, config.corpus)
    teacher = plan.require_teacher()
    reference, _ = scorers.train_reference(storage, plan, corpus)
    for entry in (teacher, reference):
        scorer = scorers.open_scorer(storage, entry, config.scoring, corpus.sequence_length)
        for shard in corpus.split_shards("candidate"):
            score_shard(storage, corpus, shard, entry, scorer)
    selection = select_sequences(storage, corpus, teacher.model_id, reference.model_id, config.selection)
    records, derived_ids = {}, []
    for student in config.students:
        for job in list_pending_jobs(storage, plan, corpus, selection, student.name):
            derived_ids.append(make_set(storage, job, "cpu").derived_id)
        record, _ = students.train_student(storage, plan, corpus, selection, student.name)
        records[student.name] = students.evaluate_student(storage, plan, corpus, student.name, record)
    return Road(
        storage,
        config,
        corpus,
        teacher,
        reference,
        selection,
        records,
        tuple(derived_ids),
        load_corpus_tokenizer(storage, corpus.corpus_id),
    )


def read_split(road: Road, split: str) -> list[np.ndarray[Any, Any]]:
    shards = road.corpus.split_shards(split)  # type: ignore[arg-type]
    return [ids for shard in shards for ids in read_token_ids(read_shard(road.storage, shard, columns=["token_ids"]))]


def read_documents(tables: list[pa.Table], eos_token_id: int) -> list[np.ndarray[Any, Any]]:
    """Token ids of the documents that were packed, each without its EOS: those of a domain follow each other."""
    documents = []
    table = pa.concat_tables(table.set_column(0, "domain", table["domain"].cast(pa.string())) for table in tables)
    domains, sequences = np.array(table["domain"].to_pylist()), read_token_ids(table)
    for domain in sorted(set(domains)):
        ids = np.concatenate([sequences[row] for row in np.flatnonzero(domains == domain)]).astype(np.int64)
        pieces = np.split(ids, np.flatnonzero(ids == eos_token_id) + 1)
        assert len(pieces[-1]) == 0, "a document ends with EOS"
        documents += [piece[:-1] for piece in pieces[:-1]]
    return documents


def read_texts(road: Road, split: str) -> list[str]:
    tables = [
        read_shard(road.storage, shard, columns=["domain", "token_ids"]) for shard in road.corpus.shards if shard.split == split
    ]
    return [road.tokenizer.decode(ids) for ids in read_documents(tables, EOS_ID)]


def are_ids_of_the_text(token_ids: np.ndarray[Any, Any]) -> bool:
    """Bytes, words or EOS: an id that was cut to 16 bits would be one of those that no text has."""
    assert not {(FIRST_WORD + index) % 65536 for index in range(145)} & set(range(255))
    return bool(np.all((token_ids < 255) | ((token_ids >= FIRST_WORD) & (token_ids <= EOS_ID))))


def test_shards_hold_the_ids_in_32_bits_and_give_the_text_back(road: Road) -> None:
    assert (road.corpus.tokenizer.vocab_size, road.corpus.tokenizer.eos_token_id) == (EOS_ID + 3, EOS_ID)
    path = road.storage.path(layout.corpus_shard(road.corpus.corpus_id, "candidate", 0))
    assert pq.read_schema(path).field("token_ids").type.value_type == pa.uint32()
    whole = np.concatenate([ids for split in ("candidate", "reference", "heldout") for ids in read_split(road, split)])
    assert are_ids_of_the_text(whole)
    assert np.count_nonzero(whole > 65_535) > len(whole) / 4
    # One EOS a document, and none besides.
    documents = sorted(document["text"] for document in make_documents(NUM_DOCUMENTS))
    assert np.count_nonzero(whole == EOS_ID) == len(documents)
    assert sorted(text for split in ("candidate", "reference", "heldout") for text in read_texts(road, split)) == documents


@pytest.mark.parametrize("role", ["teacher", "reference"])
def test_scores_equal_a_float64_forward_of_each_sequence(road: Road, role: str) -> None:
    entry = road.teacher if role == "teacher" else road.reference
    folder = road.config.teacher.model if role == "teacher" else road.storage.path(layout.model_folder(entry.model_id))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert model.config.vocab_size == NUM_ROWS
    shard = road.corpus.split_shards("candidate")[0]
    scores = pq.read_table(road.storage.path(layout.score_shard(shard.corpus_id, entry.model_id, 0)))
    for row, ids in enumerate(read_split(road, "candidate")[:4]):
        token_ids = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            nll = torch.nn.functional.cross_entropy(model(token_ids[None, :-1]).logits[0], token_ids[1:], reduction="none")
        scored = token_ids[:-1] != EOS_ID
        assert scores["num_scored_tokens"][row].as_py() == int(scored.sum())
        assert scores["nll_sum"][row].as_py() == pytest.approx(nll[scored].sum().item(), rel=1e-5)


def test_the_selection_keeps_half_of_the_candidates(road: Road) -> None:
    num_candidates = road.corpus.split_counts("candidate").num_sequences
    assert (road.selection.num_candidates, road.selection.num_selected) == (num_candidates, num_candidates // 2)
    assert road.selection.num_selected_tokens <= road.corpus.split_counts("candidate").num_tokens


def test_the_teachers_text_has_ids_of_the_tokenizer_only_and_keeps_its_prompts(road: Road) -> None:
    (generated,) = [
        load_derived(road.storage, derived_id) for derived_id in road.derived_ids if derived_id.startswith("generation")
    ]
    candidates = {ids[:60].tobytes() for ids in read_split(road, "candidate") if len(ids) >= 60}
    num_beyond = 0
    for shard in generated.shards:
        table = read_derived_shard(road.storage, shard, ["token_ids"])
        assert table.schema.field("token_ids").type.value_type == pa.uint32()
        for ids in read_token_ids(table):
            # The teacher is random: any id that the tokenizer has, never one of the rows above.
            assert ids.max() < EOS_ID + 3
            if len(ids) > 60:
                assert ids[:60].tobytes() in candidates
            num_beyond += int(np.count_nonzero(ids[60:] > 65_535))
    assert num_beyond > 0


def test_the_students_own_tokens_give_the_same_text(road: Road) -> None:
    """The whole held-out split; the selection's sequences are pieces of documents."""
    conversions = [load_derived(road.storage, derived_id) for derived_id in road.derived_ids if derived_id.startswith("conversion")]
    assert len(conversions) == 2
    own = AutoTokenizer.from_pretrained(road.config.students[-1].tokenizer)
    found = []
    for conversion in conversions:
        assert conversion.tokenizer.vocab_size == 300
        tables = [read_derived_shard(road.storage, shard, ["domain", "token_ids"]) for shard in conversion.shards]
        assert {table.schema.field("token_ids").type.value_type for table in tables} == {pa.uint16()}
        found.append(sorted(own.decode(ids) for ids in read_documents(tables, own.eos_token_id)))
    heldout = sorted(read_texts(road, "heldout"))
    assert heldout in found
    whole = "".join(read_texts(road, "candidate"))
    (pieces,) = [texts for texts in found if texts != heldout]
    assert len(pieces) > 0
    assert all(piece in whole for piece in pieces)


@pytest.mark.parametrize("name", [*(method.replace("+", "-") for method in METHODS), "own"])
def test_each_student_is_trained_measured_and_handed_out(road: Road, name: str) -> None:
    student = road.students[name]
    assert student.num_steps == 2
    folder = road.storage.path(student.folder)
    model, eos_token_id = AutoModelForCausalLM.from_pretrained(folder), 0 if name == "own" else EOS_ID
    if name in ("miniplm", "own"):  # to load it takes a second
        assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(EOS) == eos_token_id
    else:
        published = Path(road.storage.path(road.students["miniplm"].folder), "tokenizer.json")
        assert Path(folder, "tokenizer.json").read_bytes() == published.read_bytes()
    assert (model.config.vocab_size, model.generation_config.eos_token_id) == (320 if name == "own" else NUM_ROWS, eos_token_id)
    assert student.evaluation is not None
    if name == "own":
        return
    # The loss of the exported model on the held-out text, in float64, one sequence after another.
    exact, total, num_scored = model.double(), 0.0, 0
    for ids in read_split(road, "heldout"):
        token_ids = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            nll = torch.nn.functional.cross_entropy(exact(token_ids[None, :-1]).logits[0], token_ids[1:], reduction="none")
        scored = token_ids[:-1] != EOS_ID
        total, num_scored = total + nll[scored].sum().item(), num_scored + int(scored.sum())
    assert student.evaluation.overall.num_scored_tokens == num_scored
    assert student.evaluation.overall.nats_per_token == pytest.approx(total / num_scored, rel=1e-5)
