"""Where every artifact lies below the storage root: a public contract, and this file its only source.

All functions return paths relative to the root, with `/`.
"""

from __future__ import annotations

from typing import Literal

# All that lies directly below the storage root.
FOLDERS = ("corpora", "models", "scores", "selections", "derived", "training", "runs")
SPLITS: tuple[Literal["candidate", "reference", "heldout"], ...] = ("candidate", "reference", "heldout")


def shard_name(shard_index: int) -> str:
    """`shard-00042`, the name of a shard everywhere: files, task runs, messages."""
    return f"shard-{shard_index:05d}"


def corpus_folder(corpus_id: str) -> str:
    return f"corpora/{corpus_id}"


def corpus_manifest(corpus_id: str) -> str:
    return f"{corpus_folder(corpus_id)}/manifest.json"


def corpus_shard(corpus_id: str, split: str, shard_index: int) -> str:
    return f"{corpus_folder(corpus_id)}/{split}/{shard_name(shard_index)}.parquet"


def corpus_tokenizer(corpus_id: str) -> str:
    """A folder that `AutoTokenizer.from_pretrained` reads: the tokenizer the corpus was made with."""
    return f"{corpus_folder(corpus_id)}/tokenizer"


def corpus_preparation(corpus_id: str) -> str:
    """What is needed to go on with an interrupted preparation; gone once the manifest is there."""
    return f"{corpus_folder(corpus_id)}/preparation.json"


# What the workers of a fleet make of source files: a folder for each corpus.
CORPORA_PARTS = "corpora/parts"


def corpus_parts(corpus_id: str) -> str:
    """What the workers of a fleet make of the source files of a corpus before it is packed; gone once the manifest is there."""
    return f"{CORPORA_PARTS}/{corpus_id}"


def plan_parts(corpus_id: str, plan_id: str) -> str:
    """The parts of one plan: other versions of this program make others of the same corpus."""
    return f"{corpus_parts(corpus_id)}/{plan_id}"


def parts_plan(corpus_id: str, plan_id: str) -> str:
    """How the files are tokenised; while it is there parts are made."""
    return f"{plan_parts(corpus_id, plan_id)}/plan.json"


def parts_files(corpus_id: str, plan_id: str) -> str:
    """Which files make which part."""
    return f"{plan_parts(corpus_id, plan_id)}/files.json"


def token_part(corpus_id: str, plan_id: str, part_index: int) -> str:
    return f"{plan_parts(corpus_id, plan_id)}/part-{part_index:05d}.json"


def token_block(corpus_id: str, plan_id: str, part_index: int, block_index: int) -> str:
    """Token ids of some documents of a part, in a folder of their own: who waits for parts lists their records alone."""
    return f"{plan_parts(corpus_id, plan_id)}/blocks/{part_index:05d}-{block_index:05d}.arrow"


def truth_manifest(corpus_id: str, truth_id: str) -> str:
    """Which labels the documents of a corpus bear under one field; no part of the pipeline reads it."""
    return f"truth/{corpus_id}/{truth_id}.json"


def truth_file(corpus_id: str, truth_id: str) -> str:
    """How many tokens of each label a candidate sequence holds."""
    return f"truth/{corpus_id}/{truth_id}.parquet"


def text_digests(corpus_id: str) -> str:
    """The SHA-256 of the text of each document, for scores from elsewhere that name it so."""
    return f"{corpus_folder(corpus_id)}/text-digests.parquet"


def text_digests_manifest(corpus_id: str) -> str:
    return f"{corpus_folder(corpus_id)}/text-digests.json"


def corpus_overlap(text_id: str, corpus_id: str) -> str:
    """Which documents of held-out text from elsewhere are in a corpus too."""
    return f"{corpus_folder(text_id)}/overlap/{corpus_id}.json"


def label_shard_entry(labels_id: str, number: int) -> str:
    """What is known of a shard of labelled sequences before all of them are drawn, so that a killed draw goes on."""
    return f"{corpus_folder(labels_id)}/drawn/{number:05d}.json"


def fingerprints_folder(corpus_id: str) -> str:
    return f"{corpus_folder(corpus_id)}/fingerprints"


def fingerprint_shard(corpus_id: str, shard_index: int) -> str:
    """Digest and signature of each document of a candidate shard, by which copies are found."""
    return f"{fingerprints_folder(corpus_id)}/{shard_name(shard_index)}.parquet"


def fingerprint_manifest(corpus_id: str, shard_index: int) -> str:
    return f"{fingerprints_folder(corpus_id)}/{shard_name(shard_index)}.json"


def corpus_copies(corpus_id: str) -> str:
    """The documents among the candidates that have a copy there, exact or near, in groups."""
    return f"{corpus_folder(corpus_id)}/copies.parquet"


def corpus_copies_manifest(corpus_id: str) -> str:
    return f"{corpus_folder(corpus_id)}/copies.json"


