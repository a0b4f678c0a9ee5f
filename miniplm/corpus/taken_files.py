"""Files of a corpus that people should look at: those that gave nothing, and those that gave the same twice."""

from __future__ import annotations

from collections import Counter

from miniplm.records.manifests import CorpusManifest


def list_files_without_documents(corpus: CorpusManifest) -> dict[str, int]:
    """The files that are empty (0), or all of whose records were rejected, with their number: most likely not what they were taken for."""
    num_records: Counter[str] = Counter()
    for source in corpus.sources:
        num_records[source.path] += source.num_records
    return {path: count for path, count in sorted(num_records.items()) if count == corpus.rejected_by_file.get(path, 0)}


def list_files_read_again(corpus: CorpusManifest) -> dict[str, int]:
    """Files whose content was read more than once, with how often: several sources name them, or there is a copy or a link.

    A copy is named by the first file of that content.
    """
    first: dict[str, str] = {}
    times: Counter[str] = Counter()
    for source in corpus.sources:
        if source.num_records:
            times[first.setdefault(source.digest, source.path)] += 1
    return {path: count for path, count in times.items() if count > 1}
