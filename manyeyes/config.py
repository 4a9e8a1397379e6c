"""Base of all configs: frozen pydantic models that refuse unknown fields, read from YAML and hashed by content."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.errors import ConfigError

LARGEST_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""What every library that draws at random takes as a seed."""


class Config(BaseModel):
    """A declaration. Equal configs have equal fingerprints, whatever the order of their fields in a file."""

    listed: ClassVar[str] = ""
    """Where a user finds all fields, for the error about an unknown one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the config's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self, compact: bool = False) -> str:
        """YAML that `from_yaml` reads back; ``compact`` leaves out fields at their defaults, ``kind`` excepted."""
        values = _compact(self) if compact else self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def parse(cls, values: Any, source: str = "config") -> Self:
        """Validate plain values; ``source`` names their origin in the error."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe(error, cls.model_fields, cls.listed)}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file and apply ``dotted.field=value`` overrides.

        Raises: ConfigError naming the file, the field and what is allowed.
        """
        return cls.parse(override(read_yaml(path), overrides), str(path))


def _compact(value: Any) -> Any:
    if isinstance(value, Config):
        fields = type(value).model_fields
        return {
            name: _compact(getattr(value, name))
            for name, field in fields.items()
            if name == "kind" or field.is_required() or getattr(value, name) != field.get_default()
        }
    if isinstance(value, tuple | list):
        return [_compact(item) for item in value]
    return {key: _compact(item) for key, item in value.items()} if isinstance(value, dict) else value


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which no key of a mapping stands twice: of two thresholds one would be ignored unseen."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:  # as written: what is merged into it comes later
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the field {key.value!r} stands twice, again"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def _loaded(text: str) -> Any:
    return yaml.load(text, _UniqueKeys)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: ConfigError if it cannot be read or is no mapping."""
    try:
        values = _loaded(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no UTF-8 text; expected a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also dates and numbers that Python cannot hold
        raise ConfigError(f"{path}: is no valid YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of fields, found {type(values).__name__}")
    return values


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``values`` with each ``a.b.0.c=value`` set; the value is read as YAML.

    Entries of lists go by their number, their name or, where they have none, their kind: ``members.lite0.fuse=false``.
    """
    changed = copy.deepcopy(values)
    for item in overrides:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {item!r}: expected field=value, such as fusion.components=128")
        try:
            _set(changed, path.split("."), _loaded(text))
        except (yaml.YAMLError, ValueError, IndexError, TypeError) as error:
            raise ConfigError(f"--set {item!r}: {' '.join(str(error).split())}") from None
    return changed


def _set(node: Any, keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            index = _place(node, key)
            if index is None:
                allowed = f"a number from 0 to {len(node) - 1}" if node else "nothing, it is empty"
                names = [name for name in map(_name, node) if name]
                allowed += f" or one of {', '.join(names)}" if names else ""
                raise IndexError(f"{'.'.join(keys[:depth])} is a list: expected {allowed} after it, got {key!r}")
            if last:
                node[index] = value
            else:
                node = node[index]
        elif isinstance(node, dict):
            if last:
                # A new kind does not inherit the old kind's fields.
                if key == "kind" and node.get("kind") != value:
                    node.clear()
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            raise ValueError(f"{'.'.join(keys[:depth])} is a value, it has no field {key!r}")


def _place(items: list[Any], key: str) -> int | None:
    """Where in a list a number or the name of an entry (its kind, where it has no name) points, if it does."""
    if key.isdecimal():
        return int(key) if int(key) < len(items) else None
    found = [index for index, item in enumerate(items) if _name(item) == key]
    return found[0] if len(found) == 1 else None


def _name(item: Any) -> str | None:
    return item.get("name", item.get("kind")) if isinstance(item, dict) else None


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over them, mapping by mapping; lists are replaced, and so is another kind."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def describe(error: ValidationError, fields: Iterable[str] = (), advice: str = "") -> str:
    """Every problem of a pydantic error in one line: field, what came, what is allowed.

    ``fields`` are the names at the top level; ``advice`` says where all names stand.
    """
    problems = []
    items = error.errors()
    places = [item["loc"] for item in items]
    for item in items:
        depth = len(item["loc"])
        if item["type"] == "too_short" and any(len(at) > depth and at[:depth] == item["loc"] for at in places):
            continue  # a list lacks what is wrong in it
        field = ".".join(str(part) for part in item["loc"]) or "top level"
        kind, context = item["type"], item.get("ctx", {})
        if kind == "extra_forbidden":
            known = advice or (f"known here: {', '.join(fields)}" if fields and depth == 1 else "")
            problems.append(f"{field}: unknown field ({'misspelt?' if not known else f'misspelt? {known}'})")
        elif kind == "union_tag_invalid":
            problems.append(f"{field}: unknown kind {context.get('tag')!r}; allowed: {context.get('expected_tags')}")
        elif kind == "union_tag_not_found":
            problems.append(f"{field}: the field 'kind' is missing")
        elif kind == "missing":
            problems.append(f"{field}: this field is required")
        elif kind == "value_error":
            problems.append(f"{field}: {context.get('error')}")
        else:
            problems.append(f"{field}: {item['msg']}, got {item['input']!r}"[:300])
    return "; ".join(problems)
