"""What an expression may hold, and what is said of one that may not."""

from __future__ import annotations

import pytest

from miniplm.config.selection import EXPRESSION_COLUMNS, SelectionConfig
from miniplm.errors import ConfigError
from miniplm.selection.expressions import COLUMNS, Expressions


def test_columns_of_expressions_are_those_of_the_configuration() -> None:
    assert tuple(COLUMNS.names) == EXPRESSION_COLUMNS


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"score": "quality + 1"},
            r"selection\.score: 'quality \+ 1' names an unknown column 'quality'; the columns are sequence_id, domain, num_tokens",
        ),
        ({"where": "domain.name = 'a'"}, r"names an unknown column 'domain.name'"),
        ({"where": "num_tokens IN (SELECT 1)"}, r"selection\.where: .* holds a subquery, which is not allowed"),
        ({"where": "EXISTS (FROM 'x.csv')"}, r"holds a subquery"),
        ({"score": "read_text('/etc/passwd')"}, r"calls read_text, which is not allowed; allowed are abs, ceil"),
        ({"score": "getenv('HOME')::DOUBLE"}, r"calls getenv, which is not allowed"),
        ({"score": "random()"}, r"calls random, which"),
        ({"score": "sum(num_tokens)"}, r"calls sum, which"),
        ({"score": "main.abs(num_tokens)"}, r"calls abs, which is not allowed"),
        ({"score": "rank() OVER (ORDER BY num_tokens)"}, r"holds a window function"),
        ({"score": "COLUMNS('num.*')"}, r"holds `\*`"),
        ({"score": "list_transform([1], x -> x)[1]"}, r"not allowed"),
        ({"score": "$1"}, r"holds a parameter"),
        ({"score": "1) FROM read_csv('x') WHERE (true"}, r"is more than one expression"),
        ({"score": "1), (2"}, r"is more than one expression"),
        ({"score": "1); SELECT (2"}, r"is more than one expression"),
        ({"score": "difference_score +"}, r"cannot be parsed: syntax error .* The columns are sequence_id"),
        ({"score": "domain"}, r"is a VARCHAR, not a number"),
        ({"where": "num_tokens"}, r"is a BIGINT, not a condition"),
        ({"score": "num_tokens::FOO"}, r"casts to foo, which is not allowed; allowed are numbers"),
        ({"where": "domain::TIMESTAMPTZ > '2026-01-01'"}, r"casts to timestamptz, which"),
        ({"score": "num_tokens::main.double"}, r"casts to main.double, which"),
        ({"score": "num_tokens::INTEGER[]"}, r"casts to list, which"),
        ({"score": "1, 2"}, r"is not one expression; write one"),
        ({"where": " "}, r"is not one expression; write one"),
        ({"score": "+".join(["num_tokens"] * 5000)}, r"^.{300,600}\.\.\.' cannot be parsed: .{,600}$"),
        ({"score": "num_tokens + domain"}, r"is no expression over sequence_id"),
    ],
)
def test_an_expression_that_is_not_allowed_is_refused(rule: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Expressions(SelectionConfig.model_validate(rule), COLUMNS)


def test_numbers_text_and_dates_may_be_cast_to_by_any_name() -> None:
    score = "num_tokens::int4 + CAST(num_tokens AS numeric(9, 2)) + num_tokens::text::double + difference_score::REAL"
    Expressions(SelectionConfig(score=score, where="'2026-01-01'::date > '2025-01-01'::timestamp AND domain::bool"), COLUMNS)
