"""JSON and YAML that somebody else wrote: size and depth are bounded before a parser sees the text.

Parsers go down a level for each bracket: C++ ones end the process at 100,000 brackets, Python's raises RecursionError, and a
YAML file of ten lines of aliases stands for a billion values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from yaml import Node

DEEPEST = 64
"""Levels of lists and mappings, one inside the other."""
LARGEST_BYTES = 1 << 28
"""Of a text that is read whole."""
_LARGEST_YAML_BYTES = 1 << 22
_MOST_YAML_VALUES = 100_000
"""After aliases are written out."""
_OPEN = (0, 0)
_CHUNK_BYTES = 1 << 22
_QUOTE, _NEWLINE = ord('"'), ord("\n")
_STEP = np.zeros(256, np.int64)
_STEP[[ord("["), ord("{")]], _STEP[[ord("]"), ord("}")]] = 1, -1
_IS_MARK = _STEP != 0
_IS_MARK[[_QUOTE, _NEWLINE]] = True


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parse one JSON value.

    Raises:
        ValueError: it is no JSON, has more than ``LARGEST_BYTES`` or more than ``DEEPEST`` levels, or, with ``unique_keys``,
            a key stands twice in one object.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    _require_small(len(data), LARGEST_BYTES)
    if data.count(b"[") + data.count(b"{") > DEEPEST:
        _require_shallow([data])
    return json.loads(text, object_pairs_hook=_without_repeats if unique_keys else None)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: as :func:`parse_json`.
        OSError: it cannot be read.
    """
    _require_small(path.stat().st_size, LARGEST_BYTES)
    return parse_json(path.read_bytes())


def check_json_file(path: Path, largest_bytes: int | None = LARGEST_BYTES) -> None:
    """Check a file of JSON, or of JSON lines, that another library is going to parse; it need not fit in memory.

    Raises:
        ValueError: it has more than ``largest_bytes``, or more than ``DEEPEST`` levels.
        OSError: it cannot be read.
    """
    if largest_bytes is not None:
        _require_small(path.stat().st_size, largest_bytes)
    with path.open("rb") as file:
        _require_shallow(iter(lambda: file.read(_CHUNK_BYTES), b""))


def parse_yaml(text: str) -> Any:
    """Parse YAML to plain values; a key that stands twice in one mapping is refused.

    Raises:
        ValueError: it has too many bytes, levels or values (aliases written out), or a value that is none, such as 2001-99-99.
        yaml.YAMLError: it is no YAML, or repeats a key.
    """
    import yaml

    _require_small(len(text.encode("utf-8", "surrogatepass")), _LARGEST_YAML_BYTES)
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # it keeps a stack of its own: however deep, it goes on
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(_too_deep())
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        value_count, depth = _extent(node, {})
        if value_count > _MOST_YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_YAML_VALUES:,} values: write it without them")
        if depth > DEEPEST + 1:
            raise ValueError(_too_deep())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _extent(node: Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values ``node`` stands for and how many levels it has; refuse keys that stand twice.

    An alias comes after what it stands for, which is known by then: this goes no deeper than the text does.
    """
    import yaml

    if id(node) in known:
        if known[id(node)] == _OPEN:
            raise ValueError("an alias stands for what it is a part of: write it without")
        return known[id(node)]
    known[id(node)] = _OPEN
    inner: list[Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        _require_distinct_keys(node)
        inner = [part for pair in node.value for part in pair]
    extents = [_extent(part, known) for part in inner]
    known[id(node)] = 1 + sum(count for count, _ in extents), 1 + max((depth for _, depth in extents), default=0)
    return known[id(node)]


def _require_distinct_keys(node: Any) -> None:
    import yaml

    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands there twice", key.start_mark)
        seen.add((key.tag, str(key.value)))


def _require_small(size_bytes: int, largest_bytes: int) -> None:
    if size_bytes > largest_bytes:
        raise ValueError(f"it has {size_bytes:,} bytes, expected {largest_bytes:,} at most")


def _require_shallow(chunks: Iterable[bytes]) -> None:
    if any(depth > DEEPEST for depth in _depths(chunks)):
        raise ValueError(_too_deep())


def _depths(chunks: Iterable[bytes]) -> Iterator[int]:
    """Yield for each chunk the largest number of brackets that are open at once, those inside of strings not counted.

    No string goes on over a line's end, so that one that is never closed hides nothing but the rest of its own line.
    """
    depth, inside, held = 0, 0, b""
    for chunk in chunks:
        text = (held + chunk).replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        held = b"\\" if text.endswith(b"\\") else b""
        codes = np.frombuffer(text, np.uint8)  # a backslash at the end is no mark
        codes = codes[_IS_MARK[codes]]
        if not len(codes):
            continue
        quotes = np.cumsum(codes == _QUOTE) + inside
        before_line = np.maximum.accumulate(np.where(codes == _NEWLINE, quotes, 0))
        in_string = (quotes - before_line) & 1
        levels = depth + np.cumsum(np.where(in_string, 0, _STEP[codes]))
        levels -= np.minimum(np.minimum.accumulate(levels), 0)
        depth, inside = int(levels[-1]), int(in_string[-1])
        yield int(levels.max())


def _too_deep() -> str:
    return f"it nests more than {DEEPEST} levels deep: write it flatter"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key stands there twice")
    return record
