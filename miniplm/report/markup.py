"""Numbers and texts as the page writes them: escaped, with their unit, the same everywhere."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

_HIDDEN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_UNPRINTABLE = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

MISSING = "–"


def escape(value: object) -> str:
    """Any text as HTML text or attribute value. Control characters become their visible pictures, which HTML allows."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(value).translate(_HIDDEN)))


def format_name(value: object) -> str:
    """A name from the data, kept from turning the text around it where it is written from right to left."""
    breakable = ' class="long"' if max((len(word) for word in str(value).split()), default=0) > 24 else ""
    return f"<bdi{breakable}>{escape(value)}</bdi>"


def format_code(value: object) -> str:
    return f"<code>{escape(value)}</code>"


def format_count(value: float) -> str:
    return f"{value:,.0f}"


def format_size(value: float) -> str:
    """A large number in three digits: 134.5 M."""
    for divisor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= divisor:
            return f"{value / divisor:.4g}&nbsp;{letter}"
    return format_count(value)


def format_power(value: float) -> str:
    """A number of any size in two digits and a power of ten: 6.3·10^13."""
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}·10<sup>{int(power)}</sup>".replace("-", "−")


def format_times(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_bytes(value: float) -> str:
    for divisor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= divisor:
            return f"{value / divisor:.3g}&nbsp;{unit}"
    return f"{value:.0f}&nbsp;B"


def format_share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}&nbsp;%" if whole else MISSING


def format_nats(value: float | None, signed: bool = False) -> str:
    """Three digits after the point, with a true minus sign; enough for what a training run can tell apart."""
    if value is None:
        return MISSING
    rounded = round(value, 3) + 0.0  # no "-0.000"
    return f"{rounded:{'+' if signed and rounded else ''}.3f}".replace("-", "−")


def format_error(standard_error: float | None, digits: int = 3) -> str:
    """A standard error behind its value, small; nothing where there is none."""
    return "" if standard_error is None else f"&nbsp;<small>±&nbsp;{standard_error:.{digits}f}</small>"


def format_seconds(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f}&nbsp;s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}&nbsp;s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}&nbsp;h&nbsp;{minutes:02d}&nbsp;min" if hours else f"{minutes}&nbsp;min&nbsp;{rest:02d}&nbsp;s"


def explain(text: str, meaning: str) -> str:
    """A word with what it means on hover; `text` is HTML."""
    return f'<abbr title="{escape(meaning)}">{text}</abbr>'


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", num_text_columns: int = 1) -> str:
    """A table of HTML cells that scrolls sideways where it is too wide; all but the first columns are numbers."""
    column = ['class="text"' if index < num_text_columns else 'class="number"' for index in range(len(head))]
    cells = "".join(f'<th scope="col" {column[index]}>{cell}</th>' for index, cell in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row" {column[index]}>{cell}</th>' if index == 0 else f"<td {column[index]}>{cell}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def format_time(time: str) -> str:
    """An ISO 8601 time to the minute, with its zone where it is not left out."""
    zone = " UTC" if time.endswith(("Z", "+00:00")) else time[19:] if len(time) > 19 else ""
    return escape(time[:16].replace("T", " ") + zone)


def cut_text(text: str, num_characters: int, num_lines: int) -> str:
    """The beginning of a text, at most that long and of that many lines, not cut before a combining mark."""
    lines = text.split("\n", num_lines)
    end = min(num_characters, len("\n".join(lines[:num_lines])))
    while 0 < end < len(text) and unicodedata.combining(text[end]):
        end -= 1
    return text[:end]
