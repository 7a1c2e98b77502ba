import json
import math

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="needs requirements-export.txt")
pytest.importorskip("onnxscript", reason="needs requirements-export.txt")
pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")

from nets.base import Decoded  # noqa: E402
from tests.nets.decoded import decoded_rows, packed, unpacked  # noqa: E402
from tests.tiny_detector import NAMES, OPTIONS, TinyNetwork, exported, random_pictures, tiny_detector  # noqa: E402
from utils.export.onnx import HEAD_OUTPUTS, SELECTION, SUPPRESSION, head_outputs, write_onnx  # noqa: E402
from utils.inference.base import NMSOptions  # noqa: E402
from utils.inference.onnx import OnnxDetector, graph_options, open_session  # noqa: E402
from utils.inference.postprocess import nms, top_scores  # noqa: E402
from utils.weights.metadata import check_metadata  # noqa: E402


def random_decoded(images, count, classes=4):
    """A Decoded of so many images, places and classes; its boxes overlap a lot."""
    corners = torch.rand(images, count, 2) * 100
    boxes_xyxy = torch.cat((corners, corners + 10 + 30 * torch.rand(images, count, 2)), -1)
    return unpacked(torch.cat((boxes_xyxy, 2 * torch.randn(images, count, 1 + classes)), -1))


def run_nms(decoded, options, has_nms=True):
    """What the graph makes of a Decoded: (n, 7)."""
    template = SUPPRESSION if has_nms else SELECTION
    session = open_session(
        onnx.parser.parse_model(template.format(ir_version=10, opset=18, most=3000)).SerializeToString()
    )
    given = dict(zip(HEAD_OUTPUTS, map(torch.Tensor.numpy, head_outputs(decoded, has_nms)), strict=False))
    return session.run(None, given | graph_options(options, decoded.class_logits.shape[-1]))[0]


def as_rows(results):
    """Results of nms as the graph gives them."""
    rows = [torch.column_stack((torch.full((len(r[1]),), float(i)), *r)) for i, r in enumerate(results)]
    return torch.cat(rows).numpy()


def in_order(rows):
    """Rows by image and score; those with the same score have no order of their own."""
    assert (np.lexsort((-rows[:, 5], rows[:, 0])) == np.arange(len(rows))).all()
    return rows[np.lexsort((rows[:, 1], -rows[:, 5], rows[:, 0]))]


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (60, NMSOptions(0.2, 0.5, 300)),
        (60, NMSOptions([0.1, 0.9, 0.3, 0.0], 0.3, 300)),
        (60, NMSOptions(0.0, 0.7, 7)),
        (3500, NMSOptions(0.0, 0.6, 100)),
        (1, NMSOptions(0.0, 0.5, 300)),
        (60, NMSOptions(1.0, 0.5, 300)),
    ],
)
def test_the_graph_does_nms_as_pytorch_does(count, options):
    """Prevents detections of an exported file that differ: other classes, order, limits or images."""
    decoded = random_decoded(3, count)
    expected = as_rows(nms(decoded, options))
    got = run_nms(decoded, options)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert in_order(got) == pytest.approx(in_order(expected), abs=1e-4)


def test_what_counts_is_chosen_before_the_best():
    """Prevents the loss of boxes whose class needs a low score, behind many of a class that needs a high one."""
    options = NMSOptions([0.8, 0.3], 0.5, 4)
    logits = torch.tensor([[[0.6, 0.0]] * 3200 + [[0.0, 0.4]] * 5]).logit(eps=1e-6)
    corners = torch.arange(3205.0)[:, None] * torch.tensor([100.0, 0.0])
    decoded = Decoded(torch.cat((corners, corners + 50), -1)[None], logits, None)
    for has_nms, choose in ((True, nms), (False, top_scores)):
        got = run_nms(decoded, options, has_nms)
        assert got[:, 6].tolist() == [1, 1, 1, 1]
        assert in_order(got) == pytest.approx(in_order(as_rows(choose(decoded, options))), abs=1e-4)


def test_head_outputs_literal_values():
    """Prevents logits in the place of scores, scores without objectness, and a class that is not the most probable: of
    two places with objectness 0.5 and 0.9 and class probabilities 0.75 and 0.5, 0.01 and 0.9."""
    p90, p75, p50, p01 = math.log(9), math.log(3), 0.0, -math.log(99)
    boxes_xyxy = [[[1, 2, 3, 4], [5, 6, 7, 8]]]
    decoded = decoded_rows(([1, 2, 3, 4], p50, p75, p50), ([5, 6, 7, 8], p90, p01, p90))
    boxes, best, class_ids = head_outputs(decoded, True)
    assert (boxes.tolist(), class_ids.tolist(), class_ids.dtype) == (boxes_xyxy, [[0, 1]], torch.int64)
    assert best.tolist() == [pytest.approx([0.375, 0.81])]
    boxes, scores = head_outputs(decoded, False)
    assert boxes.tolist() == boxes_xyxy
    assert scores.tolist() == [[pytest.approx([0.375, 0.25]), pytest.approx([0.009, 0.81])]]


