"""Which derived sets a training needs before it can start, and an evaluation with another tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from miniplm.derived.conversion import ConversionJob, describe_conversion
from miniplm.derived.documents import DocumentsJob
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import DerivedJob
from miniplm.records.manifests import CorpusManifest, Split
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer
from miniplm.training.methods.method import digest_shards
from miniplm.training.recipe import TrainingPlan


def list_derived_jobs(plan: TrainingPlan) -> list[DerivedJob]:
    """The sets that a training's sequences come from, in the order in which they are to be made; most trainings need none."""
    jobs: list[DerivedJob] = [
        replace(job, trust_remote_code=plan.trust_tokenizer_code) if isinstance(job, DocumentsJob) else job
        for job in plan.method.list_derived_jobs(plan.inputs)
    ]
    conversion = plan.conversion
    if conversion is not None and plan.own_tokenizer is not None:
        jobs.append(
            ConversionJob(
                corpus=plan.inputs.corpus,
                conversion=conversion,
                own=plan.own_tokenizer,
                list_shards=partial(plan.method.list_shards, inputs=plan.inputs),
                name=f"encode for {plan.own_tokenizer.entry.name}",
                joins=all(job.runs_on for job in jobs),
                trust_remote_code=plan.trust_tokenizer_code,
            )
        )
    return jobs


def plan_heldout(
    corpus: CorpusManifest, own: CorpusTokenizer, trust_remote_code: bool = False, split: Split = "heldout"
) -> ConversionJob:
    """The whole held-out split (of text from elsewhere all of it, split `candidate`) in the tokens of another tokenizer, so that students of any tokenizer are measured on it."""
    return ConversionJob(
        corpus=corpus,
        conversion=describe_conversion(corpus, {"heldout": digest_shards(corpus.split_shards(split))}, own, corpus.sequence_length),
        own=own,
        list_shards=partial(_list_split, corpus, split),
        name=f"encode held-out text for {own.entry.name}",
        trust_remote_code=trust_remote_code,
    )


def _list_split(corpus: CorpusManifest, split: Split, storage: Storage) -> list[TrainingShard]:
    return [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in corpus.split_shards(split)]
