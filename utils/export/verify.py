"""An exported file is run beside PyTorch on pictures, and kept only where both agree."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from utils.data.formats.detect_format import read_raw_annotations
from utils.export.onnx import head_names, head_outputs, onnx, write_onnx
from utils.inference.base import NMSOptions, open_picture
from utils.inference.onnx import DETECTIONS, graph_options, onnx_path_of, open_session, packages
from utils.inference.postprocess import select
from utils.io.errors import UserError
from utils.io.files import IMAGE_SUFFIXES, files_below
from utils.io.logger import logger
from utils.io.text import counted

# An exported file that differs more than this from PyTorch is deleted.
MAX_SCORE_ERROR, MAX_PIXEL_ERROR = 1e-3, 0.5
# The two are compared on at most so many pictures: the first alone, the others in batches.
MAX_PICTURES, BATCH = 16, 5
# Detections are compared from this score on: low, so that suppression has something to do.
LOWEST_SCORE = 0.05
# Boxes at the limit of overlap may fall the other way: so large a fraction of the detections, or one.
MAX_LOST = 0.02


def export(detector, settings):
    """Do what predict.py's constants say: the .onnx, and beside it a report, .onnx.json, which is logged too.

    detector: on the CPU, where PyTorch computes as exactly as ONNX Runtime, without test-time augmentation and as it
    was trained. Raises ValueError where the file differs from PyTorch's, and then leaves nothing but the report, also
    of an older file; and as find_pictures, open_picture and write_onnx do.
    """
    target = onnx_path_of(settings)
    if target.suffix != ".onnx":
        raise UserError(f"onnx_path is {str(target)!r}; expected a name that ends in .onnx.")
    pictures = {path: open_picture(path) for path in find_pictures(settings.export_pictures)}
    options = detector.options_of(settings.confidence, settings.nms_iou, settings.max_boxes)
    temporary = Path(f"{target}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("exporting, which takes a minute for large networks ...")
    try:
        write_onnx(temporary, detector, options, settings.export_nms, settings.export_dynamic_size, settings.opset)
        report = compare(temporary, detector, pictures)
        Path(f"{target}.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        logger.info(report_words(report))
        if not report["agrees"]:
            target.unlink(missing_ok=True)
            raise UserError(
                f"{target} is deleted: its results differ from PyTorch's by more than {MAX_SCORE_ERROR:g} in scores, "
                f"{MAX_PIXEL_ERROR:g} pixels or {MAX_LOST:.0%} of the detections, see {target}.json; try another "
                "opset, or other versions of onnx and onnxruntime."
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    logger.info(f"saved {target} ({target.stat().st_size / 2**20:.1f} MiB), report in {target}.json")


def find_pictures(place, constant="export_pictures"):
    """At most MAX_PICTURES paths, evenly from a folder of images or an annotation that train.py reads.

    constant: the one that named the place, for messages. Raises ValueError where there are none.
    """
    expected = "expected a folder of pictures, or a list as val_annotation_path of train.py"
    if not os.path.exists(place):
        raise UserError(f"{constant} is {place!r}, and there is no such file or folder; {expected}.")
    if os.path.isdir(place):
        paths = [os.path.join(place, name) for name in files_below(place, IMAGE_SUFFIXES)]
    else:
        try:
            paths = [path for path in read_raw_annotations(place, "val").paths if path]
        except ValueError as error:
            raise UserError(f"{constant} is {place!r}; {expected}, and this fails: {error}") from error
    if not paths:
        raise UserError(f"{constant} is {place!r}, where no pictures are; {expected}.")
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), MAX_PICTURES)).round().astype(int)
    return [paths[number] for number in chosen]


@torch.no_grad()
def compare(onnx_path, detector, pictures):
    """Run an exported file beside the detector that it was made of.

    pictures: {path: (height, width, 3) uint8 RGB}. Returns a dict of plain values. "score" and "pixels" are the largest
    differences before suppression, boxes clipped to the input. Where suppression is inside, "detections" says how many
    PyTorch and the file have, and how many are the same within the bounds. "other_queries": the number of pictures on
    which the two chose other queries, as the last digit of a score decides; these are not compared. "agrees": all is
    within the bounds, and at least half of the pictures were compared.
    """
    session, names = _open_inside(onnx_path, detector)
    differences, counts, others, images_rgb = [(0.0, 0.0)], np.zeros(3, int), 0, list(pictures.values())
    for part in (images_rgb[:1], *(images_rgb[start : start + BATCH] for start in range(1, len(images_rgb), BATCH))):
        found = _compare_batch(session, names, detector, part)
        differences += found[0]
        counts += found[1]
        others += found[2]
    score, pixels = np.max(differences, axis=0).tolist()
    lost = counts[:2].max() - counts[2]
    is_close = score <= MAX_SCORE_ERROR and pixels <= MAX_PIXEL_ERROR and 2 * others <= len(pictures)
    has_nms = DETECTIONS in names
    return {
        "agrees": bool(is_close and lost <= max(1, MAX_LOST * counts[1])),
        "score": score,
        "pixels": pixels,
        "other_queries": others,
        "bounds": {"score": MAX_SCORE_ERROR, "pixels": MAX_PIXEL_ERROR},
        "detections": dict(zip(("pytorch", "onnx", "both"), counts.tolist(), strict=True)) if has_nms else None,
        "pictures": [str(path) for path in pictures],
        "versions": {name: packages(name)[0].__version__ for name in ("torch", "onnx", "onnxruntime")},
    }


def _open_inside(onnx_path, detector):
    """A session of an exported file that also gives what the file keeps inside, and the names of its outputs: boxes and
    scores first, and last, where the network has queries, which tokens these are."""
    proto = onnx.load(onnx_path)
    has_nms = proto.graph.output[0].name == DETECTIONS
    names = [*head_names(has_nms and detector.model.has_nms)]
    if has_nms:
        types = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
        inside = map(onnx.helper.make_tensor_value_info, names, types, [None] * 3)
        proto.graph.output.extend(inside)
        names.append(DETECTIONS)
    if not detector.model.has_nms:
        # Which tokens became queries, (B, N) int64: the decoder's first choice of the highest scores.
        names.append(next(node.output[1] for node in proto.graph.node if node.op_type == "TopK"))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(names[-1], onnx.TensorProto.INT64, [None, None]))
    return open_session(proto.SerializeToString()), names


def _compare_batch(session, names, detector, images_rgb):
    """([(score, pixels)] of the images that count, their detections as in _count_detections, how many do not count)."""
    has_nms, suppresses = DETECTIONS in names, "class_ids" in names
    options = NMSOptions(LOWEST_SCORE)
    inputs = graph_options(options, len(detector.class_names)) if has_nms else {}
    batch, _ = detector.preprocess(images_rgb)
    raw = detector.forward(batch)
    decoded = detector.model.decode(raw)
    got = session.run(names, {"images": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))} | inputs)
    expected, found = [part.numpy() for part in head_outputs(decoded, suppresses)[:2]], got[:2]
    counts_image = np.ones(len(images_rgb), bool)
    if not detector.model.has_nms:
        found, counts_image = in_order_of(raw.tokens.numpy(), got[-1], found)
    differences = [
        _largest_differences(*([values[number] for values in side] for side in (expected, found)), detector.input_shape)
        for number in np.flatnonzero(counts_image)
    ]
    counts = np.zeros(3, int)
    if has_nms:
        detections = got[names.index(DETECTIONS)]
        counts = _count_detections(select(detector.model, decoded, options), detections, counts_image)
    return differences, counts, int((~counts_image).sum())


def report_words(report):
    """The report in a few lines."""
    lines = [
        f"PyTorch and ONNX Runtime on {counted(len(report['pictures']), 'picture')}: largest difference of a score "
        f"{report['score']:.1e} (bound {MAX_SCORE_ERROR:g}), of a box {report['pixels']:.1e} pixels (bound "
        f"{MAX_PIXEL_ERROR:g})"
    ]
    if report["other_queries"]:
        lines.append(
            f"on {report['other_queries']} of them the two chose other queries, whose scores differ in the last digit: "
            "these are left out"
        )
    if report["detections"]:
        found = report["detections"]
        lines.append(
            f"detections from a score of {LOWEST_SCORE:g} on: {found['pytorch']} of PyTorch, {found['onnx']} of ONNX, "
            f"{found['both']} the same (bound {MAX_LOST:.0%} others, or one)"
        )
    return "\n".join(lines)


def in_order_of(tokens, other_tokens, parts):
    """What another program gives of its queries, in our order, and for which images both have the same queries.

    tokens, other_tokens: (B, N) which tokens became queries. parts: arrays (B, N, ...). Where tokens have nearly equal
    scores, the last digit decides which becomes which query, or none. Returns (parts, (B,) bool).
    """
    order, other_order = tokens.argsort(1), other_tokens.argsort(1)
    is_same = np.take_along_axis(tokens, order, 1) == np.take_along_axis(other_tokens, other_order, 1)
    places = np.take_along_axis(other_order, order.argsort(1), 1)
    return [np.take_along_axis(part, places[..., None], 1) for part in parts], is_same.all(1)


def _largest_differences(expected, got, input_shape):
    """(of the scores, in pixels of the boxes, clipped to the input) between (boxes, scores) of two programs."""
    height, width = input_shape
    side = np.array([width, height, width, height], np.float32)
    pixels = np.abs(np.clip(expected[0], 0, side) - np.clip(got[0], 0, side)).max()
    return np.abs(expected[1] - got[1]).max(), pixels


def _count_detections(expected, got, counts_image):
    """How many detections the images of a batch that count have in `expected`, of nms; in `got`, (n, 7), see
    write_onnx; and in both."""
    counts = np.zeros(3, int)
    for number in np.flatnonzero(counts_image):
        ours, theirs = torch.column_stack(expected[number]), torch.from_numpy(got[got[:, 0] == number, 1:])
        gaps = (ours[:, None] - theirs).abs()
        is_same = (gaps[..., :4] <= MAX_PIXEL_ERROR).all(-1) & (gaps[..., 4] <= MAX_SCORE_ERROR) & (gaps[..., 5] == 0)
        counts += [len(ours), len(theirs), int(is_same.any(1).sum())]
    return counts