def test_head_outputs_without_objectness():
    """Prevents a failure, or scores of another scale, for detectors that have no objectness."""
    decoded = random_decoded(2, 7)._replace(objectness=None)
    boxes_xyxy, best, class_ids = head_outputs(decoded, True)
    assert torch.equal(boxes_xyxy, decoded.boxes_xyxy)
    assert torch.equal(class_ids, decoded.class_logits.argmax(-1)) and best.shape == (2, 7)
    _, scores = head_outputs(decoded, False)
    assert torch.equal(scores, decoded.class_logits.sigmoid())
    assert torch.equal(best, scores.amax(-1))
    options = NMSOptions(0.3, 0.5, 300)
    expected = as_rows(nms(decoded, options))
    assert len(expected) > 2 and in_order(run_nms(decoded, options)) == pytest.approx(in_order(expected))


def test_the_graph_on_no_images():
    """Prevents a failure on an empty batch."""
    assert run_nms(random_decoded(0, 5), OPTIONS._replace(confidence=0.1)).shape == (0, 7)


@pytest.mark.slow
def test_any_number_of_pictures():
    """Prevents a file that is bound to the batch it was traced with, and defaults that are not the stored ones."""
    detector, path = exported()
    session = open_session(str(path))
    for count in (1, 2, 5):
        batch, _ = detector.preprocess(random_pictures(count))
        decoded = detector.model.decode(detector.forward(batch))
        images = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        (got,) = session.run(None, {"images": images})
        assert got == pytest.approx(as_rows(nms(decoded, OPTIONS)), abs=1e-3)
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
    check_metadata(path, metadata["contract"])
    assert metadata["contract"]["input_shape"] == [96, 128]
    assert metadata["contract"]["confidence"] == {"dog": 0.3}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.op_type for node in proto.graph.node if "images" in node.input] == ["Cast"]
    assert b".py" not in path.read_bytes()


@pytest.mark.slow
def test_any_size_and_every_place(tmp_path):
    """Prevents boxes of another size's cells, and scores of one class alone for programs with an NMS of their own."""
    detector, path = tiny_detector((96, 96)), tmp_path / "places.onnx"
    write_onnx(path, detector, OPTIONS, has_nms=False, dynamic_size=True, opset=20)
    assert onnx.load(path).opset_import[0].version == 20
    session = open_session(str(path))
    for shape in ((1, 3, 96, 96), (2, 3, 32, 160)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            decoded = packed(detector.model.decode(detector.model(images)))
        boxes_xyxy, scores = session.run(None, {"images": images.numpy()})
        assert boxes_xyxy == pytest.approx(decoded[..., :4].numpy(), abs=1e-3)
        assert scores == pytest.approx((decoded[..., 4:5].sigmoid() * decoded[..., 5:].sigmoid()).numpy(), abs=1e-5)


@pytest.mark.slow
def test_a_network_without_objectness(tmp_path, monkeypatch):
    """Prevents exports that work with YOLO's heads alone: the scores of all places and classes are the classes'."""
    decode = TinyNetwork.decode
    monkeypatch.setattr(TinyNetwork, "decode", lambda self, raw: decode(self, raw)._replace(objectness=None))
    monkeypatch.setattr(TinyNetwork, "has_nms", False)
    detector, path = tiny_detector(), tmp_path / "places.onnx"
    write_onnx(path, detector, OPTIONS, has_nms=False)
    batch, _ = detector.preprocess(random_pictures(2))
    boxes_xyxy, scores = open_session(str(path)).run(
        None, {"images": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))}
    )
    decoded = detector.model.decode(detector.forward(batch))
    assert boxes_xyxy == pytest.approx(decoded.boxes_xyxy.numpy(), abs=1e-3)
    assert scores == pytest.approx(decoded.class_logits.sigmoid().numpy(), abs=1e-5)


@pytest.mark.slow
def test_the_size_of_a_dynamic_file(tmp_path):
    """Prevents an input_shape that is passed over in silence, and a file that states one size and takes any."""
    detector = tiny_detector()
    write_onnx(tmp_path / "any.onnx", detector, OPTIONS, dynamic_size=True)
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
        write_onnx(tmp_path / "a.onnx", None, OPTIONS, opset=11)
    monkeypatch.setattr(TinyNetwork, "decode", lambda self, raw: Decoded(*3 * (raw[0][: int(raw[0].sum())],)))
    with pytest.raises(ValueError, match=r"cannot export this network \(.+\): try export_dynamic_size = False"):
        write_onnx(tmp_path / "a.onnx", tiny_detector(), OPTIONS)
    assert list(tmp_path.iterdir()) == []
