"""Facts as tables for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from flows.cli.terminal import PlainConsole, show_in_line
from miniplm import layout
from miniplm.corpus.taken_files import list_files_read_again, list_files_without_documents
from miniplm.errors import list_offenders
from miniplm.records.calibrations import Calibration
from miniplm.records.manifests import CorpusManifest, is_proxy
from miniplm.records.selections import DomainSelection, SelectionManifest
from miniplm.selection.budgets import count_selected
from miniplm.storage.root import Storage

if TYPE_CHECKING:
    from miniplm.run.cost import RunCost
    from miniplm.run.doctor import Finding
    from miniplm.run.inspection import InspectedDocuments, InspectedDomain, InspectedSequence
    from miniplm.run.plan import RunPlan
    from miniplm.run.status import RunStatus

_STATES = {"done": "green", "partial": "yellow", "missing": "yellow", "broken": "red"}


class PlainTable(Table):
    """A table whose cells are taken as they are: a domain may be called `[/]`, which elsewhere is markup."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        super().add_row(
            *[Text(show_in_line(cell)) if isinstance(cell, str) else cell for cell in cells], style=style, end_section=end_section
        )


def make_table(title: str, *columns: str) -> Table:
    """A plain table: the first column is text, the others are numbers."""
    table = PlainTable(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    return table


def print_selection(console: Console, storage: Storage, manifest: SelectionManifest) -> None:
    """What was kept, by domain."""
    title = (
        f"Kept {manifest.num_selected:,} of {manifest.num_candidates:,} {manifest.units} ({manifest.num_selected_tokens:,} tokens)"
    )
    table = make_table(title, *_KEPT_COLUMNS)
    for domain, counts in manifest.domains.items():
        table.add_row(domain, *_kept_cells(counts))
    console.print(table)
    console.print(_KEPT_NOTE, style="dim")
    if is_proxy(manifest.teacher_id):
        console.print(_describe_proxy(storage, manifest), style="yellow", soft_wrap=True)
    for line in _describe_budget(manifest):
        console.print(line, soft_wrap=True)
    console.print(f"selection: {storage.url(layout.selection_folder(manifest.selection_id))}", soft_wrap=True)


def _describe_budget(manifest: SelectionManifest) -> list[str]:
    """How what was asked for was met; nothing by the published rule, whose count is exact."""
    rule, lines = manifest.rule, []
    for reason, count in manifest.left_out.items():
        lines.append(f"left out before ranking ({reason}): {count:,} of {manifest.num_candidates:,}")
    budget: int | None = rule.get("tokens")
    if budget is None and "mix" in rule:
        budget = count_selected(sum(pool.num_ranked_tokens for pool in manifest.pools), manifest.ratio or 1)
    if budget is not None:
        lines += _describe_pools(manifest, budget)
    if "threshold" in rule:
        lines.append(
            f"threshold: {manifest.num_selected / sum(pool.num_ranked for pool in manifest.pools):.1%} of what was ranked scores at least {rule['threshold']:g}"
        )
    return lines


def _describe_pools(manifest: SelectionManifest, budget: int) -> list[str]:
    """What of a budget of tokens was kept, and of which share of it each domain that was ranked by itself."""
    left, several = budget - manifest.num_used_tokens, len(manifest.pools) > 1
    rest = (
        f"the {left:,} left are fewer than the next {manifest.units + ' have' if several else manifest.unit + ' has'}"
        if left
        else "met exactly"
    )
    lines = [f"budget: {manifest.num_used_tokens:,} of {budget:,} tokens; {rest}"]
    if (num_uses := len(manifest.list_passes())) > 1:
        lines.append(
            f"  of {manifest.num_selected_tokens:,} tokens, which are used {num_uses - 1} times, and the best of them {num_uses} times"
        )
    for pool in manifest.pools if several else ():
        asked = manifest.rule.get("mix", {}).get(pool.domains[0])
        wanted = "" if asked is None else f", asked {_describe_share(asked)}"
        cut = "" if pool.threshold is None else f", kept from {pool.threshold:.4g}"
        share = pool.num_selected_tokens / budget
        lines.append(f"  {', '.join(pool.domains)}: {pool.num_selected_tokens:,} tokens, {share:.2%} of the budget{wanted}{cut}")
    return lines


def _describe_share(share: float | dict[str, float]) -> str:
    if isinstance(share, dict):
        return f"{share.get('at_least', 0):.2%} to {share.get('at_most', 1):.2%}"
    return f"{share:.2%}"


def _describe_proxy(storage: Storage, selection: SelectionManifest) -> str:
    from miniplm.config.selection import SelectionConfig
    from miniplm.proxy.measuring import tell_proxy
    from miniplm.proxy.prediction import load_proxy

    proxy = load_proxy(storage, selection.teacher_id)
    told = "how well is not told here, as the rule has signals, of which a selection knows the content and not the place"
    if "signals" not in selection.rule:
        steering = {name: value for name, value in selection.rule.items() if name in SelectionConfig.model_fields}
        rule = SelectionConfig(ratio=selection.ratio, score=selection.score, within=selection.within, **steering)
        fidelity, problem = tell_proxy(storage, proxy, rule)
        told = f"how well cannot be told any more: {problem}" if fidelity is None else fidelity.describe()
    return (
        f"{proxy.proxy_id} predicts the difference scores, and with them the teacher's NLLs, of all but the {proxy.num_labels:,} sequences that the "
        f"teacher scored; {told}"
    )


_KEPT_COLUMNS = ("domain", "kept", "share", "teacher", "reference", "difference")
_KEPT_NOTE = "teacher and reference: mean NLL, nats a token; difference: median of reference - teacher"


def _kept_cells(counts: DomainSelection) -> list[str]:
    return [
        f"{counts.num_selected:,} of {counts.num_candidates:,}",
        f"{counts.num_selected / counts.num_candidates:.1%}",
        f"{counts.mean_teacher_nll:.3f}",
        f"{counts.mean_reference_nll:.3f}",
        f"{counts.difference_score_quantiles[3]:+.3f}",
    ]


def print_corpus(console: Console, storage: Storage, manifest: CorpusManifest) -> None:
    """What a prepared corpus holds."""
    table = make_table(f"Corpus {manifest.corpus_id}", "domain", "split", "documents", "tokens", "sequences")
    for split in layout.SPLITS:
        for domain, counts in sorted(manifest.domains.get(split, {}).items()):
            table.add_row(domain, split, f"{counts.num_documents:,}", f"{counts.num_tokens:,}", f"{counts.num_sequences:,}")
    console.print(table)
    print_taken(console, storage, manifest)
    if manifest.parent is not None:
        console.print(f"extends {manifest.parent}: what that holds was not prepared again, and is counted in", soft_wrap=True)


def print_taken(console: Console, storage: Storage, manifest: CorpusManifest) -> None:
    """What was read for a corpus, and all that was not taken into it."""
    rejected = sum(manifest.rejected.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejected.items()))
    console.print(
        f"{manifest.num_records:,} records read from {len(manifest.sources):,} files, {rejected:,} rejected"
        + (f" ({reasons})" if reasons else ""),
        soft_wrap=True,
    )
    if rejected:
        folders = ", ".join(storage.url(layout.quarantine_folder(corpus_id)) for corpus_id in manifest.lineage)
        console.print(f"rejected records: {folders}", soft_wrap=True)
    if empty := list_files_without_documents(manifest):
        files = list_offenders([f"{path} ({f'{count:,} rejected' if count else 'empty'})" for path, count in empty.items()])
        console.print(f"no document came of these files: {files}", style="yellow", soft_wrap=True)
    if again := list_files_read_again(manifest):
        files = list_offenders([f"{path} ({count} times)" for path, count in again.items()])
        console.print(f"read more than once, as several sources name them or there are copies: {files}", soft_wrap=True)
    for entry in manifest.left_out:
        names = list_offenders(entry.names, entry.num_files)
        console.print(f"left out of {entry.source}, {entry.reason}: {names}", soft_wrap=True)


