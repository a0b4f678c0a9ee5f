"""A grid of selections to look at before one is made: `ratio=0.1:0.9,within=corpus|domain,temperature=0|0.1`."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import Any

import yaml

from miniplm.config.files import check_section
from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError

FIELDS = ("ratio", "tokens", "threshold", "within", "temperature", "seed", "score", "duplicates", "contamination")
_BUDGETS = ("ratio", "tokens", "threshold")
# Only these have an order in which a range makes sense; of some only whole numbers are values.
_NUMBERS = ("ratio", "tokens", "threshold", "temperature", "seed")
_WHOLE_NUMBERS = ("tokens", "seed")
_VALUES_OF_A_RANGE = 9
_MOST_SELECTIONS = 500
_FORM = "--what-if FIELD=VALUES,FIELD=VALUES with VALUES as 0.3 or 0.1|0.3 or LOW:HIGH (nine of them) or LOW:HIGH:STEP"


@dataclass(frozen=True)
class GridSelection:
    """One selection of a grid: the fields in which it differs from the others, and its whole rule."""

    settings: dict[str, Any]
    config: SelectionConfig


def parse_grid(text: str, base: SelectionConfig) -> list[GridSelection]:
    """Every combination of the values of a grid, the first field changing slowest; what it does not name is as in `base`.

    Raises `ConfigError` for an unknown or repeated field, a range that holds nothing, a value that the field may not have.
    """
    values: dict[str, list[Any]] = {}
    for part in text.split(","):
        name, equals, listed = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not listed:
            raise ConfigError(f"--what-if {text}: {part.strip()!r} is no FIELD=VALUES; write {_FORM}")
        if name not in FIELDS:
            raise ConfigError(f"--what-if {text}: there is no field {name!r} to try; there are {', '.join(FIELDS)}")
        if name in values:
            raise ConfigError(f"--what-if {text}: {name} is given twice; write its values as {name}=A|B")
        values[name] = _read_values(name, listed, text)
    num_selections = 1
    for found in values.values():
        num_selections *= len(found)
    if num_selections > _MOST_SELECTIONS:
        raise ConfigError(
            f"--what-if {text}: these are {num_selections:,} selections, at most {_MOST_SELECTIONS} can be tried at once; give larger steps"
        )
    content = base.model_dump(mode="json")
    if any(name in values for name in _BUDGETS):
        content |= dict.fromkeys(_BUDGETS)
    grid = []
    for combination in product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        told = ",".join(f"{name}={value}" for name, value in settings.items())
        config = check_section(SelectionConfig, content | settings, f"--what-if {told} is not a valid selection")
        # As the field reads them: 5e9 is a number of tokens.
        grid.append(GridSelection({name: getattr(config, name) for name in settings}, config))
    return grid


def _read_values(name: str, listed: str, text: str) -> list[Any]:
    values: list[Any] = []
    for part in listed.split("|"):
        if ":" in part:
            if name not in _NUMBERS:
                raise ConfigError(f"--what-if {text}: {name} has no ranges, only values: {name}=A|B")
            values += _read_range(name, part, text)
        else:
            values.append(_read_value(part.strip(), text))
    unique: list[Any] = []
    for value in values:
        if value not in unique:
            unique.append(value)
    return unique


def _read_value(part: str, text: str) -> Any:
    try:
        value = yaml.safe_load(part)
    except yaml.YAMLError as error:
        raise ConfigError(f"--what-if {text}: {part!r} is not a value; write {_FORM}") from error
    if value is None or isinstance(value, (dict, list)):
        raise ConfigError(f"--what-if {text}: {part!r} is not a value; write {_FORM}")
    return value


def _read_range(name: str, part: str, text: str) -> list[float]:
    """The values of `LOW:HIGH` or `LOW:HIGH:STEP`, both ends among them where the steps meet them; by decimals, as floats of 0.1 drift."""
    pieces = part.split(":")
    try:
        numbers = [Decimal(piece.strip()) for piece in pieces]
        is_finite = all(number.is_finite() for number in numbers)
    except InvalidOperation:
        is_finite = False
    if not is_finite or len(pieces) not in (2, 3):
        raise ConfigError(f"--what-if {text}: {name}={part} is no range of numbers; write LOW:HIGH or LOW:HIGH:STEP")
    low, high = numbers[:2]
    step = numbers[2] if len(numbers) == 3 else (high - low) / (_VALUES_OF_A_RANGE - 1)
    if low > high or (low < high and step <= 0):
        raise ConfigError(f"--what-if {text}: the range {name}={part} holds no value; LOW must not be over HIGH, and STEP over 0")
    if low == high:
        step = Decimal(1)
    num_steps = (high - low) / step
    if num_steps >= _MOST_SELECTIONS:
        raise ConfigError(
            f"--what-if {text}: the range {name}={part} has {int(num_steps) + 1:,} values; at most {_MOST_SELECTIONS} can be tried at once"
        )
    values = [low + number * step for number in range(int(num_steps) + 1)]
    return [int(value) if name in _WHOLE_NUMBERS else float(value) for value in values]