def contamination_folder(corpus_id: str, contamination_id: str) -> str:
    """Where texts of evaluation were found among the candidates; the id is of the texts that were looked for."""
    return f"{corpus_folder(corpus_id)}/contamination/{contamination_id}"


def contamination_manifest(corpus_id: str, contamination_id: str) -> str:
    return f"{contamination_folder(corpus_id, contamination_id)}/manifest.json"


def contamination_items(corpus_id: str, contamination_id: str) -> str:
    """What was looked for: tasks' questions, held-out documents."""
    return f"{contamination_folder(corpus_id, contamination_id)}/items.parquet"


def contamination_shard(corpus_id: str, contamination_id: str, shard_index: int) -> str:
    return f"{contamination_folder(corpus_id, contamination_id)}/{shard_name(shard_index)}.parquet"


def contamination_shard_manifest(corpus_id: str, contamination_id: str, shard_index: int) -> str:
    return f"{contamination_folder(corpus_id, contamination_id)}/{shard_name(shard_index)}.json"


def quarantine_folder(corpus_id: str) -> str:
    return f"{corpus_folder(corpus_id)}/quarantine"


def quarantine_file(corpus_id: str, part_index: int) -> str:
    return f"{quarantine_folder(corpus_id)}/rejected-{part_index:05d}.jsonl"


def newest_corpus(settings_digest: str) -> str:
    """Which corpus was prepared last with these sources and settings, so that new files can be added to it; a hint, verified."""
    return f"corpora/growing/{settings_digest}.json"


def source_digests() -> str:
    """Facts of source and model files by their identity (path, size, time, inode), so that none is read twice to name a corpus or a model."""
    return "corpora/source-digests.json"


def model_folder(model_id: str) -> str:
    return f"models/{model_id}"


def scores_folder(corpus_id: str, model_id: str) -> str:
    return f"scores/{corpus_id}/{model_id}"


def score_shard(corpus_id: str, model_id: str, shard_index: int) -> str:
    return f"{scores_folder(corpus_id, model_id)}/{shard_name(shard_index)}.parquet"


def score_shard_manifest(corpus_id: str, model_id: str, shard_index: int) -> str:
    return f"{scores_folder(corpus_id, model_id)}/{shard_name(shard_index)}.json"


def document_scores(corpus_id: str, model_id: str, shard_index: int) -> str:
    """The scores of the documents in each sequence of a shard; in a folder of their own, as a query over the scores reads `*.parquet`."""
    return f"{scores_folder(corpus_id, model_id)}/documents/{shard_name(shard_index)}.documents.parquet"


def non_finite_scores(corpus_id: str, model_id: str, shard_index: int) -> str:
    """The scores of a shard that failed for NaN or infinite NLLs, set aside to be looked at; no score file, never selected from."""
    return f"{scores_folder(corpus_id, model_id)}/non-finite/{shard_name(shard_index)}.parquet"


def score_failures_folder(corpus_id: str, model_id: str) -> str:
    return f"{scores_folder(corpus_id, model_id)}/failures"


def score_failure(corpus_id: str, model_id: str, shard_index: int) -> str:
    """Why a shard could not be scored the last time; gone once it is scored."""
    return f"{score_failures_folder(corpus_id, model_id)}/{shard_name(shard_index)}.json"


def calibration(corpus_id: str, teacher_id: str, reference_id: str, within: str) -> str:
    """What two models in their dtypes select, compared with themselves in float32."""
    rule = "" if within == "corpus" else f"--by-{within}"
    return f"scores/{corpus_id}/calibrations/{teacher_id}--{reference_id}{rule}.json"


def proxy_manifest(proxy_id: str) -> str:
    """What a proxy learned from, and how it was measured; published last."""
    return f"{model_folder(proxy_id)}/proxy.json"


def proxy_weights(proxy_id: str) -> str:
    return f"{model_folder(proxy_id)}/weights.safetensors"


def proxy_measurement(proxy_id: str) -> str:
    """The labelled sequences with the teacher's scores, and what a proxy that had not seen them predicted: what its gate reads."""
    return f"{model_folder(proxy_id)}/held-out.parquet"


def compile_cache() -> str:
    """Compiled kernels, next to the models they are of; on local roots only."""
    return "models/compile-cache"


def selection_folder(selection_id: str) -> str:
    return f"selections/{selection_id}"


def selection_manifest(selection_id: str) -> str:
    return f"{selection_folder(selection_id)}/manifest.json"


def selection_shard(selection_id: str, shard_index: int) -> str:
    return f"{selection_folder(selection_id)}/{shard_name(shard_index)}.parquet"


def selection_diversity(selection_id: str) -> str:
    """How varied and how hard a sample of what was kept is, against random candidates; measured by the report, read by `inspect`."""
    return f"{selection_folder(selection_id)}/diversity.json"


