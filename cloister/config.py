"""Base class of every configuration: frozen, typed, unknown keys refused, printable back."""

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import pydantic

from cloister.errors import ConfigError

_EXPECTED = {"model_type": "Input should be a table", "dict_type": "Input should be a table"}


class Config(pydantic.BaseModel):
    """A frozen, validated group of settings.

    Values are never coerced silently across types (``"3"`` is not a number); integers are accepted for floats, numbers
    that are not finite are not.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], source: str = "", *, at: str = "") -> Self:
        """Return the validated configuration.

        ``source``: the file or command that the values come from. ``at``: the key of the table that they are in an
        experiment (``settings``), which errors put before their own. Raises :class:`ConfigError` that names source,
        key, what was expected and the nearest known key.
        """
        try:
            return cls.model_validate(_frozen(values))
        except pydantic.ValidationError as error:
            raise ConfigError(describe(cls, error, source, at=at, values=values)) from None

    @classmethod
    def class_of(cls, values: Any) -> type["Config"]:
        """Return the class that ``values`` are validated as: this one, where a name in them chooses no other."""
        return cls


def _frozen(value: Any) -> Any:
    """TOML and JSON have lists where frozen settings have tuples."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def describe(
    model: type[pydantic.BaseModel], error: pydantic.ValidationError, source: str, *, at: str = "", values: Any = None
) -> str:
    """Return one line per invalid key of ``error``: where, what was expected, what was found, the nearest key.

    ``values``: what ``model`` was to be made from; with them, the keys of a table whose class they choose are known.
    """
    found: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for item in error.errors():
        keys, known = locate(model, item["loc"], values)
        key = ".".join((*([at] if at else ()), *keys)).replace(".[", "[")
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(keys[-1], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
            found[key] = [f"unknown key {key!r}; {hint}"]
            continue
        reason = item.get("ctx", {}).get("error")  # what a validator of ours raised, without pydantic's words around it
        problem = str(reason) if item["type"] == "value_error" else _EXPECTED.get(item["type"], item["msg"])
        if problem not in found.setdefault(key, []):
            found[key].append(problem)
        if not isinstance(item["input"], Mapping | pydantic.BaseModel) or item["type"] in _EXPECTED:
            inputs[key] = item["input"]
    lines = []
    for key, problems in found.items():
        text = "; or ".join(problems)
        if not text.startswith("unknown key"):
            text = f"{key or 'value'}: {text}" + (f" (found {inputs[key]!r})" if key in inputs else "")
        lines.append(f"{source}: {text}" if source else text)
    return "\n".join(lines)


def locate(
    model: type[pydantic.BaseModel], loc: Sequence[int | str], values: Any = None
) -> tuple[list[str], list[str]]:
    """Return the keys that lead to a fault at ``loc``, and the known keys of the table that holds it.

    A pydantic location also has a part for the chosen member of a union, which is nobody's key: it is left out.
    An index into a list is ``[i]``.
    """
    keys: list[str] = []
    known: list[str] = []
    here, value = [_chosen(model, values)], values
    for part in loc:
        if len(here) > 1:  # the part says which member of the union was tried
            here = [_chosen(member, value) for member in here if str(part) in _labels(member)]
            continue
        owner = here[0] if here else None
        if isinstance(owner, type) and issubclass(owner, pydantic.BaseModel):
            known = list(owner.model_fields)
            field = owner.model_fields.get(str(part))
            here = _members(field.annotation) if field else []
        else:
            here = _items(owner, part)
        value = _item(value, part)
        keys.append(f"[{part}]" if isinstance(part, int) else str(part))
        here = [_chosen(member, value) for member in here]
    return keys, known


def _chosen(member: Any, values: Any) -> Any:
    return member.class_of(values) if isinstance(member, type) and issubclass(member, Config) else member


def _item(value: Any, part: int | str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _members(annotation: Any) -> list[Any]:
    """Return the types that an annotation admits beside None."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [] if annotation is type(None) else [annotation]


def _items(annotation: Any, part: int | str) -> list[Any]:
    """Return the types of a collection's item."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple and isinstance(part, int) and arguments[-1] is not ...:
        return _members(arguments[part]) if part < len(arguments) else []
    if origin is not None and issubclass(origin, Mapping):
        return _members(arguments[1])
    return _members(arguments[0]) if origin in (tuple, list, set, frozenset) else []


def _labels(member: Any) -> set[str]:
    """Return what a pydantic location may call this member of a union: its name, or the value that selects it."""
    if not (isinstance(member, type) and issubclass(member, pydantic.BaseModel)):
        return set()
    fixed = (value for field in member.model_fields.values() for value in _fixed(field.annotation))
    return {member.__name__, *fixed}


def _fixed(annotation: Any) -> list[str]:
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []
