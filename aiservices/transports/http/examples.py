"""Make an example value for a JSON schema, so that documents and forms start with one that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def example(schema: Schema, components: Mapping[str, Schema]) -> Any:
    """Return a value that fits the schema: its own example or default where it has one, else a small one.

    Args:
        schema: as msgspec writes it.
        components: the schemas that ``$ref`` may name.
    """
    if "$ref" in schema:
        return example(components[schema["$ref"].rpartition("/")[2]], components)
    for one in ("default", "const"):
        if one in schema and not schema.get("examples"):
            return schema[one]
    for several in ("examples", "enum"):
        if schema.get(several):
            return schema[several][0]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], components)
    return _of_type(schema, components)


def _is_shown(name: str, schema: Schema) -> bool:
    """Whether a field is required, or one that an output usually has: without a default, but with an example."""
    field = schema["properties"][name]
    return name in schema.get("required", ()) or ("default" not in field and "examples" in field)


def _of_type(schema: Schema, components: Mapping[str, Schema]) -> Any:
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            names = [name for name in properties if _is_shown(name, schema)]
            # Where nothing is required, one field shows what a value looks like: an input takes one of several.
            return {name: example(properties[name], components) for name in names or list(properties)[:1]}
        case "array":
            return [example(schema.get("items", {}), components)] * max(1, schema.get("minItems", 1))
        case "string":
            return ("text" * schema.get("minLength", 1))[: schema.get("maxLength", 4) or None]
        case "integer" | "number":
            return schema.get("minimum", schema.get("maximum", 1))
        case "boolean":
            return False
    return None
