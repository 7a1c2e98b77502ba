"""Write a trained detector as .onnx: pixels in, boxes out, and in its metadata how it must be used."""

import json
import logging

import torch
from torch import nn
from torch.export import Dim

from utils.inference.onnx import graph_options, packages
from utils.inference.postprocess import PRE_NMS_TOPK
from utils.io.errors import UserError
from utils.weights.metadata import make_metadata

# It names every operator whose result it does not compute beforehand.
logging.getLogger("onnxscript").setLevel(logging.ERROR)
# The third runs what the other two write: its lack is said before an export, too.
onnx, *_ = packages("onnx", "onnxscript", "onnxruntime")
# Below 18 torch's exporter has no operators, above 23 ONNX Runtime's newest release is behind.
OPSETS = range(18, 24)
# Where the input may have any size, torch still needs one to look at.
EXAMPLE_HW = (320, 416)
HEAD_OUTPUTS = ("boxes_xyxy", "scores", "class_ids")
# How both end: a row for each candidate that is kept.
_ROWS = """
    kept_boxes = GatherND (best_boxes, kept)
    kept_scores = GatherND (best_scores, kept)
    kept_classes = GatherND (best_classes, kept)
    image_numbers = Slice (kept, axis_0, axis_1, axis_1)
    images_as_float = Cast <to = 1> (image_numbers)
    scores_as_column = Unsqueeze (kept_scores, axis_1)
    classes_as_float = Cast <to = 1> (kept_classes)
    classes_as_column = Unsqueeze (classes_as_float, axis_1)
    detections = Concat <axis = 1> (images_as_float, kept_boxes, scores_as_column, classes_as_column)
}}
"""
# What utils.inference.postprocess.nms does, in standard operators and the textual syntax of ONNX. B images, N places, K
# candidates, C classes. Candidates are in the order of their scores, so that a place among them is a rank.
# What stays is marked in floats, because TensorRT's CumSum and NonZero know nothing else.
SUPPRESSION = (
    """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
suppression (float[batch, cells, 4] boxes_xyxy, float[batch, cells] scores, int64[batch, cells] class_ids,
             float[classes] confidence, float[1] nms_iou, int64[1] max_boxes) => (float[found, 7] detections)
<int64[1] most = {{{most}}}, int64 zero = {{0}}, int64 one = {{1}}, int64[1] axis_0 = {{0}}, int64[1] axis_1 = {{1}},
 int64[1] axis_2 = {{2}}, int64[2] image_and_candidate = {{0, 2}}, float out = {{-1.0}}, float[1] lowest = {{0.0}}>
{{
    needed = Gather (confidence, class_ids)
    is_sure = GreaterOrEqual (scores, needed)
    sure_scores = Where (is_sure, scores, out)
    cells = Shape <start = 1, end = 2> (scores)
    count = Min (cells, most)
    best_scores, best = TopK <axis = 1> (sure_scores, count)
    best_places = Unsqueeze (best, axis_2)
    best_boxes = GatherND <batch_dims = 1> (boxes_xyxy, best_places)
    best_classes = GatherElements <axis = 1> (class_ids, best)

    classes_shape = Shape (confidence)
    classes = Squeeze (classes_shape, axis_0)
    numbers = Range (zero, classes, one)
    number_of_row = Unsqueeze (numbers, axis_1)
    class_of_column = Unsqueeze (best_classes, axis_1)
    is_class = Equal (class_of_column, number_of_row)
    score_of_column = Unsqueeze (best_scores, axis_1)
    class_scores = Where (is_class, score_of_column, out)
    selected = NonMaxSuppression (best_boxes, class_scores, max_boxes, nms_iou, lowest)

    pairs = Gather <axis = 1> (selected, image_and_candidate)
    shape = Shape (best_scores)
    none = ConstantOfShape <value = float[1] {{0.0}}> (shape)
    pairs_count = Shape <start = 0, end = 1> (pairs)
    ones = ConstantOfShape <value = float[1] {{1.0}}> (pairs_count)
    stays = ScatterND (none, pairs, ones)
    rank = CumSum (stays, axis_1)
    most_boxes = Cast <to = 1> (max_boxes)
    is_within = LessOrEqual (rank, most_boxes)
    within = Cast <to = 1> (is_within)
    stays_within = Mul (stays, within)
    kept_columns = NonZero (stays_within)
    kept = Transpose <perm = [1, 0]> (kept_columns)

"""
    + _ROWS
)


# What utils.inference.postprocess.top_scores does, in the same way. N queries, K of the N * C scores.
SELECTION = (
    """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
selection (float[batch, queries, 4] boxes_xyxy, float[batch, queries, classes] scores,
           float[classes] confidence, float[1] nms_iou, int64[1] max_boxes) => (float[found, 7] detections)
<int64[2] flat_shape = {{0, -1}}, int64[1] axis_0 = {{0}}, int64[1] axis_1 = {{1}}, int64[1] axis_2 = {{2}},
 float out = {{-1.0}}, float zero = {{0.0}}>
{{
    is_high = GreaterOrEqual (scores, confidence)
    high_scores = Where (is_high, scores, out)
    flat = Reshape (high_scores, flat_shape)
    total = Shape <start = 1, end = 2> (flat)
    count = Min (total, max_boxes)
    best_scores, best = TopK <axis = 1> (flat, count)
    classes_count = Shape (confidence)
    best_queries = Div (best, classes_count)
    best_classes = Mod (best, classes_count)
    best_places = Unsqueeze (best_queries, axis_2)
    best_boxes = GatherND <batch_dims = 1> (boxes_xyxy, best_places)

    is_sure = GreaterOrEqual (best_scores, zero)
    stays = Cast <to = 1> (is_sure)
    kept_columns = NonZero (stays)
    kept = Transpose <perm = [1, 0]> (kept_columns)

"""
    + _ROWS
)


