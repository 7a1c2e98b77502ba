import io
import json

import pytest

from utils.data.formats import json_stream
from utils.data.formats.json_stream import JsonStream


def read(text):
    """All of a list or dict as JsonStream gives it, a dict as pairs."""
    stream, found = JsonStream(io.StringIO(text)), []
    if stream.peek() == "[":
        return [stream.value() for _ in stream.items("[", "]")]
    for _ in stream.items("{", "}"):
        key = stream.value()
        stream.take(":")
        found.append((key, stream.value()))
    return found


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_same_as_json_for_any_chunk(monkeypatch, chunk):
    """Prevents values from being cut or read twice where a piece of the file ends."""
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    values = [12345, -1.5e-3, "a\\n\\u56fe 图 ]},{[", {"a": [1, {"b": []}]}, [], {}, None, True, 7]
    assert read(json.dumps(values)) == values
    assert read(json.dumps(values, indent=3)) == values
    assert read(" { } ") == [] and read("[]") == []
    assert read('{"a": 12 , "b":[1]}') == [("a", 12), ("b", [1])]


@pytest.mark.parametrize("chunk", [5, 200, 1000])
def test_outlines_are_emptied(monkeypatch, chunk):
    """Prevents outlines from filling the memory, and boxes, names and short lists from being emptied with them."""
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    box = [0.12345678901234567, 1234.1234567890123, 123.12345678901234, 1234.1234567890123]
    item = {"segmentation": [[1.5, 2.25] * 40, [3, 4]], "bbox": box, "name": f"[{'long ' * 40}]"}
    assert read(json.dumps([item])) == [item | {"segmentation": [[], [3, 4]]}]
    assert read(json.dumps([item], indent=30)) == [item | {"segmentation": [[], [3, 4]]}]


def test_boxes_with_numbers_too_many_are_shown():
    """Prevents `has the bbox []` for a box that has seven numbers."""
    assert read("[[1, 2, 3, 4, 5, 6, 7]]") == [[1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("text", ["", "[", "[1", "[1 2]", "[1,]", "{1}", '{"a" 1}', '{"a": }', '["\n"]'])
def test_what_is_not_json(text):
    """Prevents half a file from being taken for all of it."""
    with pytest.raises(ValueError, match=r"expected|Expecting|Invalid|Illegal"):
        read(text)
