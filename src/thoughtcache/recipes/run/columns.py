"""The rows that TRL sees as one table, whose columns have one type each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def as_table(rows: Sequence[dict[str, Any]], source: str) -> Dataset:
    """The table that TRL trains on; an object in a row gets the keys of all others, as None.

    Args:
        rows: at least one; all have the same columns.
        source: where they come from, for errors.

    Raises:
        ValueError: if the values of a column have no common type; the message names the column and two of its values.
    """
    import pyarrow
    from datasets import Dataset

    faults = (pyarrow.ArrowException, OverflowError, UnicodeEncodeError)
    try:
        return Dataset.from_list(list(rows))
    except faults:
        for name in rows[0]:
            values = [row[name] for row in rows]
            try:
                Dataset.from_dict({name: values})
            except faults as error:
                raise ValueError(
                    f"column {name!r} of {source} cannot be given to a reward: {_clash(values, error)}; give its "
                    "values one type, or leave the column out"
                ) from error
        raise


def _clash(values: Sequence[Any], error: Exception) -> str:
    """Two values of different types; what the table says where the difference lies deeper."""
    known = [value for value in values if value is not None]
    other = next((value for value in known if type(value) is not type(known[0])), None)
    if other is None:
        return str(error)
    one, two = (f"{value!r:.60} is of type {type(value).__name__}" for value in (known[0], other))
    return f"{one}, {two}"
