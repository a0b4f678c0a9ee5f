"""Numbers and texts as the page writes them, the same everywhere, and the templates that they are filled into.

What is `Markup` is HTML; any other text is escaped where it meets HTML, in a template or in `fill`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escape_html

_HIDDEN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_UNPRINTABLE = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

MISSING = "–"


def render(template: str, **values: object) -> Markup:
    """A template of the folder `templates` with its values filled in."""
    return Markup(_open_templates().get_template(template).render(values))


@cache
def _open_templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("miniplm.report"),
        autoescape=True,
        undefined=StrictUndefined,  # a name that is not given is a fault, and would else be an empty place on the page
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {name.removeprefix("format_"): value for name, value in globals().items() if name.startswith("format_")}
    templates.globals |= {"explain": explain, "swatch": swatch, "MISSING": MISSING}
    return templates


def escape(value: object) -> Markup:
    """Any text as HTML text or attribute value. Control characters become their visible pictures, which HTML allows."""
    return value if isinstance(value, Markup) else escape_html(_UNPRINTABLE.sub("\ufffd", str(value).translate(_HIDDEN)))


def fill(html: str, *values: object) -> Markup:
    """HTML with values in place of each {}."""
    return Markup(html.format(*map(escape, values)))


def format_name(value: object) -> Markup:
    """A name from the data, kept from turning the text around it where it is written from right to left."""
    is_long = max((len(word) for word in str(value).split()), default=0) > 24
    return fill('<bdi class="long">{}</bdi>' if is_long else "<bdi>{}</bdi>", value)


def format_code(value: object) -> Markup:
    return fill("<code>{}</code>", value)


def format_told(text: object) -> Markup:
    """A sentence as the terminal has it: what stands between backticks is code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # one of them has no end
        return escape(text)
    return Markup("").join(format_code(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def format_count(value: float) -> str:
    return f"{value:,.0f}"


def format_size(value: float) -> Markup | str:
    """A large number in three digits: 134.5 M."""
    for divisor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= divisor:
            return fill("{}&nbsp;{}", f"{value / divisor:.4g}", letter)
    return format_count(value)


def format_power(value: float) -> Markup:
    """A number of any size in two digits and a power of ten: 6.3·10^13."""
    mantissa, _, power = f"{value:.1e}".partition("e")
    return fill("{}·10<sup>{}</sup>", mantissa.replace("-", "−"), str(int(power)).replace("-", "−"))


def format_times(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_bytes(value: float) -> Markup:
    for divisor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= divisor:
            return fill("{}&nbsp;{}", f"{value / divisor:.3g}", unit)
    return fill("{}&nbsp;B", f"{value:.0f}")


def format_share(part: float, whole: float) -> Markup | str:
    return fill("{}&nbsp;%", f"{100 * part / whole:.1f}") if whole else MISSING


def format_nats(value: float | None, signed: bool = False) -> str:
    """Three digits after the point, with a true minus sign; enough for what a training run can tell apart."""
    if value is None:
        return MISSING
    rounded = round(value, 3) + 0.0  # no "-0.000"
    return f"{rounded:{'+' if signed and rounded else ''}.3f}".replace("-", "−")


def format_error(standard_error: float | None, digits: int = 3) -> Markup:
    """A standard error behind its value, small; nothing where there is none."""
    return Markup() if standard_error is None else fill("&nbsp;<small>±&nbsp;{}</small>", f"{standard_error:.{digits}f}")


def format_seconds(seconds: float) -> Markup:
    if seconds < 9.95:
        return fill("{}&nbsp;s", f"{seconds:.1f}")
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return fill("{}&nbsp;s", rest)
    hours, minutes = divmod(minutes, 60)
    return (
        fill("{}&nbsp;h&nbsp;{}&nbsp;min", hours, f"{minutes:02d}")
        if hours
        else fill("{}&nbsp;min&nbsp;{}&nbsp;s", minutes, f"{rest:02d}")
    )


def format_time(time: str) -> str:
    """An ISO 8601 time to the minute, with its zone where it is not left out."""
    zone = " UTC" if time.endswith(("Z", "+00:00")) else time[19:] if len(time) > 19 else ""
    return time[:16].replace("T", " ") + zone


def explain(text: object, meaning: object) -> Markup:
    """A word with what it means on hover."""
    return fill('<abbr title="{}">{}</abbr>', meaning, text)


def mark_best(figure: str, best: str | None) -> Markup:
    """A figure, with a star where it is the best of its row as it is written."""
    if figure != best:
        return escape(figure)
    return fill("<span class='best'>★<span class='visually-hidden'> best </span>&nbsp;{}</span>", figure)


def swatch(colour: str) -> Markup:
    """A small square in the colour of a CSS variable."""
    return fill('<span class="swatch" style="--c:var({})"></span>', colour)


def cut_text(text: str, num_characters: int, num_lines: int) -> str:
    """The beginning of a text, at most that long and of that many lines, not cut before a combining mark."""
    lines = text.split("\n", num_lines)
    end = min(num_characters, len("\n".join(lines[:num_lines])))
    while 0 < end < len(text) and unicodedata.combining(text[end]):
        end -= 1
    return text[:end]
