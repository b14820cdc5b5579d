"""JSON from frozen dataclasses and back, and the JSON Schema of it, all told from their annotations.

`Annotated[T, "text"]` describes a field, `Annotated[T, Bounds(minimum=1)]` limits it. A field with the default None is
absent where it is None; any other field is always there. A `Row` is an array of its fields.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


@dataclass(frozen=True)
class Bounds:
    """What JSON Schema knows by the same names in camel case."""

    pattern: str | None = None
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    min_items: int | None = None
    max_items: int | None = None

    def keywords(self) -> dict[str, Any]:
        """The limits as JSON Schema."""
        given = ((field.name.split("_"), getattr(self, field.name)) for field in fields(self))
        return {"".join([first, *map(str.title, rest)]): value for (first, *rest), value in given if value is not None}


@dataclass(frozen=True)
class Row:
    """A dataclass with fields of one type, which JSON holds as an array."""

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """The JSON Schema of a dataclass; other dataclasses in it are referred to by name."""
    definitions: dict[str, Any] = {}
    content = _schema(kind, definitions)
    main = definitions.pop(content["$ref"].rpartition("/")[2])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | main | {"$defs": dict(sorted(definitions.items()))}


def encode(value: Any) -> Any:
    """A dataclass, or what its fields hold, as JSON."""
    if isinstance(value, Row):
        return [encode(entry) for entry in value]
    if is_dataclass(value):
        entries = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: encode(entry) for field, entry in entries if entry is not None or field.default is not None}
    if isinstance(value, Mapping):
        return {name: encode(entry) for name, entry in value.items()}
    return [encode(entry) for entry in value] if isinstance(value, list | tuple) else value


def decode(kind: type[T], content: Any) -> T:
    """A dataclass of JSON that its schema accepts: numbers stay as they are, arrays become tuples."""
    return cast(T, _decode(kind, content))


def _decode(kind: Any, content: Any) -> Any:
    kind, _ = _annotations(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        if issubclass(kind, Row):
            return kind(*(_decode(hint, entry) for hint, entry in zip(hints.values(), content, strict=True)))
        return kind(**{name: _decode(hint, content[name]) for name, hint in hints.items() if name in content})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if content is None else _decode(arguments[0], content)
    if origin is tuple:
        return tuple(_decode(arguments[0], entry) for entry in content)
    if origin is dict:
        return {name: _decode(arguments[1], entry) for name, entry in content.items()}
    return content


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kind, keywords = _annotations(kind)
    return _plain_schema(kind, definitions) | keywords


def _plain_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if isinstance(kind, type) and is_dataclass(kind):
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}  # it keeps its place
            definitions[name] = _dataclass_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)} if len(arguments) > 1 else {"const": arguments[0]}
    if origin in (Union, types.UnionType):
        options = [_schema(argument, definitions) for argument in arguments]
        if all(option.get("type") in _SCALARS.values() for option in options):
            return {name: entry for option in options for name, entry in option.items()} | {
                "type": [option["type"] for option in options]
            }
        return {"anyOf": options}
    if origin is tuple:
        count = {} if arguments[1] is ... else {"minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", "items": _schema(arguments[0], definitions), **count}
    assert origin is dict, kind
    entries = {} if arguments[1] is Any else {"additionalProperties": _schema(arguments[1], definitions)}
    return {"type": "object", **entries}


def _dataclass_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    required = [field.name for field in fields(kind) if field.default is not None]
    properties = {}
    for name, hint in _hints(kind).items():
        annotated, keywords = _annotations(hint)
        present = annotated if name in required else get_args(annotated)[0]  # T of T | None
        properties[name] = _schema(present, definitions) | keywords
    if issubclass(kind, Row):
        items = next(iter(properties.values()))
        return {"type": "array", "items": items, "minItems": len(properties), "maxItems": len(properties)}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _annotations(kind: Any) -> tuple[Any, dict[str, Any]]:
    """A type without its annotations, and these as keywords of JSON Schema."""
    if get_origin(kind) is not Annotated:
        return kind, {}
    kind, *notes = get_args(kind)
    keywords: dict[str, Any] = {}
    for note in notes:
        keywords |= note.keywords() if isinstance(note, Bounds) else {"description": note}
    return kind, keywords


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
