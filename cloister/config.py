"""Base class of every configuration: frozen, typed, unknown keys refused, printable back."""

import difflib
import typing
from typing import Any, Self

import pydantic

from cloister.errors import ConfigError


class Config(pydantic.BaseModel):
    """A frozen, validated group of settings.

    Values are never coerced silently across types (``"3"`` is not a number); integers are accepted for floats.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def parse(cls, values: dict[str, Any], source: str) -> Self:
        """Return the validated configuration.

        Raises :class:`ConfigError` that names ``source``, the key, what was expected and the nearest known key.
        """
        try:
            return cls.model_validate(_frozen(values))
        except pydantic.ValidationError as error:
            raise ConfigError(describe(cls, error, source)) from None


def _frozen(value: Any) -> Any:
    """TOML and JSON have lists where frozen settings have tuples."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def describe(model: type[pydantic.BaseModel], error: pydantic.ValidationError, source: str) -> str:
    """Return one line per invalid key of ``error``: where, what was expected, what was found, the nearest key."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = known_keys(model, item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
            lines.append(f"{source}: unknown key {key!r}; {hint}")
        else:
            lines.append(f"{source}: {key or 'value'}: {item['msg']} (found {item['input']!r})")
    return "\n".join(lines)


def known_keys(model: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the model that lies at ``path`` inside ``model``."""
    current = model
    for part in path:
        field = current.model_fields.get(str(part))
        inner = next((it for it in _alternatives(field.annotation if field else None) if _is_model(it)), None)
        if inner is None:
            break
        current = inner
    return list(current.model_fields)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union such as ``Clip | None``, or the one type that it is."""
    return typing.get_args(annotation) or (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