def selection_overlap(selection_id: str) -> str:
    """Copies and texts of evaluation among what was kept, against all candidates."""
    return f"{selection_folder(selection_id)}/overlap.json"


def training_folder(training_id: str) -> str:
    """The workspace of one training, named by everything that goes into it: checkpoints, metrics, manifest."""
    return f"training/{training_id}"


def training_manifest(training_id: str) -> str:
    return f"{training_folder(training_id)}/manifest.json"


def checkpoints_folder(training_id: str) -> str:
    return f"{training_folder(training_id)}/checkpoints"


def unfinished_checkpoint(training_id: str) -> str:
    """Files of a checkpoint before they are published; what lies there after a crash is thrown away."""
    return f"{training_folder(training_id)}/unfinished"


def checkpoint_folder(training_id: str, step: int) -> str:
    return f"{checkpoints_folder(training_id)}/step-{step:08d}"


def measured_folder(training_id: str, elsewhere: str | None = None) -> str:
    """Where the held-out losses of a training lie: those on its corpus's own split beside it, on text from elsewhere below that text's id."""
    return training_folder(training_id) if elsewhere is None else f"{training_folder(training_id)}/heldout/{elsewhere}"


def training_evaluation(training_id: str, elsewhere: str | None = None) -> str:
    return f"{measured_folder(training_id, elsewhere)}/evaluation.json"


def checkpoint_evaluations_folder(training_id: str, elsewhere: str | None = None) -> str:
    return f"{measured_folder(training_id, elsewhere)}/evaluations"


def checkpoint_evaluation(training_id: str, step: int, elsewhere: str | None = None) -> str:
    """The held-out loss of a checkpoint; it stays when the checkpoint goes."""
    return f"{checkpoint_evaluations_folder(training_id, elsewhere)}/step-{step:08d}.json"


def heldout_losses(training_id: str, elsewhere: str | None = None) -> str:
    """The held-out loss of each sequence under the final model, of which its evaluation is made."""
    return f"{measured_folder(training_id, elsewhere)}/heldout-losses.parquet"


def task_result(training_id: str, task_name: str, key: str) -> str:
    """The accuracy of the final model at a zero-shot task; `key` says under which conditions."""
    return f"{training_folder(training_id)}/tasks/{task_name}-{key}.json"


def training_events(training_id: str) -> str:
    """TensorBoard event files of a training."""
    return f"{training_folder(training_id)}/tensorboard"


def derived_folder(derived_id: str) -> str:
    """Sequences made of others, once, for students: encoded anew for another tokenizer, or written by the teacher."""
    return f"derived/{derived_id}"


def derived_manifest(derived_id: str) -> str:
    return f"{derived_folder(derived_id)}/manifest.json"


def derived_shard(derived_id: str, shard_index: int) -> str:
    return f"{derived_folder(derived_id)}/{shard_name(shard_index)}.parquet"


def derived_shard_manifest(derived_id: str, shard_index: int) -> str:
    return f"{derived_folder(derived_id)}/{shard_name(shard_index)}.json"


def derived_tokenizer(derived_id: str) -> str:
    """The tokenizer that a set was encoded with anew, as `corpus_tokenizer` for corpora."""
    return f"{derived_folder(derived_id)}/tokenizer"


def runs_folder() -> str:
    return "runs"


def run_folder(run_name: str) -> str:
    return f"{runs_folder()}/{run_name}"


def run_record(run_name: str) -> str:
    return f"{run_folder(run_name)}/run.json"


def run_plan(run_name: str) -> str:
    """The run's configuration resolved: what it means on the machine that started it, and the ids known so far."""
    return f"{run_folder(run_name)}/plan.json"


def run_report(run_name: str) -> str:
    return f"{run_folder(run_name)}/report.html"


def sweep_record(sweep_name: str) -> str:
    """The runs of a sweep; they lie beside it, each under its own name."""
    return f"{run_folder(sweep_name)}/sweep.json"


def sweep_page(sweep_name: str) -> str:
    return f"{run_folder(sweep_name)}/sweep.html"


def run_what_if(run_name: str) -> str:
    """What the last grid of selections that was tried would keep; nothing is made of it."""
    return f"{run_folder(run_name)}/what-if.json"


def worker_description(run_name: str) -> str:
    """What kind of device the workers of a run have; only runs on a work pool that leave a dtype to the device have one."""
    return f"{run_folder(run_name)}/worker.json"


def machine_description(run_name: str) -> str:
    """What the machine has that began a run outside a work pool; only runs that leave a dtype to the device have one."""
    return f"{run_folder(run_name)}/machine.json"


def student_folder(run_name: str, student_name: str) -> str:
    """A finished student: a transformers directory with its metrics and evaluation."""
    return f"{run_folder(run_name)}/students/{student_name}"
