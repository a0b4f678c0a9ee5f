"""Has the source files of a corpus read and tokenised by a work pool."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from flows.prepare_parts import name_batch
from flows.work_pool.parts import PoolParts
from miniplm import __version__
from miniplm.corpus.token_parts import MakeParts, PartFiles, PartsFolder, PartsPlan, TokenPart
from miniplm.run.plan import RunPlan
from miniplm.storage.root import digest_content


def prepare_on_pool(plan: RunPlan) -> MakeParts:
    """What has workers make the parts of the run's corpus; see `PoolParts.make` for what it raises.

    It raises `StoppedError` too, where another run has finished the corpus meanwhile.
    """

    def make(folder: PartsFolder, parts: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        pool = _PoolPreparation(plan, folder, parts, files)
        return pool.make(indices, "tokenise", "bytes", f"prepare {folder.corpus_id}")

    return make


class _PoolPreparation(PoolParts[TokenPart]):
    deployment = "prepare-parts"
    is_shared = True

    def __init__(self, plan: RunPlan, folder: PartsFolder, parts: PartsPlan, files: PartFiles) -> None:
        sizes = [sum(files.files[index].num_bytes for index in part) for part in files.parts]
        # The same files may be prepared for two storage roots.
        tag = f"prepare:{digest_content([parts.plan_id, folder.storage.root])}"
        super().__init__(plan, tag, f"parts of corpus {folder.corpus_id}", sizes)
        self._folder, self._parts = folder, parts

    def require_wanted(self) -> None:
        self._folder.require_open()

    def list_made(self) -> list[int]:
        return self._folder.list_parts()

    def find_part(self, part_index: int) -> TokenPart | None:
        return self._folder.find_part(part_index)

    def name_batch(self, batch: Sequence[int]) -> str:
        return name_batch(self._folder.corpus_id, batch)

    def make_parameters(self, batch: Sequence[int]) -> dict[str, Any]:
        return {
            "storage": self._plan.storage,
            "corpus": self._plan.corpus.model_dump(mode="json"),
            "corpus_id": self._folder.corpus_id,
            "plan_id": self._parts.plan_id,
            "part_indices": list(batch),
            "version": __version__,
        }
