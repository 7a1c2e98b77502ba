"""From an uploaded picture to what the page of mode 'web' shows of it; nothing is written to the disk."""

import base64
from collections import Counter
from pathlib import PurePosixPath
from urllib.parse import parse_qs

import numpy as np

from utils.image.codec import encode_image
from utils.image.draw import draw_boxes
from utils.inference.base import Detections, decode_picture
from utils.io.errors import UserError
from utils.modes.images import CROPS, PICTURES, crops, file_name_of, fullness
from utils.modes.label_files import voc_text, yolo_text

# Of an upload, and of all the objects together that are cut out of it: a large picture full of large objects would
# come back as gigabytes.
MOST_MEGABYTES, MOST_CROP_MEGAPIXELS = 50, 50
# A JPEG has no longer side.
MOST_JPEG_SIDE = 65_500
# Endings that browsers show; pictures of other kinds come back as PNG.
SHOWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def detect_upload(detector, settings, content, name, confidence=None, class_ids=None, with_crops=False):
    """What the page shows of one picture; several threads may call at once.

    content: bytes of the file. name: as its sender calls it. confidence: lowest score, None for that of settings.
    class_ids: a list of the classes to show, None for all. with_crops: every object as a picture too, see _crops_of.
    Returns {"boxes": [[name, score, x1, y1, x2, y2], ...], "counts": [[name, number], ...], "note": text, "files":
    {path: base64}}; the first file is the drawn picture. Raises ValueError for what is no picture.
    """
    name = file_name_of(name)[-100:].strip(". ") or "picture"
    picture = decode_picture(content, name, settings.max_megapixels)
    confidence = settings.confidence if confidence is None else confidence
    found = detector(picture, confidence, settings.nms_iou, settings.max_boxes)
    note = fullness(found, settings.max_boxes)
    if class_ids is not None:
        is_shown = np.isin(found.class_ids, class_ids)
        found = Detections(*(values[is_shown] for values in found))
    drawn = draw_boxes(picture, found.boxes_xyxy, found.class_ids, found.scores, detector.class_names)
    size_hw, path = picture.shape[:2], PurePosixPath(name)
    # Not the name of the original, beside which a browser would save it.
    target = f"{path.stem}_boxes{path.suffix if path.suffix.lower() in SHOWN_SUFFIXES else '.png'}"
    files = {f"{PICTURES}/{target}": encode_image(target, drawn).tobytes()}
    files[f"labels/{path.stem}.txt"] = yolo_text(size_hw, found).encode()
    files[f"Annotations/{path.stem}.xml"] = voc_text(name, size_hw, found).encode()
    if with_crops:
        cut_out, left_out = _crops_of(picture, found, name)
        files, note = files | cut_out, f"{note} {left_out}".strip()
    rows = zip(found.names.tolist(), found.scores.tolist(), found.boxes_xyxy.round().astype(int).tolist(), strict=True)
    return {
        "boxes": [[class_name, round(score, 4), *box_xyxy] for class_name, score, box_xyxy in rows],
        "counts": Counter(found.names.tolist()).most_common(),
        "note": note,
        "files": {path: base64.b64encode(data).decode() for path, data in files.items()},
    }


def _crops_of(picture, found, name):
    """({path: bytes} of the objects, the surest first, and a sentence where they are too large together for all)."""
    suffix = ".jpg" if max(picture.shape) <= MOST_JPEG_SIDE else ".png"
    files, left = {}, MOST_CROP_MEGAPIXELS * 10**6
    for crop, pixels in crops(picture, found, name, suffix):
        size = pixels.shape[0] * pixels.shape[1]
        if size <= left:  # a smaller one may still fit behind one that does not
            left -= size
            files[f"{CROPS}/{crop}"] = encode_image(crop, pixels).tobytes()
    sentence = (
        f"{len(files)} of {len(found.scores)} objects are cut out, as all together may have {MOST_CROP_MEGAPIXELS} "
        "million pixels; mode 'predict' with crop = True cuts all of them out."
    )
    return files, sentence if len(files) < len(found.scores) else ""


def about(detector, settings):
    """What the page has to know of a detector before the first picture."""
    scores = detector.confidences if settings.confidence is None else [settings.confidence]
    limits = {"megabytes": MOST_MEGABYTES, "megapixels": settings.max_megapixels}
    return {"classes": list(detector.class_names), "confidences": scores, "crops": settings.crop, **limits}


def options_of(query):
    """The arguments of detect_upload that an address holds. Raises ValueError for others."""
    values = {name: texts[-1] for name, texts in parse_qs(query, keep_blank_values=True).items()}
    options = {"name": values.get("name", ""), "with_crops": values.get("crops") == "1"}
    try:
        if "confidence" in values:
            options["confidence"] = float(values["confidence"])
        if "classes" in values:
            options["class_ids"] = [int(number) for number in values["classes"].split(",") if number]
    except ValueError as error:
        raise UserError(f"confidence and classes are numbers; found {query[:200]!r}.") from error
    return options
