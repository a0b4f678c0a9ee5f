"""Every file of an export read back, by code that has nothing of the writers', before anything is published."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniplm.errors import RunFailedError
from miniplm.export.job import ExportJob, PartTally
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from miniplm.progress import Progress, ProgressCallback
from miniplm.storage.root import digest_file

_EXCERPT_CHARACTERS = 200
_EXCERPT_TOKENS = 200


def verify_parts(
    job: ExportJob, target: ExportTarget, parts: Sequence[ExportedPart], on_progress: ProgressCallback
) -> tuple[str, str]:
    """Reads all parts back and compares digests of files, digests and counts of rows; returns the start of the first row and of the last.

    Raises `RunFailedError` where anything differs: nothing is published then, and the parts that differ are forgotten, so that they
    are made anew.
    """
    key, total = f"verify {job.config.format}", sum(file.num_bytes for part in parts for file in part.files)
    num_done, first, last = 0, None, None
    for part in parts:
        opening, ending = _verify_part(job, target, part)
        first, last = opening if first is None else first, ending if ending is not None else last
        num_done += sum(file.num_bytes for file in part.files)
        on_progress(Progress(key, num_done, total, "bytes"))
    num_source_tokens = sum(part.num_source_tokens for part in parts)
    if num_source_tokens != job.selection.num_used_tokens:
        raise RunFailedError(
            f"the export to {target.url} was made of {num_source_tokens:,} tokens, and the selection has "
            f"{job.selection.num_used_tokens:,}; nothing is published"
        )
    return _show(job, first), _show(job, last)


def _verify_part(job: ExportJob, target: ExportTarget, part: ExportedPart) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory(prefix="miniplm-") as scratch:
        paths = [_fetch(target, file.name, Path(scratch) / str(index)) for index, file in enumerate(part.files)]
        faults = [
            f"{file.name} has digest {digest_file(path)}, written was {file.digest}"
            for file, path in zip(part.files, paths, strict=True)
            if digest_file(path) != file.digest
        ]
        first: Any = None
        last: Any = None
        tally = PartTally(job.config.holds_text, job.tokenizer.eos_token_id)
        if not faults:
            for row in job.format.read(paths, job.facts):
                tally.add_content(row)
                first, last = row if first is None else first, row
            # Rows of mapped files are views of them, which are gone in a moment.
            first, last = _cut(first), _cut(last)
            found = {"rows": tally.num_rows, "EOS": tally.num_eos, "content": tally.digest}
            written = {"rows": part.num_rows, "EOS": part.num_eos, "content": part.content_digest}
            if not job.config.holds_text:
                found["tokens"], written["tokens"] = tally.num_tokens, part.num_tokens
            faults = [f"{name}: {found[name]} read, {written[name]} written" for name in found if found[name] != written[name]]
    if faults:
        target.forget_part(part.part_index)
        raise RunFailedError(
            f"the export to {target.url} is not what was written: {part.files[0].name}: {'; '.join(faults)}. Nothing is published; "
            "with --resume the same command makes this file anew"
        )
    return first, last


def _fetch(target: ExportTarget, name: str, path: Path) -> Path:
    """The file as a local one."""
    relative = target.locate(name)
    if target.storage.is_local:
        return Path(target.storage.path(relative))
    target.storage.download_file(relative, path)
    return path


def _cut(row: Any) -> Any:
    if row is None or isinstance(row, str):
        return row if row is None else row[:_EXCERPT_CHARACTERS]
    return row[:_EXCERPT_TOKENS].tolist()


def _show(job: ExportJob, row: Any) -> str:
    if isinstance(row, str) or row is None:
        return row or ""
    return (job.source if job.own is None else job.own).decode(row)[:_EXCERPT_CHARACTERS]