def print_status(status: RunStatus) -> None:
    """Each stage, and the shards that are missing or broken."""
    console = PlainConsole()
    table = make_table(f"Run {status.run_name} at {status.storage}", "stage", "state", "done", "")
    for stage in status.stages:
        table.add_row(
            stage.name,
            Text(stage.state, _STATES[stage.state]),
            f"{stage.num_done:,} of {stage.num_total:,} {stage.unit}",
            Text(stage.detail, "dim"),
        )
    console.print(table)
    for stage in status.stages:
        for shard in stage.shards[:10]:
            console.print(f"{stage.name} {layout.shard_name(shard.shard_index)}: {shard.state} {shard.reason}", soft_wrap=True)
        if len(stage.shards) > 10:
            console.print(f"{stage.name}: ... ({len(stage.shards)} shards in all; --json lists them)")


def print_sequences(sequences: list[InspectedSequence], whole: bool) -> None:
    """Sequences with their scores and text."""
    console = PlainConsole()
    for sequence in sequences:
        scores = (
            "not a candidate"
            if sequence.difference_score is None
            else f"difference {sequence.difference_score:+.3f}  teacher {sequence.teacher_nll:.3f}  reference {sequence.reference_nll:.3f}"
        )
        scores += "  teacher and difference predicted" if sequence.is_predicted else ""
        kept = {True: "  kept", False: "  not kept", None: ""}[sequence.selected]
        console.print(
            f"sequence {sequence.sequence_id}  {sequence.domain}  {sequence.num_tokens} tokens  {scores}{kept}",
            style="bold",
        )
        text = sequence.text if whole else " ".join(sequence.text.split())[:300]
        console.print(text + "\n", soft_wrap=whole)


