"""What the sections of a configuration are made of: a strict base, names, and URLs without credentials."""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# What 32-bit offsets reach in a list column of a shard's file: all its tokens lie in one.
MOST_SHARD_TOKENS = 2**31 - 1
# What every generator of random numbers takes.
LARGEST_SEED = 2**63 - 1

# `://user:password@`, also where the password holds slashes, `://user@`, and the signature of a presigned URL.
_CREDENTIALS = re.compile(r"://[^@/]*@|://[^@]*:[^@]*@|[?&](X-Amz-|sig=|Signature=|AWSAccessKeyId=)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: letters, digits, '.', '_' and '-' only, at most 100, a letter or digit first")
    return name


def _check_url(url: str) -> str:
    if not url:
        raise ValueError("is empty; give a folder or an fsspec URL such as s3://bucket/prefix")
    try:
        url.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds a byte that is not UTF-8 at character {error.start}; rename the folder, or for sources write `?` in its place"
        ) from None
    if _CREDENTIALS.search(url):
        raise ValueError("holds credentials; keep them in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
    return url


Name = Annotated[str, AfterValidator(_check_name)]
Url = Annotated[str, AfterValidator(_check_url)]
# Of a model, a tokenizer or an architecture: a hub id, a folder, or the URL of one.
Location = Annotated[str, Field(min_length=1), AfterValidator(_check_url)]


def write_label(value: str | float) -> str:
    """A label of documents as it is compared and shown: truth values and whole numbers are written as JSON has them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # JSON's integers are read as floats
    return str(value)


class Section(BaseModel):
    """A part of the configuration: immutable, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, content: Any) -> Any:
        """`ratio: yes` is true in YAML, which pydantic takes for 1.0."""
        for name, field in cls.model_fields.items() if isinstance(content, dict) else ():
            if isinstance(content.get(name), bool) and _is_number(field.annotation):
                raise ValueError(f"{name} is {str(content[name]).lower()}, and a number is wanted")
        return content


def _is_number(annotation: Any) -> bool:
    """Whether a field takes a number, and neither true nor false."""
    parts = _list_parts(annotation)
    return bool not in parts and (int in parts or float in parts)


def _list_parts(annotation: Any) -> list[Any]:
    """The types that an annotation joins by `|`, without what is said of them."""
    if isinstance(annotation, UnionType) or get_origin(annotation) in (Union, Annotated):
        return [part for one in get_args(annotation) for part in _list_parts(one)]
    return [annotation]
