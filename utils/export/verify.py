"""Mode 'export_onnx': write the file, run it beside PyTorch on pictures, and keep it only where both agree."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import one_hot

from utils.data.annotations import read_source
from utils.export.onnx import CELLS, cells, onnx, write_onnx
from utils.inference.base import MAX_BOXES, NMS_IOU, Thresholds, open_picture
from utils.inference.onnx import DETECTIONS, graph_options, onnx_path_of, open_session, packages
from utils.inference.postprocess import suppress
from utils.io.files import IMAGE_SUFFIXES, files_below

# An exported file that differs more than this from PyTorch is deleted.
MOST_SCORE, MOST_PIXELS = 1e-3, 0.5

# The two are compared on at most so many pictures: the first alone, the others in batches.
MOST_PICTURES, BATCH = 16, 5

# Detections are compared from this score on: low, so that suppression has something to do.
LOWEST_SCORE = 0.05

# Boxes at the limit of overlap may fall the other way: so large a share of the detections, or one.
MOST_LOST = 0.02


def export(detector, settings):
    """Do what predict.py's constants say: the .onnx, and beside it a report, .onnx.json, which is printed too.

    detector: on the CPU, where PyTorch computes as exactly as ONNX Runtime, without test-time augmentation and as it
    was trained. Raises ValueError where the file differs from PyTorch's, and then leaves nothing but the report, also
    of an older file; and as find_pictures, open_picture and write_onnx do.
    """
    target = onnx_path_of(settings)
    if target.suffix != ".onnx":
        raise ValueError(f"onnx_path is {str(target)!r}; expected a name that ends in .onnx.")
    pictures = {path: open_picture(path) for path in find_pictures(settings.export_pictures)}
    thresholds = detector.thresholds_of(settings.confidence, settings.nms_iou)
    temporary = Path(f"{target}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    print("exporting, which takes a minute for large networks ...")
    try:
        write_onnx(temporary, detector, thresholds, settings.export_nms, settings.export_dynamic_size, settings.opset)
        report = compare(temporary, detector, pictures)
        Path(f"{target}.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        print(report_words(report))
        if not report["agrees"]:
            target.unlink(missing_ok=True)
            raise ValueError(
                f"{target} is deleted: its results differ from PyTorch's by more than {MOST_SCORE:g} in scores, "
                f"{MOST_PIXELS:g} pixels or {MOST_LOST:.0%} of the detections, see {target}.json; try another "
                "opset, or other versions of onnx and onnxruntime."
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"saved {target} ({target.stat().st_size / 2**20:.1f} MiB), report in {target}.json")


def find_pictures(place, constant="export_pictures"):
    """At most MOST_PICTURES paths, evenly from a folder of images or an annotation that train.py reads.

    constant: the one that named the place, for messages. Raises ValueError where there are none.
    """
    expected = "expected a folder of pictures, or a list as val_annotation_path of train.py"
    if not os.path.exists(place):
        raise ValueError(f"{constant} is {place!r}, and there is no such file or folder; {expected}.")
    if os.path.isdir(place):
        paths = [os.path.join(place, name) for name in files_below(place, IMAGE_SUFFIXES)]
    else:
        try:
            paths = [path for path in read_source(place, "val").paths if path]
        except ValueError as error:
            raise ValueError(f"{constant} is {place!r}; {expected}, and this fails: {error}") from error
    if not paths:
        raise ValueError(f"{constant} is {place!r}, where no pictures are; {expected}.")
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), MOST_PICTURES)).round().astype(int)
    return [paths[number] for number in chosen]


@torch.no_grad()
def compare(onnx_path, detector, pictures):
    """Run an exported file beside the detector that it was made of.

    pictures: {path: (height, width, 3) uint8 RGB}. Returns a dict of plain values. "score" and "pixels" are the largest
    differences of any cell, boxes clipped to the input. Where suppression is inside, "detections" says how many PyTorch
    and the file have, and how many are the same within the bounds, and "suppressed_otherwise" how many differ from what
    ours makes of the file's own cells: among equal scores a cell's last digit decides which box stays. "agrees":
    differences are within the bounds.
    """
    proto = onnx.load(onnx_path)
    has_nms = proto.graph.output[0].name == DETECTIONS
    if has_nms:  # its cells, which the file itself keeps inside, are looked at too
        types = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
        proto.graph.output.extend(map(onnx.helper.make_tensor_value_info, CELLS, types, [None] * 3))
    session = open_session(proto.SerializeToString())
    thresholds = Thresholds(LOWEST_SCORE, NMS_IOU, MAX_BOXES)
    options = graph_options(thresholds, len(detector.class_names)) if has_nms else {}
    differences, counts, lost, images_rgb = [], np.zeros(3, int), 0, list(pictures.values())
    for part in (images_rgb[:1], *(images_rgb[start : start + BATCH] for start in range(1, len(images_rgb), BATCH))):
        batch, _ = detector.prepare(part)
        decoded = detector.model.decode(detector.run(batch))
        images = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        names = [*CELLS, DETECTIONS] if has_nms else CELLS[:2]
        got = session.run(names, {"images": images} | options)
        differences.append(_largest_differences(cells(decoded, has_nms), got, detector.input_shape))
        if has_nms:
            counts += _count_detections(suppress(decoded, *thresholds), got[-1])
            same = _count_detections(suppress(_as_decoded(*got[:3], decoded.shape[-1] - 5), *thresholds), got[-1])
            lost += int(same[:2].max() - same[2])
    score, pixels = np.max(differences, axis=0).tolist()
    return {
        "agrees": bool(score <= MOST_SCORE and pixels <= MOST_PIXELS and lost <= max(1, MOST_LOST * counts[1])),
        "score": score,
        "pixels": pixels,
        "bounds": {"score": MOST_SCORE, "pixels": MOST_PIXELS},
        "detections": dict(zip(("pytorch", "onnx", "both"), counts.tolist(), strict=True)) if has_nms else None,
        "suppressed_otherwise": lost,
        "pictures": [str(path) for path in pictures],
        "versions": {name: packages(name)[0].__version__ for name in ("torch", "onnx", "onnxruntime")},
    }


def report_words(report):
    """The report in a few lines."""
    lines = [
        f"PyTorch and ONNX Runtime on {len(report['pictures'])} pictures: largest difference of a score "
        f"{report['score']:.1e} (bound {MOST_SCORE:g}), of a box {report['pixels']:.1e} pixels (bound {MOST_PIXELS:g})"
    ]
    if report["detections"]:
        found = report["detections"]
        lines.append(
            f"detections from a score of {LOWEST_SCORE:g} on: {found['pytorch']} of PyTorch, {found['onnx']} of ONNX, "
            f"{found['both']} the same"
        )
        if found["both"] < max(found.values()) and report["score"] <= MOST_SCORE and report["pixels"] <= MOST_PIXELS:
            lines.append(
                "the boxes before suppression agree: where two have nearly the same score, or overlap just at the "
                "limit, the last digit decides which one stays; of the file's own boxes PyTorch would keep "
                f"{report['suppressed_otherwise']} others (bound {MOST_LOST:.0%}, or one)"
            )
    return "\n".join(lines)


def _largest_differences(expected, got, input_shape):
    """(of the scores, in pixels of the boxes, clipped to the input) between two results of `cells`."""
    height, width = input_shape
    side = np.array([width, height, width, height], np.float32)
    expected, got = [part.numpy() for part in expected[:2]], got[:2]
    pixels = np.abs(np.clip(expected[0], 0, side) - np.clip(got[0], 0, side)).max()
    return np.abs(expected[1] - got[1]).max(), pixels


def _as_decoded(boxes_xyxy, scores, class_ids, num_classes):
    """Cells of the file as model.decode would give them, (B, N, 5 + C), so that suppress finds just these scores."""
    boxes_xyxy, scores, class_ids = map(torch.from_numpy, (boxes_xyxy, scores, class_ids))
    classes = 1000.0 * one_hot(class_ids, num_classes) - 500
    # In double precision, in which different scores stay different.
    return torch.cat((boxes_xyxy.double(), torch.logit(scores.double())[..., None], classes.double()), -1)


def _count_detections(expected, got):
    """How many detections a batch has in `expected`, of suppress; in `got`, (n, 7), see write_onnx; and in both."""
    counts = np.array([0, len(got), 0])
    for number, parts in enumerate(expected):
        ours = torch.column_stack(parts)
        gaps = (ours[:, None] - torch.from_numpy(got[got[:, 0] == number, 1:])).abs()
        is_same = (gaps[..., :4] <= MOST_PIXELS).all(-1) & (gaps[..., 4] <= MOST_SCORE) & (gaps[..., 5] == 0)
        counts += [len(ours), 0, int(is_same.any(1).sum())]
    return counts
