"""The section about how varied and how hard a sample of what was kept is, against as many random candidates."""

from __future__ import annotations

from markupsafe import Markup

from miniplm.report.markup import MISSING, render
from miniplm.selection.diversity_sample import SampleDiversity, SelectionDiversity

# What is said of each measure: its name, what it means, how a value is written, and where it is found.
MEASURES: tuple[tuple[str, str, str], ...] = (
    ("Distinct 1-grams", "distinct tokens over all tokens, in as many tokens of both samples; higher is more varied", "percent"),
    ("Distinct 2-grams", "distinct pairs of tokens over all pairs; higher is more varied", "percent"),
    ("Distinct 3-grams", "distinct triples of tokens over all triples; higher is more varied", "percent"),
    ("Compression ratio", "bytes of text over bytes compressed by zlib, sequence by sequence; higher is more repetitive", "ratio"),
    ("Near-duplicates", "sequences that share 0.8 or more of their 5-token shingles with another of the sample", "percent"),
    (
        "Embedding spread",
        "mean cosine distance of two sequences by the reference's last hidden states; higher is more varied",
        "ratio",
    ),
    ("Teacher NLL", "mean, nats a token; lower is easier for the teacher", "ratio"),
    ("Teacher NLL at 10 %", "a tenth of the sequences is easier, nats a token", "ratio"),
    ("Teacher NLL at 90 %", "a tenth of the sequences is harder, nats a token", "ratio"),
    ("Reference NLL", "mean, nats a token", "ratio"),
)


def list_values(sample: SampleDiversity) -> list[float | None]:
    """The values of a sample in the order of `MEASURES`."""
    low, _, high = sample.teacher_nll_quantiles
    return [
        *sample.distinct_ngrams,
        sample.compression_ratio,
        sample.near_duplicates,
        sample.embedding_spread,
        sample.teacher_nll,
        low,
        high,
        sample.reference_nll,
    ]


def format_value(value: float | None, kind: str) -> str:
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if kind == "percent" else f"{value:.3f}"


def render_diversity(diversity: SelectionDiversity) -> Markup:
    """One row a measure: its value in what was kept, and in random candidates."""
    rows = [
        (name, meaning, format_value(kept, kind), format_value(random, kind))
        for (name, meaning, kind), kept, random in zip(
            MEASURES, list_values(diversity.kept), list_values(diversity.random), strict=True
        )
    ]
    return render("diversity.html", diversity=diversity, rows=rows)
