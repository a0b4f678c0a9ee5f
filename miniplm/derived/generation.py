"""Sequences whose first tokens are a corpus' and whose rest a teacher wrote, for sequence-level distillation.

Each keeps its first `prompt_tokens` tokens (768 of 1,024 published), and the teacher samples on to the length of a full
sequence. An EOS that it writes ends a document, and it goes on with the next, as packed sequences do. Sequences that are
not longer than the prompt stay as they are.

A sequence's text depends on the seed, the sequence and the teacher: the random numbers are the sequence's own (`sampling`),
and the prompts of a batch have one length, so there is no padding. What is left of the batch is the rounding of matrix
products of another size, which may tip a choice between two tokens of all but equal score.

Counts of a shard, whose sums are the set's: `sequences_generated` and `sequences_kept` (as they are), `tokens_generated`,
and `documents_ended`, the EOS among them.

Shapes: B sequences, T tokens of each.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from miniplm.config.fields import MOST_SHARD_TOKENS
from miniplm.config.run import GenerationConfig
from miniplm.corpus.packing import PackedSequence
from miniplm.corpus.reader import read_token_ids
from miniplm.corpus.shards import OpenShard
from miniplm.derived.conversion import ListShards
from miniplm.derived.recipes import GenerationRecipe
from miniplm.derived.sampling import GumbelSampling
from miniplm.derived.sequences import TrainingShard, read_sequences
from miniplm.derived.sets import DerivedJob, DerivedSource, MadeShard, ShardMaker, list_rows
from miniplm.errors import ConfigError, DerivedError
from miniplm.models.devices import describe_memory, device_errors, free_cached_memory, is_out_of_memory, resolve_device, use_device
from miniplm.models.fp8 import FP8_DTYPES
from miniplm.models.opening import open_causal_model
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import CorpusManifest, ModelEntry, TokenizerEntry
from miniplm.storage.root import Storage

# Sequences generated together, until memory runs out: a GPU reads all weights for each token of however many. Each costs the keys and
# values of `sequence_length` tokens in every layer.
_SEQUENCES_PER_BATCH = {"cuda": 128, "cpu": 16}


def check_generation(generation: GenerationConfig, sequence_length: int) -> None:
    """Raises `ConfigError` where the prompt leaves the teacher nothing to write, or a shard would be too large."""
    if generation.prompt_tokens > sequence_length:
        raise ConfigError(
            f"generation.prompt_tokens is {generation.prompt_tokens}, but corpus.sequence_length is {sequence_length}, so there is nothing "
            f"for the teacher to write; give at most {sequence_length} (published: three quarters of it)"
        )
    most = MOST_SHARD_TOKENS // (sequence_length + 1)
    if generation.sequences_per_shard > most:
        raise ConfigError(
            f"generation.sequences_per_shard is {generation.sequences_per_shard}, but a shard holds at most {MOST_SHARD_TOKENS:,} tokens, "
            f"and a sequence up to {sequence_length + 1:,}; give at most {most}"
        )


@dataclass(frozen=True)
class GenerationJob(DerivedJob):
    """What the teacher makes of the sequences that `list_shards` gives, which `data` describes by content."""

    corpus: CorpusManifest
    teacher: ModelEntry
    generation: GenerationConfig
    data: dict[str, Any]
    list_shards: ListShards
    name: str = "generate by the teacher"
    unit = "sequences"
    made_of: GenerationRecipe = field(init=False)

    def __post_init__(self) -> None:
        check_generation(self.generation, self.corpus.sequence_length)
        recipe = GenerationRecipe(
            data=self.data,
            teacher_id=self.teacher.model_id,
            # fp8 pays where many tokens are computed at once; here it is one a sequence.
            dtype="bfloat16" if self.teacher.dtype in FP8_DTYPES else self.teacher.dtype,
            vocab_size=self.corpus.tokenizer.vocab_size,
            sequence_length=self.corpus.sequence_length,
            **self.generation.model_dump(exclude={"sequences_per_batch"}),
        )
        object.__setattr__(self, "made_of", recipe)

    @property
    def recipe(self) -> GenerationRecipe:
        return self.made_of

    @property
    def tokenizer(self) -> TokenizerEntry:
        return self.corpus.tokenizer

    def list_sources(self, storage: Storage) -> list[DerivedSource]:
        sources: list[DerivedSource] = []
        parts: list[TrainingShard] = []
        num_left = self.generation.sequences_per_shard
        for shard in self.list_shards(storage):
            rows = list_rows(shard)
            while len(rows):
                taken, rows = rows[:num_left], rows[num_left:]
                # The tokens of a part are not known, and not asked for.
                parts.append(TrainingShard(shard.entry, len(taken), 0, partial(_give, taken)))
                num_left -= len(taken)
                if not num_left:
                    sources.append(DerivedSource(tuple(parts)))
                    parts, num_left = [], self.generation.sequences_per_shard
        return [*sources, DerivedSource(tuple(parts))] if parts else sources

    def open_maker(self, storage: Storage, sources: Sequence[DerivedSource], device: str) -> ShardMaker:
        return _Generator(storage, self, sources, resolve_device(device))

    def publish_tokenizer(self, storage: Storage) -> None:
        """Nothing: it is the corpus's."""


