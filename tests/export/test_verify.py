import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs requirements-export.txt")
pytest.importorskip("onnxscript", reason="needs requirements-export.txt")
pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")

from tests.tiny_detector import exported, random_pictures  # noqa: E402
from utils.data.annotations import read_annotations  # noqa: E402
from utils.evaluation.evaluate import ground_truth, join_detections  # noqa: E402
from utils.evaluation.scores import score_detections  # noqa: E402
from utils.export import verify  # noqa: E402
from utils.export.onnx import write_onnx  # noqa: E402
from utils.image.codec import write_image  # noqa: E402
from utils.inference.base import Boxes, NMSOptions  # noqa: E402
from utils.inference.detector import Detector  # noqa: E402
from utils.inference.onnx import OnnxDetector  # noqa: E402


@pytest.fixture
def pictures(tmp_path):
    """A folder of seven pictures and a text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.txt").write_text("no picture")
    for number, picture in enumerate(random_pictures(7)):
        write_image(str(folder / f"{number}.png"), picture)
    return folder


def settings_of(pictures, target):
    names = {"onnx_path": str(target), "model_path": "a.pth", "export_pictures": str(pictures), "confidence": 0.4}
    return SimpleNamespace(**names, nms_iou=0.6, max_boxes=300, export_nms=True, export_dynamic_size=False, opset=18)


@pytest.mark.slow
def test_a_file_that_agrees_is_kept(pictures, tmp_path, monkeypatch, capsys):
    """Prevents exports that nobody compared, and defaults of the file that are not those of the constants."""
    detector, path = exported()

    def write(target, detector, nms_options, *options):
        assert nms_options == NMSOptions([0.4] * 3, 0.6, 300) and options == (True, False, 18)
        target.write_bytes(path.read_bytes())

    monkeypatch.setattr(verify, "write_onnx", write)
    verify.export(detector, settings_of(pictures, tmp_path / "new" / "tiny.onnx"))
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["tiny.onnx", "tiny.onnx.json"]
    report = json.loads((tmp_path / "new/tiny.onnx.json").read_text())
    found = report["detections"]
    assert report["agrees"] and report["score"] < 1e-4 and report["pixels"] < 1e-2 and len(report["pictures"]) == 7
    assert found["pytorch"] == found["onnx"] == found["both"] > 20
    assert f"{found['both']} the same" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["score", "pixels", "detections"])
def test_a_file_that_differs_is_deleted(pictures, tmp_path, monkeypatch, broken):
    """Prevents a wrong file from being used: of other weights, other boxes, or with another NMS."""
    detector, path = exported()
    proto = onnx.load(path)
    for node in proto.graph.node:
        if broken == "score" and node.op_type == "Sigmoid":
            node.op_type = "HardSigmoid"
        if broken == "pixels" and node.op_type == "Tanh":
            node.op_type = "Identity"
        if broken == "detections" and node.op_type == "NonMaxSuppression":
            node.input[3] = ""  # no limit of overlap, which then is 0
    target = tmp_path / "tiny.onnx"
    target.write_bytes(path.read_bytes())
    monkeypatch.setattr(verify, "write_onnx", lambda path, *_: onnx.save(proto, path))
    with pytest.raises(ValueError, match=r"tiny.onnx is deleted: its results differ from PyTorch's by more than"):
        verify.export(detector, settings_of(pictures, target))
    report = json.loads((tmp_path / "tiny.onnx.json").read_text())
    assert not report["agrees"] and sorted(entry.name for entry in tmp_path.iterdir()) == ["pictures", "tiny.onnx.json"]
    wrong = {"score": report["score"] > 1e-3, "pixels": report["pixels"] > 0.5}
    assert wrong == {"score": broken == "score", "pixels": broken == "pixels"}
    found = report["detections"]
    assert broken != "detections" or max(found["pytorch"], found["onnx"]) > 1.5 * found["both"] > 0


@pytest.mark.slow
def test_equal_scores_are_no_difference(pictures, tmp_path):
    """Prevents a failed export of a network that gives many places the same score, whose order is then by chance."""
    detector, path = exported()
    detector, proto = copy.deepcopy(detector), onnx.load(path)
    for value in proto.graph.initializer:
        if value.name.endswith("conv.weight"):
            value.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(value), value.name))
    detector.model.conv.weight.data.normal_(0, 1e-8)
    onnx.save(proto, tmp_path / "equal.onnx")
    report = verify.compare(tmp_path / "equal.onnx", detector, dict(enumerate(random_pictures(7))))
    assert report["agrees"], report


def test_where_it_may_be_written(pictures, tmp_path):
    """Prevents an export over the weights themselves."""
    (tmp_path / "a.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"onnx_path is '.*a.pth'; expected a name that ends in .onnx"):
        verify.export(None, settings_of(pictures, tmp_path / "a.pth"))
    assert (tmp_path / "a.pth").read_bytes() == b"weights"


def test_the_pictures_to_compare_on(pictures, tmp_path):
    """Prevents a comparison on nothing, or on the thousands of pictures of a large folder."""
    assert [path[-5:] for path in verify.find_pictures(str(pictures))] == [f"{number}.png" for number in range(7)]
    listed = tmp_path / "val.txt"
    listed.write_text("".join(f"{pictures / '3.png'} 1,1,{10 + number},9,0\n" for number in range(100)))
    assert verify.find_pictures(str(listed)) == [str(pictures / "3.png")] * 16
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"export_pictures is '.*empty', where no pictures are"):
        verify.find_pictures(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"export_pictures is 'nowhere', and there is no such file or folder"):
        verify.find_pictures("nowhere")
    with pytest.raises(ValueError, match=r"^pictures is '.*none\.txt'; expected a folder of pictures, or a list"):
        (tmp_path / "none.txt").write_text("")
        verify.find_pictures(str(tmp_path / "none.txt"), "pictures")


def test_the_words_of_a_report():
    """Prevents a report that says nothing about how many detections differ, and one on detections of a file that holds
    no NMS."""
    report = {"score": 1e-6, "pixels": 1e-3, "pictures": ["a"], "detections": {"pytorch": 9, "onnx": 10, "both": 8}}
    report["other_queries"] = 0
    assert verify.report_words(report).splitlines() == [
        "PyTorch and ONNX Runtime on 1 picture: largest difference of a score 1.0e-06 (bound 0.001), of a box 1.0e-03 "
        "pixels (bound 0.5)",
        "detections from a score of 0.05 on: 9 of PyTorch, 10 of ONNX, 8 the same (bound 2% others, or one)",
    ]
    assert len(verify.report_words(report | {"detections": None}).splitlines()) == 1
    assert verify.report_words(report | {"other_queries": 2}).splitlines()[1] == (
        "on 2 of them the two chose other queries, whose scores differ in the last digit: these are left out"
    )


def test_queries_are_compared_by_their_tokens():
    """Prevents a correct file from being deleted where two tokens of equal scores change places, or the last one is
    another."""
    tokens, others = np.array([[5, 2, 9], [1, 2, 3]]), np.array([[9, 5, 2], [1, 2, 4]])
    (boxes,), is_same = verify.in_order_of(tokens, others, [np.arange(24.0).reshape(2, 3, 4)])
    assert boxes[0, :, 0].tolist() == [4, 8, 0] and is_same.tolist() == [True, False]


@pytest.mark.slow
def test_the_exported_nano_scores_as_pytorch(real_data, tmp_path):
    """Prevents losses of accuracy that single boxes do not show: the COCO AP of both is the same."""
    names = [f"class {number}" for number in range(80)]
    detector = Detector(real_data / "weights/yolox_nano_coco.pth", input_shape=(416, 416))
    path = tmp_path / "nano.onnx"
    write_onnx(path, detector, NMSOptions(0.5, 0.5, 300))
    deployed = OnnxDetector(path)
    annotation_path = real_data / "data/coco_tiny/annotations/instances_val2017.json"
    annotations, _ = read_annotations(str(annotation_path), deployed.class_names)
    paths = [annotations.path(index) for index in range(len(annotations))]
    aps = []
    for either in (detector, deployed):
        found = either(paths, confidence=0.001, nms_iou=0.65, max_boxes=1000)
        detections = join_detections([(index, Boxes(*item[:3])) for index, item in enumerate(found)])
        aps.append(score_detections(ground_truth(annotations), detections, names, len(annotations), 0.5)["AP"])
    assert aps[0] == pytest.approx(0.309, abs=0.003)
    assert aps[1] == pytest.approx(aps[0], abs=0.002)
