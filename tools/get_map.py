"""Measure a weight file on labelled images: COCO AP, AP50, AP75 and VOC mAP@0.5, by the evaluator that training uses.

python tools/get_map.py --annotation_path=VOCdevkit/VOC2007/ImageSets/Main/test.txt [--model_path=... --nms_iou=...]
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import check_values, run_script, script_constants
from utils.data.annotations import read_annotations
from utils.data.class_names import read_class_names
from utils.data.dataset import build_val_loader
from utils.data.findings import findings_table
from utils.device import choose_device, choose_precision
from utils.eval.evaluate import evaluate
from utils.eval.scores import format_scores
from utils.infer import Detector

# ----------------------------------------------------------------------------------------------------------------------
#   annotation_path   What to measure on, in any of the formats that train.py reads; of a data.yaml its val part.
#   model_path        Weights. A file that training wrote says itself which network, classes and input size it needs.
#   classes_path      Only for files that do not say their classes and have others than COCO's 80.
#   model_name        '' lets the file say it; a name has to agree with the file.
#   weights_format    As in train.py; '' lets the file's content decide.
#   input_shape       [height, width] that the network sees, multiples of 32; [] takes the size of the training.
#   confidence        Boxes below this score are left out. Low, because an AP looks at the whole curve.
#   nms_iou           Two boxes of one class that overlap more than this are one object.
#   MINOVERLAP        A box is right from this IoU on, for VOC mAP, precision and recall.
#   batch_size        Images at a time.
#   num_workers       Processes that prepare images; 0 for none.
#   Cuda              Use the GPU where there is one.
#   fp16              Mixed precision as in training: faster, and its very numbers; False is the most exact.
#   map_out_path      Folder for results.json.
# ----------------------------------------------------------------------------------------------------------------------
annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"
model_path = "logs/best_epoch_weights.pth"
classes_path = ""
model_name = ""
weights_format = ""
input_shape = []
confidence = 0.001
nms_iou = 0.65
MINOVERLAP = 0.5
batch_size = 16
num_workers = 0
Cuda = True
fp16 = False
map_out_path = "map_out"


def main(settings):
    """Evaluate, print the table, write results.json. Returns the scores."""
    device, sentence = choose_device(settings.Cuda)
    precision = choose_precision(settings.fp16, device)
    class_names = read_class_names(settings.classes_path) if settings.classes_path else None
    detector = Detector(
        settings.model_path, device, settings.model_name, class_names, settings.input_shape, settings.weights_format
    )
    print(f"{settings.model_path}: {detector.source}")
    records, findings = read_annotations(settings.annotation_path, detector.class_names, "val")
    print(f"{settings.annotation_path}: {len(records)} images, {len(records.boxes_xyxy)} boxes")
    if findings:
        print(findings_table(findings))
    if sentence:
        print(f"note: {sentence}")
    loader = build_val_loader(
        records, detector.input_shape, detector.resize_rule, settings.batch_size, settings.num_workers
    )
    _, scores, unreadable = evaluate(
        detector.model,
        loader,
        records,
        detector.class_names,
        device,
        precision.dtype,
        confidence=settings.confidence,
        nms_iou=settings.nms_iou,
        min_overlap=settings.MINOVERLAP,
    )
    for path in unreadable:
        print(f"note: {path} cannot be decoded; its objects count as missed")
    print(f"\n{format_scores(scores)}")
    folder = Path(settings.map_out_path)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_path": settings.model_path, "annotation_path": settings.annotation_path}
    text = json.dumps(without_nan(about | scores), indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    print(f"\nsaved {folder / 'results.json'}")
    return scores


def without_nan(value):
    """The same structure with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_script(main, script_constants(globals()), check_values)
