"""SQL expressions of people over the columns of a candidate: parsed by DuckDB, allowed node by node, then evaluated shard by shard.

An expression sees one row at a time. What is not on a list below is refused, so that no file, other table, setting, clock or
random number can enter a selection; the connection that evaluates it may open nothing either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError, first_line, list_offenders
from miniplm.selection.candidates import Floats

# With the types of `EXPRESSION_COLUMNS`.
COLUMNS = pa.schema(
    [
        ("sequence_id", pa.int64()),
        ("domain", pa.string()),
        ("num_tokens", pa.int64()),
        ("num_scored_tokens", pa.int64()),
        ("teacher_nll", pa.float64()),
        ("reference_nll", pa.float64()),
        ("difference_score", pa.float64()),
        ("teacher_nll_sum", pa.float64()),
        ("reference_nll_sum", pa.float64()),
    ]
)
DOCUMENT_COLUMNS = pa.schema(
    [
        pa.field("document_id", pa.int64()),
        *(field for field in COLUMNS if field.name != "sequence_id"),
        pa.field("num_sequences", pa.int64()),
    ]
)
_OPERATORS = (
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "^",
    "~~",
    "!~~",
    "~~*",
    "!~~*",
    "like_escape",
    "not_like_escape",
    "ilike_escape",
)
_FUNCTIONS = (
    *(
        "abs",
        "ceil",
        "ceiling",
        "cos",
        "exp",
        "floor",
        "greatest",
        "isfinite",
        "isinf",
        "isnan",
        "least",
        "ln",
        "log",
        "log10",
        "log2",
    ),
    *("mod", "pow", "power", "round", "sign", "sin", "sqrt", "tanh", "trunc", "coalesce", "if", "ifnull", "nullif"),
    *(
        "contains",
        "ends_with",
        "length",
        "lower",
        "prefix",
        "regexp_full_match",
        "regexp_matches",
        "starts_with",
        "suffix",
        "upper",
    ),
)
_NODES = ("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "CASE", "BETWEEN", "CAST", "FUNCTION")
_OPERATOR_TYPES = (
    "OPERATOR_NOT",
    "OPERATOR_IS_NULL",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_COALESCE",
    "OPERATOR_NULLIF",
    "COMPARE_IN",
    "COMPARE_NOT_IN",
)
_TITLES = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "`*`",
    "LAMBDA": "a lambda",
    "PARAMETER": "a parameter",
}
_NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
)
# What a value may be cast to, with the other names that DuckDB has for it; none depends on the machine, as a time zone does.
_TYPES = (
    *(name.lower() for name in _NUMBERS),
    *("int", "int1", "int2", "int4", "int8", "short", "long", "real", "float4", "float8", "decimal", "numeric", "dec"),
    *("varchar", "text", "string", "char", "boolean", "bool", "date", "timestamp", "datetime"),
)
_MOST_SHOWN_CHARACTERS = 300


class Expressions:
    """The expressions of a selection, seen to be allowed; evaluated over tables with `columns`, in any thread.

    Raises `ConfigError` with the names of the columns where one is unknown, or something else is not allowed.
    """

    def __init__(self, config: SelectionConfig, columns: pa.Schema) -> None:
        self._columns = columns
        fields = {"selection.score": config.score if config.is_expression else None, "selection.where": config.where}
        self._connection = duckdb.connect(
            config={"autoinstall_known_extensions": False, "autoload_known_extensions": False, "threads": 1}
        )
        for field, text in fields.items():
            if text is not None:
                _check(self._connection, field, text, columns.names)
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")
        self._texts = {field: text for field, text in fields.items() if text is not None}
        self._check_types()

    def _check_types(self) -> None:
        for field, text in self._texts.items():
            with self._rows(self._columns.empty_table()) as cursor:
                try:
                    relation = cursor.sql(f"SELECT (\n{text}\n) AS value FROM rows")
                except duckdb.Error as error:
                    raise ConfigError(
                        f"{field}: {_show(text)} is no expression over {_name(self._columns.names)}: {first_line(error)}"
                    ) from error
                kind = str(relation.types[0])
                if field == "selection.where" and kind != "BOOLEAN":
                    raise ConfigError(
                        f"{field}: {_show(text)} is a {kind}, not a condition; compare it with something, e.g. num_tokens > 100"
                    )
                if field == "selection.score" and kind not in _NUMBERS and not kind.startswith("DECIMAL"):
                    raise ConfigError(f"{field}: {_show(text)} is a {kind}, not a number")

    def _rows(self, table: pa.Table) -> duckdb.DuckDBPyConnection:
        cursor = self._connection.cursor()
        cursor.register("rows", table)
        return cursor

    def evaluate(self, table: pa.Table) -> tuple[Floats | None, NDArray[np.bool_] | None]:
        """The score and whether the condition is met, of each row of a table with the columns, (num_rows,) each; None where there is none.

        A condition that is NULL is not met. Raises `ConfigError` where a score is NULL, NaN or infinite in a row that meets the
        condition; of the others it is 0.
        """
        is_met = score = None
        if (text := self._texts.get("selection.where")) is not None:
            is_met = self._run("selection.where", f"coalesce((\n{text}\n), false)", table).astype(np.bool_)
        if (text := self._texts.get("selection.score")) is not None:
            rows = np.arange(table.num_rows) if is_met is None else np.flatnonzero(is_met)
            # Only where it is met: a condition may guard what the score cannot be computed of.
            values = self._run(
                "selection.score", f"CAST((\n{text}\n) AS DOUBLE)", table if is_met is None else table.filter(pa.array(is_met))
            )
            self._check_finite(values, table, rows)
            score = np.zeros(table.num_rows)
            score[rows] = values
        return score, is_met

    def _run(self, field: str, sql: str, table: pa.Table) -> NDArray[Any]:
        """The value of an expression in each row of a table, (num_rows,); NaN for NULL."""
        with self._rows(table) as cursor:
            try:
                values = cursor.execute(f"SELECT {sql} AS value FROM rows").fetchnumpy()["value"]
            except duckdb.Error as error:
                first = table[0][0].as_py() if table.num_rows else None
                raise ConfigError(
                    f"{field}: {_show(self._texts[field])} cannot be computed of a row from {table.column_names[0]} {first} on: {first_line(error)}; "
                    "guard it with CASE, greatest or coalesce, or leave the rows out by selection.where"
                ) from error
        return np.asarray(np.ma.filled(values, np.nan) if values.dtype == np.float64 else values)

    def _check_finite(self, values: Floats, table: pa.Table, rows: NDArray[np.integer[Any]]) -> None:
        """Raises where one of values (num_met,) of rows (num_met,) of a table is no number."""
        broken = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
        if len(broken):
            ids = [table[0][int(rows[row])].as_py() for row in broken[:10]]
            shown = {name: table[name][int(rows[broken[0]])].as_py() for name in table.column_names}
            raise ConfigError(
                f"selection.score: {_show(self._texts['selection.score'])} is NULL, NaN or infinite in {len(broken)} rows ({table.column_names[0]} "
                f"{list_offenders(ids, len(broken))}); the first is {shown}. Guard it with coalesce or CASE, or leave the rows out by selection.where"
            )


def _check(connection: duckdb.DuckDBPyConnection, field: str, text: str, columns: Sequence[str]) -> None:
    """Raises `ConfigError` unless the text is one expression of nothing but what the lists above allow."""

    def parse(sql: str) -> Any:
        row = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{sql}\n)"]).fetchone()
        assert row is not None
        return json.loads(row[0])

    shown = _show(text)
    parsed, plain = parse(text), parse("1")
    if parsed["error"]:
        raise ConfigError(f"{field}: {shown} cannot be parsed: {parsed['error_message']}. The columns are {_name(columns)}")
    statements = [statement["node"] for statement in parsed["statements"]]
    # All but the expression has to be what it is of `SELECT (1)`: no FROM, no second statement, no clause behind it.
    rest = [
        {key: value for key, value in node.items() if key != "select_list"}
        for node in (*statements, plain["statements"][0]["node"])
    ]
    if len(statements) != 1 or len(statements[0].get("select_list", ())) != 1 or rest[0] != rest[1]:
        raise ConfigError(f"{field}: {shown} is more than one expression; write one over the columns {_name(columns)}")
    for node in _list_nodes(statements[0]["select_list"][0]):
        kind, names = node["class"], [name.lower() for name in node.get("column_names", ())]
        if kind not in _NODES or (kind == "OPERATOR" and node["type"] not in _OPERATOR_TYPES):
            what = _TITLES.get(kind, f"{kind if kind != 'OPERATOR' else node['type']}".lower().replace("_", " "))
            raise ConfigError(
                f"{field}: {shown} holds {what}, which is not allowed; an expression is over the columns {_name(columns)}"
            )
        if kind == "COLUMN_REF" and (len(names) != 1 or names[0] not in columns):
            raise ConfigError(f"{field}: {shown} names an unknown column {'.'.join(names)!r}; the columns are {_name(columns)}")
        if kind == "CAST" and (name := _name_type(node)) not in _TYPES:
            raise ConfigError(
                f"{field}: {shown} casts to {name}, which is not allowed; allowed are numbers (DOUBLE, BIGINT, ...), DECIMAL, VARCHAR, BOOLEAN, "
                "DATE and TIMESTAMP"
            )
        if kind == "FUNCTION" and node["function_name"] == "row":
            raise ConfigError(f"{field}: {shown} is not one expression; write one over the columns {_name(columns)}")
        if kind == "FUNCTION" and (node["function_name"].lower() not in (*_OPERATORS, *_FUNCTIONS) or node.get("schema")):
            raise ConfigError(
                f"{field}: {shown} calls {node['function_name']}, which is not allowed; allowed are {', '.join(_FUNCTIONS)}, "
                "arithmetic, comparisons, LIKE, IN, BETWEEN, CASE and CAST"
            )


def _list_nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a parsed expression."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for key, value in tree.items():
            # Of a constant or a type there is nothing to look into.
            if key not in ("literal", "value", "type_expr", "cast_type"):
                yield from _list_nodes(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _list_nodes(item)


def _name_type(cast: dict[str, Any]) -> str:
    """To what a cast goes, in lower case; of a type in a schema that too."""
    kind = cast.get("type_expr")
    if kind is None:  # as DuckDB before 2.0 tells it
        return str((cast.get("cast_type") or {}).get("id", "")).lower()
    return ".".join(filter(None, (kind.get("catalog"), kind.get("schema"), kind["type_name"]))).lower()


def _show(text: str) -> str:
    """An expression in a message."""
    return repr(text if len(text) <= _MOST_SHOWN_CHARACTERS else f"{text[:_MOST_SHOWN_CHARACTERS]}...")


def _name(columns: Sequence[str]) -> str:
    return ", ".join(columns)