def print_documents(inspected: InspectedDocuments) -> None:
    """Documents with their scores and where they come from."""
    console = PlainConsole()
    for document in inspected.documents:
        scores = f"difference {document.difference_score:+.3f}  teacher {document.teacher_nll:.3f}  reference {document.reference_nll:.3f}"
        console.print(
            f"document {document.document_id}  {document.domain}  {document.num_scored_tokens:,} scored tokens  {scores}",
            style="bold",
        )
        source = "source unknown" if document.path is None else f"{document.path}, record {document.record_number}"
        where = f"sequence {document.first_sequence_id}" + (" and on" if document.num_sequences > 1 else "")
        console.print(f"{source}; {where}", soft_wrap=True)
    console.print(f"{len(inspected.documents)} of {inspected.num_documents:,} documents", style="dim")
    if inspected.num_unattributed:
        console.print(
            f"{inspected.num_unattributed:,} sequences are in none of them: an EOS inside a document's text hides where it ends",
            style="yellow",
        )


def print_domains(domains: list[InspectedDomain]) -> None:
    """Each domain: what was kept of its candidates, or how many it has where nothing is selected yet."""
    console = PlainConsole()
    table = make_table("Domains", *_KEPT_COLUMNS)
    for domain in domains:
        candidates = domain.splits.get("candidate")
        num_candidates = candidates.num_sequences if candidates else 0
        table.add_row(domain.domain, *([f"- of {num_candidates:,}"] if domain.selection is None else _kept_cells(domain.selection)))
    console.print(table)
    console.print(_KEPT_NOTE, style="dim")


def print_findings(findings: list[Finding]) -> None:
    """What the doctor found."""
    console = PlainConsole()
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        console.print(Text(f"{finding.state:<8}", colours[finding.state]), f"{finding.name}: {finding.value}", soft_wrap=True)
        if finding.advice:
            console.print(f"{'':10}{finding.advice}", style="dim", soft_wrap=True)