class _Generator(ShardMaker):
    """The teacher, ready to write, for one thread at a time; `sequences_per_batch` is halved for good when memory runs out."""

    def __init__(self, storage: Storage, job: GenerationJob, sources: Sequence[DerivedSource], device: torch.device) -> None:
        self._storage = storage
        self._job = job
        self._sources = sources
        entry = job.teacher.model_copy(update={"dtype": job.recipe.dtype})
        with use_device(device), device_errors(device, f"loading model {entry.model_id}"):
            self._model, self._device = open_causal_model(storage, entry, device)
        # After loading: transformers reads generation_config.json of the folder, and would follow it beside the recipe.
        self._reset_generation()
        self._device_turn = threading.Lock()
        wanted = job.generation.sequences_per_batch
        self.sequences_per_batch = _SEQUENCES_PER_BATCH.get(self._device.type, 16) if wanted == "auto" else wanted

    def _reset_generation(self) -> None:
        """Takes away what the model's own files say of sampling (top-k, penalties, where to stop): the recipe says it all."""
        from transformers import GenerationConfig as TransformersGeneration

        self._model.generation_config = TransformersGeneration()

    def make_shard(self, shard_index: int, on_progress: ProgressCallback) -> MadeShard:
        recipe, eos_token_id = self._job.recipe, self._job.corpus.tokenizer.eos_token_id
        table = self._read(self._sources[shard_index])
        originals = read_token_ids(table)
        is_long = [len(token_ids) > recipe.prompt_tokens for token_ids in originals]
        written = self._write(table["sequence_id"].to_pylist(), originals, np.flatnonzero(is_long).tolist(), on_progress)
        shard = OpenShard(recipe.vocab_size)
        counts = Counter(sequences_generated=0, sequences_kept=0, tokens_generated=0, documents_ended=0)
        columns = zip(table["domain"].to_pylist(), table["document_ids"].to_pylist(), originals, strict=True)
        for row, (domain, document_ids, token_ids) in enumerate(columns):
            if row not in written:
                counts["sequences_kept"] += 1
                shard.append(domain, PackedSequence(token_ids, document_ids))
                continue
            prompt, rest = token_ids[: recipe.prompt_tokens], written[row]
            counts.update(
                sequences_generated=1, tokens_generated=len(rest), documents_ended=int(np.count_nonzero(rest == eos_token_id))
            )
            # Only the prompt is text of documents.
            num_documents = 1 + int(np.count_nonzero(prompt[:-1] == eos_token_id))
            shard.append(domain, PackedSequence(np.concatenate([prompt, rest]), document_ids[:num_documents]))
        return MadeShard(shard, shard_index * recipe.sequences_per_shard, shard.count_domains(), counts)

    def _read(self, source: DerivedSource) -> pa.Table:
        """The columns `sequence_id`, `domain`, `document_ids` and `token_ids` of the sequences that a shard is made of."""
        columns = ["sequence_id", "domain", "document_ids", "token_ids"]
        tables = [read_sequences(self._storage, part.entry, columns).take(pa.array(list_rows(part))) for part in source.parts]
        # Each file has a dictionary of domains of its own, and tables are joined only where they have the same types.
        return pa.concat_tables(table.set_column(1, "domain", table["domain"].cast(pa.string())) for table in tables)

    def _write(
        self, sequence_ids: Sequence[int], originals: Sequence[NDArray[Any]], rows: Sequence[int], on_progress: ProgressCallback
    ) -> dict[int, NDArray[np.uint32]]:
        """The tokens (num_new,) that the teacher adds to the prompts of these rows, by row; `originals` are (num_tokens,) each."""
        written: dict[int, NDArray[np.uint32]] = {}
        while len(written) < len(rows):
            chosen = rows[len(written) : len(written) + self.sequences_per_batch]
            prompts = np.stack([originals[row][: self._job.recipe.prompt_tokens] for row in chosen])
            try:
                with self._device_turn:
                    added = self._generate(prompts, [sequence_ids[row] for row in chosen])
            except Exception as error:
                self._halve_or_give_up(error, len(chosen))
                continue
            written.update(zip(chosen, added, strict=True))
            num_done = len(originals) - len(rows) + len(written)
            on_progress(Progress(self._job.name, num_done, len(originals), self._job.unit))
        return written

    @torch.inference_mode()
    def _generate(self, prompts: NDArray[Any], sequence_ids: Sequence[int]) -> Iterator[NDArray[np.uint32]]:
        """What the teacher adds to each of the prompts (B, prompt_tokens), (num_new,)."""
        from transformers import GenerationConfig as TransformersGeneration

        recipe = self._job.recipe
        num_ids = self._model.get_input_embeddings().weight.shape[0]
        if (largest := int(prompts.max(initial=0))) >= num_ids:
            raise DerivedError(
                f"teacher {self._job.teacher.model_id} has a vocabulary of {num_ids} ids, and corpus {self._job.corpus.corpus_id} has the id "
                f"{largest}; use a teacher with this tokenizer"
            )
        token_ids_BT = torch.from_numpy(prompts.astype(np.int64)).to(self._device)
        sampling = GumbelSampling(sequence_ids, recipe.seed, recipe.vocab_size, recipe.temperature, recipe.top_p)
        num_new = recipe.sequence_length + 1 - recipe.prompt_tokens
        # Greedy, as the sampling is in the noise; no EOS, as it does not end the sequence.
        settings = TransformersGeneration(
            max_new_tokens=num_new, do_sample=False, use_cache=True, pad_token_id=self._job.corpus.tokenizer.eos_token_id
        )
        with use_device(self._device), device_errors(self._device, f"generation by model {self._job.teacher.model_id}"):
            whole_BT = self._model.generate(
                token_ids_BT,
                attention_mask=torch.ones_like(token_ids_BT),
                generation_config=settings,
                logits_processor=[sampling],
            )
            added_BT = whole_BT[:, recipe.prompt_tokens :].cpu().numpy().astype(np.uint32)
        if sampling.saw_nan:
            raise DerivedError(
                f"teacher {self._job.teacher.model_id} gives logits that are NaN (among sequences {sequence_ids[0]} to {sequence_ids[-1]}); "
                "use teacher.dtype float32"
            )
        assert added_BT.shape == (len(prompts), num_new), "the teacher stopped early"
        return iter(added_BT)

    def _halve_or_give_up(self, error: Exception, num_sequences: int) -> None:
        if not is_out_of_memory(error):
            raise error
        if num_sequences == 1:
            raise DerivedError(
                f"teacher {self._job.teacher.model_id}: one sequence of {self._job.recipe.sequence_length + 1} tokens does not fit in memory on "
                f"{self._device} ({describe_memory(self._device)}); use a smaller teacher or dtype, or another device"
            ) from error
        self.sequences_per_batch = max(1, num_sequences // 2)
        gc.collect()
        free_cached_memory()


def _give(rows: NDArray[np.int64]) -> NDArray[np.int64]:  # (num_rows,)
    return rows
