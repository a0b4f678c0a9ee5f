"""The texts of a zero-shot task: what its documents say, and what is asked of a model, as lm-evaluation-harness writes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miniplm.overlap.evaluation_texts import EvaluationItem
from miniplm.overlap.words import collect_texts


def read_task_texts(task: Any) -> Iterator[EvaluationItem]:
    """An item for each document that a task of the harness evaluates: every text of its record, and the prompt with each answer to it.

    Both, as a prompt joins fields that a copy has beside each other, and leaves out what only the record has.
    """
    task.set_config(key="num_fewshot", value=0)
    for number, document in enumerate(task.eval_docs):
        texts = list(collect_texts(dict(document)))
        texts += _list_requests(task, document)
        yield EvaluationItem(f"document {number}", tuple(dict.fromkeys(texts)))


def _list_requests(task: Any, document: Any) -> Iterator[str]:
    context = task.fewshot_context(document, num_fewshot=0)
    made = task.construct_requests(doc=document, ctx=context, metadata=(task.task_name, 0, 1))
    for request in made if isinstance(made, list) else [made]:
        # A prompt and an answer, one text, or a prompt with how to go on from it.
        parts = [part for part in request.arguments if isinstance(part, str)]
        yield "".join(parts)
