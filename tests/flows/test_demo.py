"""The demo itself on a smaller cut of its text: the shipped configuration, the real teacher, real documents."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from transformers import AutoModelForCausalLM

from tests.command_line import run_miniplm

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "smollm2-135m"
DOMAINS = {"drama", "manual", "python", "scripture", "speeches"}

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def demo(tmp_path_factory, prefect_server):
    folder = tmp_path_factory.mktemp("demo")
    for source in sorted((ROOT / "samples" / "demo").glob("*.jsonl.zst")):
        with open(source, "rb") as file:
            lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
        records = [json.loads(line) for line in lines[:9]]
        for part, name in ((records[:6], f"{source.stem}.zst"), (records[6:], f"heldout-{source.stem}.zst")):
            content = "\n".join(json.dumps(record | {"text": record["text"][:500]}) for record in part)
            (folder / name).write_bytes(zstandard.ZstdCompressor().compress(content.encode()))
    overrides = {
        "storage": folder / "data",
        "corpus.sources.0.path": folder / "[!h]*.jsonl.zst",
        "evaluation.sources.0.path": folder / "heldout-*.jsonl.zst",
        "selection.within": "corpus",
        "corpus.sequence_length": 128,
        "corpus.sequences_per_shard": 8,
        "teacher.dtype": "float32",  # auto is bfloat16 on some CPUs
        "reference.dtype": "float32",
        "corpus.seed": 4,  # so few documents give every domain candidates with it
        "students.0.training.epochs": 0.5,
        "students.1.training.epochs": 0.5,
    }
    arguments = [part for field, value in overrides.items() for part in ("--set", f"{field}={value}")]
    result = run_miniplm("demo", *arguments, "--json", prefect=prefect_server, cwd=ROOT, timeout_seconds=500)
    assert result.returncode == 0, result.stderr
    return folder / "data", json.loads(result.stdout)


def read_rows(folder: Path) -> dict[int, dict]:
    return {
        row["sequence_id"]: row
        for path in sorted(folder.glob("*.parquet"))
        for row in pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    }


def test_every_domain_is_scored_and_both_students_are_measured(demo):
    data, record = demo
    manifest = json.loads((data / "selections" / record["selection_id"] / "manifest.json").read_text())
    assert set(manifest["domains"]) == DOMAINS
    assert manifest["num_selected"] == manifest["num_candidates"] // 2
    assert set(record["students"]) == {"miniplm", "pretrain"}
    assert {student["evaluation"]["split"] for student in record["students"].values()} == {"candidate"}
    assert sum(row["num_candidates"] for row in record["truth"]["kinds"]) == manifest["num_candidates"]
    assert all(0 < student["evaluation"]["overall"]["bits_per_byte"] < 6 for student in record["students"].values())
    assert (data / "runs" / "demo" / "report.html").stat().st_size > 20_000


def test_the_real_teacher_scores_as_in_float64(demo):
    data, record = demo
    sequences = read_rows(data / "corpora" / record["corpus_id"] / "candidate")
    scores = read_rows(data / "scores" / record["corpus_id"] / record["teacher"]["model_id"])
    assert set(scores) == set(sequences)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
    for sequence_id in sorted(sequences)[:: len(sequences) // 2]:
        token_ids = torch.tensor(np.array(sequences[sequence_id]["token_ids"], dtype=np.int64))
        mask = token_ids[:-1] != 0
        with torch.no_grad():
            log_probs = model(input_ids=token_ids[None, :-1]).logits[0].log_softmax(-1)
        nll = -log_probs.gather(1, token_ids[1:, None])[:, 0][mask].sum().item()
        assert scores[sequence_id]["num_scored_tokens"] == mask.sum()
        assert scores[sequence_id]["nll_sum"] == pytest.approx(nll, abs=1e-4 * mask.sum().item())


def test_the_teacher_knows_more_than_the_reference(demo):
    """SmolLM2 reads real English at 2 to 4.5 nats a token, and with the dirt among it under 7; a reference trained for seconds does not."""
    data, record = demo
    manifest = json.loads((data / "selections" / record["selection_id"] / "manifest.json").read_text())
    for domain, counts in manifest["domains"].items():
        assert 1.5 < counts["mean_teacher_nll"] < 7, domain
        assert counts["mean_reference_nll"] > counts["mean_teacher_nll"] + 1, domain
