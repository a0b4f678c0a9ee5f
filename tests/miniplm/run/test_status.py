"""How far a run has come, where something that it was made of is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from miniplm.config.files import load_config
from miniplm.run import stages
from miniplm.run.model_entries import require_reference
from miniplm.run.resolution import resolve
from miniplm.run.status import check_run, provide_record, require_corpus
from miniplm.storage.root import Storage
from tests.tiny_runs import FinishedRun


def test_a_selection_whose_signal_is_gone_is_shown_with_what_is_missing(finished_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(finished_run.data, tmp_path / "data")
    (tmp_path / "data" / "runs" / "tiny" / "run.json").unlink()
    signal = tmp_path / "edu.parquet"
    pq.write_table(pa.table({"sequence_id": [0], "score": [1.0]}), signal)
    rule = {"name": "edu", "path": str(signal), "key": "sequence_id", "column": "score", "missing": 0}
    content = yaml.safe_load(finished_run.config.read_text()) | {
        "storage": str(tmp_path / "data"),
        "students": [],
        "selection": {"score": "difference_score + edu", "signals": [rule]},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(content))
    plan = resolve(load_config(str(config)))
    storage = Storage(plan.storage)
    corpus = require_corpus(storage, plan)
    selection, _ = stages.select(storage, plan, corpus, require_reference(storage, plan, corpus))
    provide_record(storage, load_config(str(config)))
    signal.unlink()
    status = check_run(storage, resolve(load_config(str(config)), checks=False))
    (stage,) = [stage for stage in status.stages if stage.name == "select"]
    assert (stage.state, stage.num_done, status.complete) == ("done", selection.num_selected, True)
    assert stage.detail.startswith(f"{selection.selection_id}; made when this was not so: selection.signals edu: source")
    # Another rule is another selection, which is not there.
    content["selection"]["ratio"] = 0.4
    config.write_text(yaml.safe_dump(content))
    status = check_run(storage, resolve(load_config(str(config)), checks=False))
    (stage,) = [stage for stage in status.stages if stage.name == "select"]
    assert (stage.state, status.complete) == ("missing", False)
    assert stage.detail.startswith("selection.signals edu: source")
