"""The other side of the comparison: scoring with the arithmetic of the published MiniPLM inferer.

    logits (B, T, V) of B sequences padded to T inputs, attention mask given, made whole
    loss = cross_entropy(logits in float32) a token, masked, summed a sequence

A plain loop, as that code has: a batch is built, computed and copied back before the next is begun. float16 on a
GPU, as published; on a CPU float32, since float16 there is emulated and would flatter whatever it is compared with.

Shapes: B sequences, T inputs of the longest, M = B * T, V vocabulary.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.scoring_inputs import Inputs, Sequences
from benchmarks.scoring_sides import BusyClock, SideRun
from miniplm import layout
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.scoring.shards import SCORE_SCHEMA


class PublishedSide:
    """The published way. `batch_size` sequences are padded to the corpus' sequence length."""

    name = "published"
    head = "whole logits"

    def __init__(self, inputs: Inputs, device: torch.device, dtype: str, batch_size: int) -> None:
        from transformers import AutoModelForCausalLM

        started = time.perf_counter()
        self.inputs, self.device, self.dtype, self.batch_size = inputs, device, dtype, batch_size
        self.model_id = f"published-{dtype}"
        self.engine = {"batch_size": batch_size, "padded_to": inputs.corpus.sequence_length}
        model = AutoModelForCausalLM.from_pretrained(str(inputs.folder), dtype=getattr(torch, dtype), local_files_only=True)
        self.model = model.eval().to(device)
        self.clock = BusyClock(device)
        self._score_batch(inputs.read_sequences()[:batch_size])
        self.start_up_seconds = time.perf_counter() - started

    def run(self) -> SideRun:
        """All shards from disk to score files."""
        self.clock = BusyClock(self.device)
        started = time.perf_counter()
        for shard in self.inputs.shards:
            table = read_shard(self.inputs.storage, shard, columns=["sequence_id", "token_ids"])
            sequences = read_token_ids(table)
            parts = [
                self._score_batch(sequences[start : start + self.batch_size]) for start in range(0, len(sequences), self.batch_size)
            ]
            sums, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
            columns = [
                table["sequence_id"].combine_chunks(),
                pa.array(counts.astype(np.int32)),
                pa.array(sums.astype(np.float64)),
            ]
            relative = layout.score_shard(shard.corpus_id, self.model_id, shard.shard_index)
            with self.inputs.storage.publish(relative) as path:
                pq.write_table(pa.Table.from_arrays(columns, schema=SCORE_SCHEMA), path)
        seconds = time.perf_counter() - started
        return SideRun(seconds, self.clock.busy_seconds())

    @torch.inference_mode()
    def _score_batch(self, sequences: Sequences) -> tuple[NDArray[Any], NDArray[Any]]:
        """Sums of NLL (B,) and scored targets (B,)."""
        eos_token_id = self.inputs.corpus.tokenizer.eos_token_id
        shape = (len(sequences), self.inputs.corpus.sequence_length)
        inputs_BT, labels_BT = np.full(shape, eos_token_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        attention_BT, scored_BT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        for row, sequence in enumerate(sequences):
            num_inputs = len(sequence) - 1
            inputs_BT[row, :num_inputs], labels_BT[row, :num_inputs] = sequence[:-1], sequence[1:]
            attention_BT[row, :num_inputs] = 1
            scored_BT[row, :num_inputs] = sequence[:-1] != eos_token_id
        token_ids, labels, attention, scored = (
            torch.from_numpy(array).to(self.device) for array in (inputs_BT, labels_BT, attention_BT, scored_BT)
        )
        self.clock.begin()
        logits_BTV = self.model(input_ids=token_ids, attention_mask=attention, use_cache=False).logits
        losses_M = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels.flatten(), reduction="none")
        sums = (losses_M.view(shape) * scored).sum(dim=1)
        self.clock.end()
        return sums.cpu().numpy(), scored_BT.sum(axis=1)
