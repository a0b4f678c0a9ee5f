"""What the fidelity gate measured: two models in their dtypes beside themselves in float32."""

from __future__ import annotations

from typing import Literal

from miniplm.records.manifests import Record


class CalibrationScores(Record):
    """The same sequences scored in a model's dtype and in float32: NLLs in nats a scored token, in the order of `sequence_ids`."""

    model_id: str
    dtype: str
    nll: tuple[float, ...]
    float32_nll: tuple[float, ...]
    tokens_per_second: float
    float32_tokens_per_second: float


class Calibration(Record):
    """What the dtypes of the two models change, measured on some candidates of a corpus; kept with the scores.

    `within` is the rule whose selection it measures: the best of all its sequences, or of each of their `domains`.
    """

    corpus_id: str
    within: Literal["corpus", "domain"] = "corpus"
    sequence_ids: tuple[int, ...]
    domains: tuple[str, ...] = ()
    num_scored_tokens: tuple[int, ...]
    teacher: CalibrationScores
    reference: CalibrationScores
    device: str
    versions: dict[str, str]
