import json

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="needs requirements-export.txt")
pytest.importorskip("onnxscript", reason="needs requirements-export.txt")
pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")

from tests.tiny_detector import NAMES, THRESHOLDS, TinyNetwork, exported, random_pictures, tiny_detector  # noqa: E402
from utils.export.onnx import SUPPRESSION, cells, write_onnx  # noqa: E402
from utils.inference.base import Thresholds  # noqa: E402
from utils.inference.onnx import OnnxDetector, graph_options, open_session  # noqa: E402
from utils.inference.postprocess import suppress  # noqa: E402
from utils.weights.metadata import check_contract  # noqa: E402


def random_cells(images, count, classes=4):
    """Decoded predictions (images, count, 5 + classes) that overlap a lot."""
    corners = torch.rand(images, count, 2) * 100
    boxes_xyxy = torch.cat((corners, corners + 10 + 30 * torch.rand(images, count, 2)), -1)
    return torch.cat((boxes_xyxy, 2 * torch.randn(images, count, 1 + classes)), -1)


def run_suppression(decoded, thresholds):
    """What the graph makes of decoded predictions: (n, 7)."""
    session = open_session(
        onnx.parser.parse_model(SUPPRESSION.format(ir_version=10, opset=18, most=3000)).SerializeToString()
    )
    given = dict(zip(("boxes_xyxy", "scores", "class_ids"), map(torch.Tensor.numpy, cells(decoded, True)), strict=True))
    return session.run(None, given | graph_options(thresholds, decoded.shape[-1] - 5))[0]


def as_rows(results):
    """Results of suppress as the graph gives them."""
    rows = [torch.column_stack((torch.full((len(r[1]),), float(i)), *r)) for i, r in enumerate(results)]
    return torch.cat(rows).numpy()


def in_order(rows):
    """Rows by image and score; those with the same score have no order of their own."""
    assert (np.lexsort((-rows[:, 5], rows[:, 0])) == np.arange(len(rows))).all()
    return rows[np.lexsort((rows[:, 1], -rows[:, 5], rows[:, 0]))]


@pytest.mark.parametrize(
    ("count", "thresholds"),
    [
        (60, Thresholds(0.2, 0.5, 300)),
        (60, Thresholds([0.1, 0.9, 0.3, 0.0], 0.3, 300)),
        (60, Thresholds(0.0, 0.7, 7)),
        (3500, Thresholds(0.0, 0.6, 100)),
        (1, Thresholds(0.0, 0.5, 300)),
        (60, Thresholds(1.0, 0.5, 300)),
    ],
)
def test_the_graph_suppresses_as_pytorch_does(count, thresholds):
    """Prevents detections of an exported file that differ: other classes, order, limits or images."""
    decoded = random_cells(3, count)
    expected = as_rows(suppress(decoded, *thresholds))
    got = run_suppression(decoded, thresholds)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert in_order(got) == pytest.approx(in_order(expected), abs=1e-4)


def test_the_graph_on_no_images():
    """Prevents a failure on an empty batch."""
    assert run_suppression(random_cells(0, 5), THRESHOLDS._replace(confidence=0.1)).shape == (0, 7)


@pytest.mark.slow
def test_any_number_of_pictures():
    """Prevents a file that is bound to the batch it was traced with, and defaults that are not the stored ones."""
    detector, path = exported()
    session = open_session(str(path))
    for count in (1, 2, 5):
        batch, _ = detector.prepare(random_pictures(count))
        decoded = detector.model.decode(detector.run(batch))
        images = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        (got,) = session.run(None, {"images": images})
        assert got == pytest.approx(as_rows(suppress(decoded, *THRESHOLDS)), abs=1e-3)
        assert len(got) >= count
        (few,) = session.run(None, {"images": images, "max_boxes": np.array([1])})
        assert few[:, 0].tolist() == list(range(count))


@pytest.mark.slow
def test_the_file_says_how_it_is_used():
    """Prevents files that depend on a text file of class names beside them, or tell where they were made."""
    _, path = exported()
    proto = onnx.load(path)
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert metadata["class_names"] == NAMES
    assert metadata["thresholds"] == {"confidence": [0.2, 0.3, 0.25], "nms_iou": 0.5, "max_boxes": 5}
    check_contract(path, metadata["contract"])
    assert metadata["contract"]["input_shape"] == [96, 128]
    assert metadata["contract"]["confidence"] == {"dog": 0.3}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.op_type for node in proto.graph.node if "images" in node.input] == ["Cast"]
    assert b".py" not in path.read_bytes()


@pytest.mark.slow
def test_any_size_and_every_cell(tmp_path):
    """Prevents boxes of another size's cells, and scores of one class alone for programs that suppress themselves."""
    detector, path = tiny_detector((96, 96)), tmp_path / "cells.onnx"
    write_onnx(path, detector, THRESHOLDS, has_nms=False, dynamic_size=True, opset=20)
    assert onnx.load(path).opset_import[0].version == 20
    session = open_session(str(path))
    for shape in ((1, 3, 96, 96), (2, 3, 32, 160)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            decoded = detector.model.decode(detector.model(images))
        boxes_xyxy, scores = session.run(None, {"images": images.numpy()})
        assert boxes_xyxy == pytest.approx(decoded[..., :4].numpy(), abs=1e-3)
        assert scores == pytest.approx((decoded[..., 4:5].sigmoid() * decoded[..., 5:].sigmoid()).numpy(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.slow
def test_the_size_of_a_dynamic_file(tmp_path):
    """Prevents an input_shape that is passed over in silence, and a file that states one size and takes any."""
    detector = tiny_detector()
    write_onnx(tmp_path / "any.onnx", detector, THRESHOLDS, dynamic_size=True)
    assert OnnxDetector(tmp_path / "any.onnx").input_shape == (96, 128)
    deployed = OnnxDetector(tmp_path / "any.onnx", input_shape=[64, 160])
    detector.input_shape = (64, 160)
    picture = random_pictures(1)[0]
    assert deployed(picture, 0.1).boxes_xyxy == pytest.approx(detector(picture, 0.1).boxes_xyxy, abs=1e-2)
    with pytest.raises(ValueError, match=r"^input_shape is \[60, 60\]; expected \[height, width\]"):
        OnnxDetector(tmp_path / "any.onnx", input_shape=[60, 60])
    proto = onnx.load(tmp_path / "any.onnx")
    (entry,) = [entry for entry in proto.metadata_props if entry.key == "thresholds"]
    entry.value = "{}"
    onnx.save(proto, tmp_path / "any.onnx")
    with pytest.raises(ValueError, match=r"does not say how it is used \(thresholds\)"):
        OnnxDetector(tmp_path / "any.onnx")


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    """Prevents torch's pages of trace for an opset it does not know, or a network it cannot follow."""
    with pytest.raises(ValueError, match=r"opset is 11; expected 18 to 23, which torch can write\."):
        write_onnx(tmp_path / "a.onnx", None, THRESHOLDS, opset=11)
    monkeypatch.setattr(TinyNetwork, "decode", lambda self, raw: raw[0][: int(raw[0].sum())])
    with pytest.raises(ValueError, match=r"cannot export this network \(.+\): try export_dynamic_size = False"):
        write_onnx(tmp_path / "a.onnx", tiny_detector(), THRESHOLDS)
    assert list(tmp_path.iterdir()) == []
