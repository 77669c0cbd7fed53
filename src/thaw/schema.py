"""The signature is the schema: a target's arguments, their types and ranges, and words for what breaks them."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from thaw.errors import did_you_mean


def signature(target: Any) -> dict[str, inspect.Parameter]:
    """A target's arguments; what a class takes as **keywords, it takes from the class it extends."""
    owners = [c for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    found: dict[str, inspect.Parameter] = {}
    for owner in owners:
        parameters = inspect.signature(owner.__init__ if inspect.isclass(owner) else owner).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def check_value(path: str, value: Any, annotation: Any, default: Any = None) -> list[str]:
    """The problem with a plain value for an annotated argument, in words, or no problem."""
    if annotation is inspect.Parameter.empty:
        return []
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return []
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        found = dict.fromkeys(_rule(entry, value) for entry in error.errors())
        advice = next((advice for _, advice in found if advice), "")
        if not advice and isinstance(default, (int, float, str)) and not isinstance(default, bool):
            advice = f"Write e.g. {path}={default}."
        return [f"{path} {' or '.join(rule for rule, _ in found)}; got {value!r}. {advice}".strip()]
    return []


def _rule(error: Mapping[str, Any], value: Any) -> tuple[str, str]:
    """What must hold, and what to write instead where that is known."""
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "value_error":
        rule, *advice = context["error"].args
        return rule, advice[0] if advice else ""
    if kind == "literal_error":
        options = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        advice = did_you_mean(str(value), options)
        return f"must be one of {', '.join(options)}", advice if advice.startswith("Did") else ""
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    if kind in bounds:
        return f"must be {kind.replace('_', ' ')} {context[bounds[kind]]}".replace("than equal", "than or equal to"), ""
    if kind in ("int_from_float", "int_type", "int_parsing"):
        return "must be a whole number", ""
    if kind.startswith("string_"):
        return "must be text", ""
    if kind.startswith("bool_"):
        return "must be true or false", ""
    if kind.startswith("float_"):
        return "must be a number", ""
    return (error["msg"][0].lower() + error["msg"][1:]).replace("input should be", "must be"), ""
