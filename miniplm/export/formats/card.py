"""The card of a dataset on the Hugging Face hub: what `load_dataset` reads, and what people do."""

from __future__ import annotations

import json

import yaml

from miniplm.export.records import ExportManifest


def make_card(manifest: ExportManifest) -> str:
    """README.md of a folder with `data/*.parquet`: no license, which only those who know the sources can give."""
    head = yaml.safe_dump(
        {
            "pretty_name": f"Selection {manifest.selection_id}",
            "task_categories": ["text-generation"],
            "tags": ["miniplm", "difference-sampling", "pretraining"],
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        },
        sort_keys=False,
    )
    domains = "\n".join(
        f"| {json.dumps(name, ensure_ascii=False)[1:-1].replace('|', '&#124;')} | {domain.num_rows:,} | {domain.num_tokens:,} |"
        for name, domain in manifest.domains.items()
    )
    notes = "".join(f"* {note}\n" for note in manifest.notes)
    return f"""---
{head}---

# Selection {manifest.selection_id}

{manifest.num_rows:,} documents ({manifest.text_bytes:,} bytes of text, {manifest.num_tokens:,} tokens of {manifest.tokenizer.name}) that
Difference Sampling kept of corpus {manifest.corpus_id}: the text that the teacher `{manifest.teacher_id}` finds likely and the reference
`{manifest.reference_id}` does not ([MiniPLM](https://arxiv.org/abs/2410.17215)). Made by `miniplm export`, export {manifest.export_id}.

| domain | documents | tokens |
|---|---|---|
{domains}

| column | holds |
|---|---|
| `text` | the document, or the part of it that was kept |
| `is_whole`, `token_start`, `token_end` | whether it is all of the document; which of the document's tokens it is |
| `domain`, `source`, `record`, `document_id`, `id` | where it comes from: the source file and its record, counted from 1 |
| `sequence_ids` | the packed sequences that were scored |
| `teacher_nll`, `reference_nll`, `difference_score` | NLL a scored token under both models, nats, of what was kept of the document, and reference less teacher |

{manifest.num_whole:,} documents are whole, {manifest.num_parts:,} are parts. The license is that of the sources.
{notes}"""