def describe_fidelity(storage: Storage, calibration: Calibration, plan: RunPlan, corpus: CorpusManifest) -> dict[str, object]:
    """A calibration's facts for machines, without its lists of NLLs."""
    from miniplm.run.fidelity_gate import measure_run

    fidelity = measure_run(storage, corpus, calibration, plan)
    models = {
        role: {
            "model_id": scores.model_id,
            "dtype": scores.dtype,
            "tokens_per_second": scores.tokens_per_second,
            "float32_tokens_per_second": scores.float32_tokens_per_second,
        }
        for role, scores in (("teacher", calibration.teacher), ("reference", calibration.reference))
    }
    return {
        "corpus_id": calibration.corpus_id,
        "device": calibration.device,
        "selection_ratio": plan.selection.ratio,
        "selection_rule": plan.selection.describe_rule(),
        "selection_within": calibration.within,
        **asdict(fidelity),
        "min_overlap": plan.scoring.min_overlap,
        "passes": fidelity.passes(plan.scoring.min_overlap),
        **models,
    }


def print_fidelity(console: Console, storage: Storage, calibration: Calibration, plan: RunPlan, corpus: CorpusManifest) -> None:
    """What the dtypes change against float32, and whether they pass the gate."""
    from miniplm.run.fidelity_gate import measure_run

    fidelity = measure_run(storage, corpus, calibration, plan)
    table = make_table(
        f"Dtypes against float32, {fidelity.num_sequences} candidates of {calibration.corpus_id}",
        "model",
        "dtype",
        "mean bias",
        "rate",
        "float32 rate",
    )
    for role, scores, bias in (
        ("teacher", calibration.teacher, fidelity.teacher_bias),
        ("reference", calibration.reference, fidelity.reference_bias),
    ):
        table.add_row(
            f"{role} {scores.model_id}",
            scores.dtype,
            f"{bias:+.5f} nats a token",
            f"{scores.tokens_per_second:,.0f} tokens/s",
            f"{scores.float32_tokens_per_second:,.0f} tokens/s",
        )
    console.print(table)
    passes = fidelity.passes(plan.scoring.min_overlap)
    console.print(f"difference score: Spearman {fidelity.spearman:.5f} with float32")
    console.print(
        f"selected at {plan.selection.title}: {fidelity.overlap:.2%} ± {fidelity.overlap_error:.2%} of float32's {fidelity.num_selected} sequences; "
        f"scoring.min_overlap is {plan.scoring.min_overlap:g}: {'passes' if passes else 'REFUSED'}",
        style="green" if passes else "red",
    )
    path = layout.calibration(
        calibration.corpus_id, calibration.teacher.model_id, calibration.reference.model_id, calibration.within
    )
    console.print(f"measured on {calibration.device}; kept at {storage.url(path)}", style="dim", soft_wrap=True)


def print_plan(plan: RunCost) -> None:
    """What a run will cost."""
    console = PlainConsole()
    table = make_table(f"Plan of run {plan.run_name}", "stage", "tokens", "shards", "rate", "of peak", "time")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            f"{stage.num_tokens:,}",
            "" if stage.num_shards is None else f"{stage.num_shards:,}",
            f"{stage.tokens_per_second:,.0f} tokens/s" if stage.tokens_per_second else "",
            "" if stage.matmul_peak_share is None else f"{stage.matmul_peak_share:.0%}",
            f"{stage.hours:.2f} h" if stage.hours >= 0.1 else f"{stage.hours * 3600:.0f} s",
        )
    table.add_section()
    table.add_row("all", "", "", "", "", f"{plan.hours:.2f} h" if plan.hours >= 0.1 else f"{plan.hours * 3600:.0f} s", style="bold")
    console.print(table)
    console.print(
        f"{plan.hours:.2f} {plan.unit}s measured on one {plan.device}; of peak: FLOP/s over those of a large matrix product; storage {plan.storage_bytes / 1e9:.3f} GB at {plan.storage}",
        soft_wrap=True,
    )
    if plan.usd is not None:
        console.print(f"about {plan.usd:,.2f} USD at {plan.usd_per_gpu_hour:g} USD a {plan.unit}")
    for note in plan.notes:
        console.print(note, style="dim", soft_wrap=True)
