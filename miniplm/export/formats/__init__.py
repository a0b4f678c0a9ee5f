"""The formats of exports, a module for those that are alike. All are written here: see `FORMATS`."""

from __future__ import annotations

from miniplm.config.exports import ExportFormat
from miniplm.export.formats.base import Format
from miniplm.export.formats.jsonl import JsonlFormat
from miniplm.export.formats.litdata import LitDataFormat
from miniplm.export.formats.mds import MdsFormat
from miniplm.export.formats.megatron import MegatronFormat
from miniplm.export.formats.parquet import HubFormat, NanochatFormat, ParquetFormat
from miniplm.export.formats.tokens import DatatroveFormat, OlmoFormat

FORMATS: dict[ExportFormat, Format] = {
    "jsonl": JsonlFormat(),
    "parquet": ParquetFormat(),
    "hf": HubFormat(),
    "nanochat": NanochatFormat(),
    "megatron": MegatronFormat(),
    "mds": MdsFormat(),
    "litdata": LitDataFormat(),
    "ds": DatatroveFormat(),
    "npy": OlmoFormat(),
}
