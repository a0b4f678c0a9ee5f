"""`select --what-if` as tables: what each selection of a grid would keep, and of which domains."""

from __future__ import annotations

from rich.console import Console

from flows.cli.tables import make_table
from miniplm.records.what_if import Outcome, WhatIf

_MOST_DOMAINS = 5


def print_what_if(console: Console, what_if: WhatIf) -> None:
    """A row a selection, the run's own first."""
    fields = list(what_if.outcomes[0].settings)
    total = sum(what_if.tokens.values())
    table = make_table(
        f"What if: {what_if.num_candidates:,} candidates, {total:,} tokens",
        *fields,
        "kept tokens",
        "of all",
        "threshold",
        "overlap",
    )
    shares = make_table(
        "Share of the kept tokens by domain", *fields, *_list_domains(what_if), *(["others"] if _has_others(what_if) else [])
    )
    problems = {}
    for name, outcome in [("now", what_if.current), *((None, outcome) for outcome in what_if.outcomes)]:
        settings = [name or "", *[""] * (len(fields) - 1)] if name else [_show(outcome.settings[field]) for field in fields]
        if outcome.problem:
            table.add_row(*settings, "none", "", "", "")
            problems[",".join(f"{field}={value}" for field, value in outcome.settings.items())] = outcome.problem
            continue
        table.add_row(
            *settings,
            f"{outcome.num_selected_tokens:,}",
            f"{outcome.num_selected_tokens / max(total, 1):.1%}",
            _show_threshold(outcome),
            f"{what_if.overlap(outcome):.1%}",
        )
        domains = [what_if.share(outcome, domain) for domain in _list_domains(what_if)]
        others = [f"{max(0.0, 1 - sum(domains)):.1%}"] if _has_others(what_if) else []
        shares.add_row(*settings, *[f"{share:.1%}" for share in domains], *others)
    console.print(table)
    console.print(
        "threshold: the least ranking key that is kept, of pools the least to the largest; overlap: of what the run's own selection (now) keeps, "
        "how much is kept too, by sequences or documents. Nothing was made",
        style="dim",
        soft_wrap=True,
    )
    console.print(shares)
    for reason, number in what_if.current.left_out.items():
        console.print(f"left out of the run's own: {number:,}, {reason}", style="dim", soft_wrap=True)
    for tried, problem in problems.items():
        console.print(f"{tried}: {problem}", style="yellow", soft_wrap=True)


def _list_domains(what_if: WhatIf) -> list[str]:
    """The largest, by candidates."""
    return sorted(what_if.tokens, key=lambda domain: (-what_if.tokens[domain], domain))[:_MOST_DOMAINS]


def _has_others(what_if: WhatIf) -> bool:
    return len(what_if.tokens) > _MOST_DOMAINS


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _show_threshold(outcome: Outcome) -> str:
    if outcome.threshold is not None:
        return f"{outcome.threshold:+.3f}"
    values = outcome.thresholds.values()
    return f"{min(values):+.3f} to {max(values):+.3f}" if values else ""
