"""The signature is the schema: a target's arguments, their types and ranges, and words for what breaks them."""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args

from thaw.errors import did_you_mean
from thaw.redaction import REDACTED

BUILT = ("model", "data", "task", "optimizer", "scheduler", "freezing", "trainer")
OPTIONAL = ("regularization", "callbacks", "checkpoint", "logger")

MISSING = "???"  # how a YAML says that a value must come from the command line

# What a resumed run may have otherwise: it changes no figure.
MAY_CHANGE = (
    "run.",
    "resume",
    "test",
    "search",
    "checkpoint.",
    "logger",
    "report",
    "cache.",
    "model.gradient_checkpointing",
    "data.num_workers",
    "data.worker_timeout",
    "trainer.accelerator",
    "trainer.compile",
    "trainer.devices",
    "trainer.strategy.timeout",
)


def problems(
    settings: Mapping[str, Any],
    loose: Mapping[str, Any],
    groups: Collection[str],
    find_target: Callable[[str], Any],
) -> list[str]:
    """Everything wrong with the settings of a run, in words.

    Args:
        settings: plain nested containers; a mapping with a `_target_` holds that target's arguments.
        loose: full key → annotation, for settings that belong to no target.
        groups: names of the configuration's groups.
        find_target: gives a target by its path, or raises ValueError, ImportError or AttributeError.
    """
    found = []
    entries = flat(settings)
    kept_out = [key for key, value in entries.items() if isinstance(value, str) and REDACTED in value]
    found += [f"{key} must be given: a secret is kept out of what a run writes. Write {key}=…" for key in kept_out]
    listed = [key for key, value in entries.items() if isinstance(value, list) and "_target_" in str(value)]
    found += [
        f"{key} must have no _target_ in its list. Write what it names as a setting of its own." for key in listed
    ]
    for key, annotation in loose.items():
        found += check_value(key, entries.get(key), annotation)
    parents = {key.rpartition(".")[0] for key in loose}
    known = {*loose, *groups, *parents} - {""}
    closed = {""} | {parent for parent in parents if "_target_" not in (entries.get(parent) or {})}
    for key in entries:
        if key not in known and key.rpartition(".")[0] in closed:
            found.append(f"{key}: there is no such setting. {did_you_mean(key, sorted(known))}")
    for key, node in entries.items():
        if isinstance(node, dict) and "_target_" in node:
            try:
                target = find_target(node["_target_"])
                if key == "task" and not hasattr(target, "target"):
                    raise ValueError("it is no task")
                parameters = signature(target)
            except (ValueError, TypeError, ImportError, AttributeError) as error:
                wrong = f"got '{node['_target_']}' ({error})."
                found.append(f"{key}._target_ must be a target that Thaw may build; {wrong}")
                continue
            for name, value in node.items():
                if not name.startswith("_") and f"{key}.{name}" not in loose:
                    found += _argument_problems(f"{key}.{name}", value, name, node["_target_"], parameters)
    return found


def lacking(settings: Mapping[str, Any], needed: Collection[str]) -> list[str]:
    """Settings that no run can be without, in words: those given, and of every group its section."""
    entries = flat(settings)
    found = [f"{key}._target_" for key in BUILT if not _has_target(settings.get(key))]
    found += [key for key in OPTIONAL if key not in settings]
    found += [key for key in needed if key not in entries and key.partition(".")[0] not in BUILT]
    return [f"{key} must be there. Leave out the ~ that deletes it." for key in found]


def _has_target(node: Any) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("_target_"), str)


def _argument_problems(
    path: str, value: Any, name: str, target: str, parameters: Mapping[str, inspect.Parameter]
) -> list[str]:
    if name not in parameters:
        # What has no default is an object that only code can give.
        settable = [other for other, parameter in parameters.items() if parameter.default is not parameter.empty]
        return [f"{path} is no setting of {target}. {did_you_mean(name, settable)}"]
    if value == MISSING:
        return [f"{path} must be given. Write {path}=…"]
    if isinstance(value, dict) and "_target_" in value and _takes_objects(parameters[name].annotation):
        return []
    return check_value(path, value, parameters[name].annotation, parameters[name].default)


def _takes_objects(annotation: Any) -> bool:
    kinds = get_args(annotation) or (annotation,)
    return annotation is inspect.Parameter.empty or any(
        kind is Any or (inspect.isclass(kind) and kind.__module__ != "builtins") for kind in kinds
    )


def flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Full key → value, of every mapping and every leaf."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        full = f"{path}.{name}" if path else str(name)
        found[full] = value
        if isinstance(value, dict):
            found |= flat(value, full)
    return found


def leaves(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Full key → value, of everything that is no mapping."""
    return {key: value for key, value in flat(settings).items() if not isinstance(value, dict)}


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], may_change: tuple[str, ...] = MAY_CHANGE, shown: int = 4
) -> list[str]:
    """Leaves that differ, in words, but for those whose key starts with one of `may_change`."""
    old, new = leaves(before), leaves(now)
    differ = [k for k in sorted(old | new) if not k.startswith(may_change) and old.get(k) != new.get(k)]
    return [f"{key} was {old.get(key)}, is now {new.get(key)}" for key in differ][:shown]


def find_target(path: str, allowed: Sequence[str]) -> Any:
    """What a `_target_` names.

    Args:
        allowed: paths, or with `.*` at their end all that begins so.

    Raises:
        ValueError: it is not among the allowed, or only imported where it is said to be.
        ImportError, AttributeError: there is no such thing.
    """
    if not any(path == entry or (entry.endswith(".*") and path.startswith(entry[:-1])) for entry in allowed):
        raise ValueError("it is not in EXECUTION_WHITELIST of src/thaw/config.py")
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if path not in allowed and getattr(found, "__module__", None) != module:
        raise ValueError("it is not defined there")
    return found


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
    """The problem with a plain value for an annotated argument, in words; of a mapping, one for each wrong entry."""
    if annotation is inspect.Parameter.empty:
        return []
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError  # `--help` can do without

    try:
        TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except PydanticUserError:  # no type that pydantic knows, or a name that only a type checker sees
        return []
    except ValidationError as error:
        places: dict[str, Any] = {}
        rules: dict[str, list[tuple[str, str]]] = {}
        for entry in error.errors():
            place, given = _within(path, value, entry["loc"])
            places[place] = given
            rules.setdefault(place, []).append(_rule(entry, given))
        return [_problem(place, given, rules[place], default) for place, given in places.items()]
    return []


def _within(path: str, value: Any, keys: Sequence[Any]) -> tuple[str, Any]:
    """The entry of nested mappings that is meant, by its full key; the value itself where it is no mapping."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            break
        path, value = f"{path}.{key}", value[key]
    return path, value


def _problem(path: str, value: Any, rules: Sequence[tuple[str, str]], default: Any) -> str:
    advice = next((advice for _, advice in rules if advice), "")
    if not advice and isinstance(default, (int, float, str)) and not isinstance(default, bool):
        advice = f"Write e.g. {path}={default}."
    return f"{path} {' or '.join(dict.fromkeys(rule for rule, _ in rules))}; got {value!r}. {advice}".strip()


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