class Exported(nn.Module):
    """The network as it is exported: uint8 RGB (B, 3, H, W) -> the result of `head_outputs`."""

    def __init__(self, model, has_nms):
        super().__init__()
        self.model, self.has_nms = model, has_nms

    def forward(self, images):
        # Before all else, for TensorRT knows uint8 as an input alone.
        return head_outputs(self.model.decode(self.model(images.float())), self.has_nms)


def head_names(has_nms):
    """The names of what head_outputs returns."""
    return HEAD_OUTPUTS if has_nms else HEAD_OUTPUTS[:2]


def head_outputs(decoded, has_nms):
    """What the network says of all N places, in scores instead of logits.

    decoded: a Decoded. Returns boxes_xyxy (B, N, 4) input pixels and scores, objectness * class
    probability. has_nms: what suppression takes, which is scores (B, N) of the most probable class and, third, its
    number, class_ids (B, N) int64; else scores (B, N, C) of all classes.
    """
    objectness = 1.0 if decoded.objectness is None else decoded.objectness.sigmoid()[..., None]
    if not has_nms:
        return decoded.boxes_xyxy, objectness * decoded.class_logits.sigmoid()
    class_logit, class_ids = decoded.class_logits.max(-1, keepdim=True)
    return decoded.boxes_xyxy, (objectness * class_logit.sigmoid()).squeeze(-1), class_ids.squeeze(-1)


def write_onnx(path, detector, options, has_nms=True, dynamic_size=False, opset=18):
    """Export a detector.

    path: of the file, replaced if it exists. detector: a utils.inference.Detector without test-time augmentation, on
    the CPU. options: NMSOptions, the values of the inputs confidence (C,), nms_iou (1,) and max_boxes (1,) where these
    are not given. has_nms: the choice of boxes is part of the graph, by suppression or by the scores alone, as the
    network needs it. dynamic_size: the input's height and width may be any
    multiples of 32, else they are the detector's. opset: one of OPSETS. The graph takes images, uint8 RGB (B, 3, H, W).
    With has_nms it returns detections (n, 7) float32, the images one after another, and of each image the best box
    first: number of the image, x1, y1, x2, y2 in input pixels, score, class. Without, it returns boxes_xyxy (B, N, 4)
    and scores (B, N, C). The metadata holds class_names, metadata (under "contract") and thresholds as JSON. Raises
    ValueError for another opset, where a package is missing, and where torch cannot export.
    """
    if opset not in OPSETS:
        raise UserError(f"opset is {opset}; expected {OPSETS[0]} to {OPSETS[-1]}, which torch can write.")
    suppresses = has_nms and detector.model.has_nms
    proto = _export_network(detector, suppresses, dynamic_size, opset)
    if has_nms:
        template = SUPPRESSION if suppresses else SELECTION
        text = template.format(ir_version=proto.ir_version, opset=opset, most=PRE_NMS_TOPK)
        names = {"rename_inputs": False, "rename_outputs": False}
        chosen = onnx.compose.add_prefix(onnx.parser.parse_model(text), "suppression/", **names)
        proto = onnx.compose.merge_models(proto, chosen, [(name, name) for name in head_names(suppresses)])
        del proto.opset_import[1:]  # merging states the version twice
        defaults = graph_options(options, len(detector.class_names)).items()
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in defaults)
    metadata = _metadata(detector) | ({"thresholds": options._asdict()} if has_nms else {})
    onnx.helper.set_model_props(proto, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _export_network(detector, has_nms, dynamic_size, opset):
    """The ModelProto of the network and its decoding."""
    # Torch takes a side of 1 for a constant, and two equal sides for one and the same.
    size_hw = EXAMPLE_HW if dynamic_size else detector.input_shape
    sides = {2: 32 * Dim("rows"), 3: 32 * Dim("columns")} if dynamic_size else {}
    try:
        program = torch.onnx.export(
            Exported(detector.model, has_nms).eval(),
            (torch.zeros(2, 3, *size_hw, dtype=torch.uint8),),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["images"],
            output_names=head_names(has_nms),
            dynamic_shapes=({0: Dim("batch")} | sides,),
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"torch {torch.__version__} cannot export this network ({reason}): try export_dynamic_size = False and "
            f"opset = {OPSETS[0]}, or newer versions of torch, onnx and onnxscript."
        ) from error
    proto = program.model_proto
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # lines of this machine's source files, larger than a small network
    return proto


def _metadata(detector):
    """{key: plain values} that travel in the file."""
    names, known = detector.class_names, detector.metadata
    about = {name: known[name] for name in ("confidence", "tiles") if name in known}
    metadata = make_metadata(detector.model, names, detector.input_shape, detector.resize_rule, **about)
    return {"class_names": names, "contract": metadata}
