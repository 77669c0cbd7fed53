"""What a raw label says, as it stands in a table: a class, several labels, words or tags, a transcript, or nothing."""

import reprlib
from collections.abc import Sequence
from typing import Any

from thaw.errors import UserError

YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "", "none", "nan")


def missing(raw: Any) -> bool:
    """Whether a raw label is none."""
    if isinstance(raw, dict):
        return any(map(missing, raw.values()))
    return raw is None or (isinstance(raw, str) and not raw.strip()) or raw != raw  # NaN alone is unlike itself


def words(raw: Any, separator: str | None = None) -> list[str]:
    """The parts of a list, or of one text.

    Args:
        separator: what stands between the parts of a text; None is white space.
    """
    return [str(part) for part in raw] if _is_list(raw) else str(raw).split(separator)


def class_name(raw: Any) -> str:
    """The name of one class.

    Raises:
        UserError: several labels.
    """
    advice = "Write task=multilabel for several labels, or task=token_classification for a tag of each word."
    return _single(raw, "one class", advice)


def transcript(raw: Any) -> str:
    """What was said, in lower case and with single blanks.

    Raises:
        UserError: a list, or several columns.
    """
    return " ".join(_single(raw, "a transcript", "Write it as one text, in one column.").lower().split())


def label_set(raw: Any) -> list[str]:
    """The labels of a list, of a text such as `news;sport`, or of columns {name: 0 or 1}.

    Raises:
        UserError: a column that holds something else.
    """
    if isinstance(raw, dict):
        if wrong := [name for name, held in raw.items() if str(held).lower() not in YES + NO]:
            raise UserError(f"data.label_column: '{wrong[0]}' must be 0 or 1 in every row; got {raw[wrong[0]]!r}.")
        return [name for name, held in raw.items() if str(held).lower() in YES]
    parts = (part.strip() for part in words("" if raw is None else raw, ";"))
    return list(dict.fromkeys(part for part in parts if part))


def _single(raw: Any, what: str, advice: str) -> str:
    if _is_list(raw) or isinstance(raw, dict):  # as a text it would be a name of its own
        raise UserError(f"data.label_column must hold {what} for each sample; got {reprlib.repr(raw)}. {advice}")
    return str(raw)


def _is_list(raw: Any) -> bool:
    return isinstance(raw, Sequence) and not isinstance(raw, str)
