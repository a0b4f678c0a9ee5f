"""A student with another tokenizer and family, and one on the teacher's text, through the real command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from miniplm.config.files import load_config
from miniplm.errors import ConfigError, TokenizerError
from miniplm.run import cost as plan
from miniplm.run.resolution import resolve
from miniplm.run.status import check_run
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm
from tests.tiny_runs import EOS, FinishedRun, make_documents, make_tokenizer

TRAINING = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1, "checkpoint_every_steps": 2}


def make_students(folder: Path, seed: int, suffix: str = "") -> list[dict[str, Any]]:
    training = TRAINING | {"seed": seed}
    return [
        {
            "name": f"llama{suffix}",
            "architecture": str(folder / "llama"),
            "tokenizer": str(folder / "own"),
            "method": "miniplm",
            "training": training,
        },
        {
            "name": f"seqkd{suffix}",
            "architecture": "qwen-tiny",
            "method": "seqkd",
            "generation": {"prompt_tokens": 48, "sequences_per_shard": 16},
            "training": training,
        },
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finished_run: FinishedRun, prefect_server) -> Path:
    """A run whose corpus is scored and selected already."""
    folder = tmp_path_factory.mktemp("derived")
    LlamaConfig(
        vocab_size=999,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    ).save_pretrained(folder / "llama")
    make_tokenizer(folder / "own", make_documents(40, seed=5), vocab_size=300)
    shutil.copytree(finished_run.data, folder / "data", ignore=shutil.ignore_patterns("runs"))
    content = yaml.safe_load(finished_run.config.read_text())
    content |= {"storage": str(folder / "data"), "students": make_students(folder, seed=0)}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    result = run_miniplm("run", str(config), prefect=prefect_server, timeout_seconds=900)
    assert result.returncode == 0, result.stderr + result.stdout
    return config


def list_derived(config: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of the derived sets, with the time when it was written."""
    root = config.parent / "data" / "derived"
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def test_the_students_are_trained_and_measured(finished: Path) -> None:
    record = json.loads((finished.parent / "data" / "runs" / "tiny" / "run.json").read_text())
    bits = {name: student["evaluation"]["overall"]["bits_per_byte"] for name, student in record["students"].items()}
    # Both read every byte of the same text: at four steps neither is far from a guess among all ids.
    assert all(0 < value < 8 for value in bits.values())
    evaluations = {name: student["evaluation"] for name, student in record["students"].items()}
    assert evaluations["llama"]["domains"].keys() == evaluations["seqkd"]["domains"].keys()
    num_bytes = [
        evaluation["overall"]["nats_per_token"] / math.log(2) / evaluation["overall"]["bits_per_byte"]
        for evaluation in evaluations.values()
    ]
    assert num_bytes[0] < num_bytes[1], "the own tokenizer, with fewer words, has fewer bytes a token"


def test_a_student_comes_with_its_own_tokenizer_and_family(finished: Path) -> None:
    folder = finished.parent / "data" / "runs" / "tiny" / "students" / "llama"
    own = AutoTokenizer.from_pretrained(finished.parent / "own")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.get_vocab() == own.get_vocab()
    assert tokenizer.eos_token == EOS
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == 320  # 300 and more, rounded up to a multiple of 64
    assert model.generation_config.eos_token_id == own.eos_token_id
    assert model.config.max_position_embeddings == 65


def test_derived_sets_are_found_by_other_students_of_another_run(finished: Path, prefect_server) -> None:
    before = list_derived(finished)
    kinds = sorted({path.split("-")[0] for path in before})
    assert kinds == ["conversion", "generation"]
    assert len({path.split("/")[0] for path in before}) == 3, (
        "the selection and the held-out text encoded anew, and the teacher's text"
    )
    content = yaml.safe_load(finished.read_text()) | {
        "name": "second",
        "students": make_students(finished.parent, seed=1, suffix="-again"),
    }
    second = finished.parent / "second.yaml"
    second.write_text(yaml.safe_dump(content))
    broken = next(path for path in before if path.startswith("generation") and path.endswith("shard-00001.parquet"))
    (finished.parent / "data" / "derived" / broken).unlink()
    stages = {
        (stage.name, stage.state): stage
        for stage in check_run(Storage(content["storage"]), resolve(load_config(str(second)), checks=False)).stages
    }
    assert stages["derive llama-again", "done"].num_done > 1
    assert [shard.shard_index for shard in stages["derive seqkd-again", "broken"].shards] == [1]
    result = run_miniplm("train", str(second), "--json", prefect=prefect_server)
    assert result.returncode == 0, result.stderr + result.stdout
    after = list_derived(finished)
    assert {path: content for path, (content, _) in after.items()} == {path: content for path, (content, _) in before.items()}
    assert {path for path, (_, time) in after.items() if time != before[path][1]} == {broken, broken.replace(".parquet", ".json")}


def test_a_plan_counts_such_students(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_PROBE_SECONDS", 1e-6)
    planned = plan.plan_run(resolve(load_config(str(finished)), checks=False))
    assert {"train llama", "train seqkd"} <= {stage.name for stage in planned.stages}
    assert any(note.startswith("seqkd: the time in which the teacher writes") for note in planned.notes)
    assert Storage(planned.storage).exists("derived")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("students.0.tokenizer", "/nowhere", "there is no tokenizer folder '/nowhere'"),
        ("students.0.eos_token", "<none>", "give `eos_token of student llama` a token that it has"),
        ("students.0.vocab_size", "290", "vocab_size is 290, but the tokenizer has 300 ids"),
        ("students.1.generation.prompt_tokens", "65", "generation.prompt_tokens is 65, but corpus.sequence_length is 64"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    finished: Path, tmp_path: Path, field: str, value: str, message: str
) -> None:
    content = yaml.safe_load(finished.read_text())
    _, index, *path = field.split(".")
    section = content["students"][int(index)]
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = yaml.safe_load(value)
    changed = tmp_path / "config.yaml"
    changed.write_text(yaml.safe_dump(content))
    with pytest.raises((ConfigError, TokenizerError)) as refused:
        resolve(load_config(str(changed)))
    assert message in str(refused.value)
