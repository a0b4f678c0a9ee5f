"""What a dtype changes in the scores and in what is selected, against float32, on real text with a real teacher.

    python -m benchmarks.scoring_fidelity --teacher models/smollm2-135m --eos-token '<|endoftext|>'
    python -m benchmarks.scoring_fidelity --config deployments/configs/demo.yaml          the models and corpus of a run
    python -m benchmarks.scoring_fidelity --storage ./data --run demo                     the same, by the run's name

A run needs its corpus and its reference model; nothing is written to its storage root. Without a run and without
--reference, the reference is the teacher with some of its layers left out: a worse model of the same text, which is
what a reference is, but one whose errors are those of its teacher. A dtype that the device lacks is emulated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.records import append_rows, describe_place, format_table
from benchmarks.scoring_inputs import prepare_text
from miniplm.config.files import check_config, load_config
from miniplm.config.run import RunConfig, ScoringConfig
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.reader import load_corpus, read_shard
from miniplm.errors import ConfigError, MiniplmError
from miniplm.models.devices import resolve_device
from miniplm.models.identity import identify_model
from miniplm.records.calibrations import Calibration
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import load_run
from miniplm.run.references import require_reference
from miniplm.run.resolution import resolve
from miniplm.run.scoring_models import open_scorer
from miniplm.scoring.engine import Scorer, SequenceScores
from miniplm.selection.fidelity import calibrate, measure_fidelity
from miniplm.storage.root import Storage

# Shards of the corpus made here: a calibration reads at most eight, evenly spread.
_SEQUENCES_PER_SHARD = 200


class _UnchangedStorage(Storage):
    """A storage root that is read only: a benchmark must not change what the fidelity gate of a run goes by."""

    def write_json(self, relative: str, content: Any) -> None:
        pass


@dataclass(frozen=True)
class Setting:
    """Where the sequences lie and which models score them. `entries` makes teacher and reference in two dtypes."""

    storage: Storage
    corpus: CorpusManifest
    scoring: ScoringConfig
    names: tuple[str, str]
    config: RunConfig | None = None
    folders: tuple[Path, Path] | None = None

    def entries(self, teacher_dtype: str, reference_dtype: str) -> tuple[ModelEntry, ModelEntry]:
        if self.folders is not None:
            teacher, reference = self.folders
            return (
                identify_model(teacher, str(teacher), teacher_dtype),
                identify_model(reference, str(reference), reference_dtype),
            )
        assert self.config is not None
        content = self.config.model_dump(mode="json")
        content["teacher"]["dtype"], content["reference"]["dtype"] = teacher_dtype, reference_dtype
        plan = resolve(check_config(content, "the run's configuration"), emulated=True, checks=False)
        return plan.require_teacher(), require_reference(self.storage, plan, self.corpus)


class _RememberedScorer:
    """A scorer that scores a set of sequences once for each model and dtype, though several calibrations ask for it."""

    _known: dict[tuple[str, str], SequenceScores] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, setting: Setting, entry: ModelEntry) -> None:
        self._key = (entry.weights_digest, entry.dtype)
        self._setting, self._entry = setting, entry
        self.model = _Placed(resolve_device(setting.scoring.device))

    def score(self, *arguments: Any) -> SequenceScores:
        if self._key not in self._known:
            started = time.perf_counter()
            length = self._setting.corpus.sequence_length
            scorer = open_scorer(self._setting.storage, self._entry, self._setting.scoring, length, emulated=True)
            self._known[self._key] = scorer.score(*arguments)
            print(f"  {self._entry.model_id} in {self._entry.dtype}: {time.perf_counter() - started:.0f} s", flush=True)
        return self._known[self._key]


@dataclass(frozen=True)
class _Placed:
    device: torch.device


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring_fidelity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file of a run, whose corpus and models are used")
    parser.add_argument("--storage", default="./data", help="storage root of --run (default ./data)")
    parser.add_argument("--run", help="name of a run at --storage, whose corpus and models are used")
    parser.add_argument("--teacher", type=Path, default=Path("models/smollm2-135m"), help="folder of the teacher, without a run")
    parser.add_argument("--reference", type=Path, help="folder of the reference; default: the teacher without --drop-layers")
    parser.add_argument("--drop-layers", default="12-19", help="layers the reference lacks, first-last, from 0 (default 12-19)")
    parser.add_argument("--text", default="samples/demo/*.jsonl.zst", help="jsonl files, without a run (default: the sample)")
    parser.add_argument("--eos-token", help="the token between documents; default the tokenizer's own (SmolLM2: '<|endoftext|>')")
    parser.add_argument("--length", type=int, default=256, help="targets a sequence, without a run (default 256)")
    parser.add_argument("--sequences", type=int, default=200, help="sequences that are scored (default 200)")
    parser.add_argument(
        "--dtypes",
        default="bfloat16,float16,fp8,fp8+bfloat16",
        help="each a dtype of both models, or TEACHER+REFERENCE (default bfloat16,float16,fp8,fp8+bfloat16)",
    )
    parser.add_argument("--ratios", default="0.3,0.5,0.7", help="kept shares at which the selections are compared")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; without a run")
    parser.add_argument("--json", type=Path, help="file that a JSON object for each pair of dtypes is appended to, a line each")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="miniplm-fidelity-") as scratch:
        try:
            _run(arguments, Path(scratch))
        except (MiniplmError, ConfigError) as error:
            raise SystemExit(f"benchmarks.scoring_fidelity: {error}") from None


def _run(arguments: argparse.Namespace, scratch: Path) -> None:
    setting = _find_setting(arguments, scratch)
    place = describe_place(resolve_device(setting.scoring.device))
    ratios = [float(ratio) for ratio in arguments.ratios.split(",")]
    rows = []
    for pair in arguments.dtypes.split(","):
        teacher_dtype, _, reference_dtype = pair.partition("+")
        teacher, reference = setting.entries(teacher_dtype, reference_dtype or teacher_dtype)

        def open_one(entry: ModelEntry) -> Scorer:
            return cast(Scorer, _RememberedScorer(setting, entry))

        calibration = calibrate(setting.storage, setting.corpus, teacher, reference, arguments.sequences, open_one)
        domains = _count_domains(setting, calibration)
        rows.append({"benchmark": "fidelity"} | place | _describe(setting, calibration, ratios) | {"domains": domains})
    print(f"\n{' against '.join(setting.names)} on {place['device']}, {rows[0]['num_sequences']} sequences: {rows[0]['domains']}")
    _print_rows(rows, ratios)
    if arguments.json:
        append_rows(arguments.json, rows)


def _find_setting(arguments: argparse.Namespace, scratch: Path) -> Setting:
    if arguments.config or arguments.run:
        if arguments.run:
            config = check_config(load_run(Storage(arguments.storage), arguments.run).config, f"run {arguments.run}")
            config = config.model_copy(update={"storage": arguments.storage})
        else:
            config = load_config(arguments.config)
        storage: Storage = _UnchangedStorage(config.storage)
        corpus = load_corpus(storage, resolve_corpus_id(storage, config.corpus))
        names = (config.teacher.model, config.reference.model or str(config.reference.architecture))
        # Compiling takes longer than what is scored here.
        return Setting(storage, corpus, config.scoring.model_copy(update={"compile": False}), names, config=config)
    if not arguments.teacher.is_dir():
        raise ConfigError(f"--teacher {arguments.teacher} is no folder; `make assets` makes models/smollm2-135m")
    reference, name = arguments.reference, str(arguments.reference)
    if reference is None:
        reference, name = scratch / "reference", f"{arguments.teacher.name} without layers {arguments.drop_layers}"
        _write_without_layers(arguments.teacher, reference, arguments.drop_layers)
    storage = Storage(str(scratch / "storage"))
    corpus = prepare_text(
        storage, str(arguments.teacher), arguments.text, arguments.length, arguments.eos_token, _SEQUENCES_PER_SHARD
    )
    scoring = ScoringConfig(device=arguments.device, compile=False)
    return Setting(storage, corpus, scoring, (arguments.teacher.name, name), folders=(arguments.teacher, reference))


def _write_without_layers(teacher: Path, folder: Path, layers: str) -> None:
    """The teacher without some of its layers, in float32, as a model folder."""
    from transformers import AutoModelForCausalLM

    first, _, last = layers.partition("-")
    dropped = range(int(first), int(last or first) + 1)
    model = AutoModelForCausalLM.from_pretrained(str(teacher), dtype=torch.float32, local_files_only=True)
    kept = [index for index in range(model.config.num_hidden_layers) if index not in dropped]
    model.model.layers = torch.nn.ModuleList([model.model.layers[index] for index in kept])
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    model.save_pretrained(str(folder))


def _count_domains(setting: Setting, calibration: Calibration) -> dict[str, int]:
    """How many of the scored sequences each domain has."""
    wanted = set(calibration.sequence_ids)
    counts: Counter[str] = Counter()
    for shard in setting.corpus.split_shards("candidate"):
        table = read_shard(setting.storage, shard, columns=["sequence_id", "domain"])
        pairs = zip(table["sequence_id"].to_pylist(), table["domain"].to_pylist(), strict=True)
        counts.update(domain for sequence_id, domain in pairs if sequence_id in wanted)
    return dict(sorted(counts.items()))


def _describe(setting: Setting, calibration: Calibration, ratios: list[float]) -> dict[str, Any]:
    teacher, reference = calibration.teacher, calibration.reference
    by_ratio = {ratio: measure_fidelity(calibration, ratio, "mean") for ratio in ratios}
    fidelity = by_ratio[ratios[0]]
    differences = np.array(reference.float32_nll) - np.array(teacher.float32_nll)
    moved = np.array(reference.nll) - np.array(teacher.nll) - differences
    return {
        "teacher": setting.names[0],
        "reference": setting.names[1],
        "teacher_dtype": teacher.dtype,
        "reference_dtype": reference.dtype,
        "num_sequences": fidelity.num_sequences,
        "num_scored_tokens": sum(calibration.num_scored_tokens),
        "sequence_length": setting.corpus.sequence_length,
        "teacher_bias": fidelity.teacher_bias,
        "reference_bias": fidelity.reference_bias,
        "spearman": fidelity.spearman,
        "overlap": {f"{ratio:g}": found.overlap for ratio, found in by_ratio.items()},
        "difference_score_spread": float(differences.std()),
        "difference_score_change_spread": float(moved.std()),
        "difference_score_change_max": float(np.abs(moved).max()),
        "teacher_nll": float(np.average(teacher.float32_nll, weights=calibration.num_scored_tokens)),
        "reference_nll": float(np.average(reference.float32_nll, weights=calibration.num_scored_tokens)),
        "teacher_tokens_per_second": {teacher.dtype: teacher.tokens_per_second, "float32": teacher.float32_tokens_per_second},
    }


def _print_rows(rows: list[dict[str, Any]], ratios: list[float]) -> None:
    overlaps = [f"overlap at {ratio:g}" for ratio in ratios]
    header = ["teacher + reference", "teacher bias", "reference bias", "Spearman", *overlaps, "spread", "change", "max change"]
    cells = [
        [
            f"{row['teacher_dtype']} + {row['reference_dtype']}",
            f"{row['teacher_bias']:+.5f}",
            f"{row['reference_bias']:+.5f}",
            f"{row['spearman']:.5f}",
            *(f"{row['overlap'][f'{ratio:g}']:.1%}" for ratio in ratios),
            f"{row['difference_score_spread']:.3f}",
            f"{row['difference_score_change_spread']:.4f}",
            f"{row['difference_score_change_max']:.4f}",
        ]
        for row in rows
    ]
    print(format_table(header, cells))


if __name__ == "__main__":
    main()
