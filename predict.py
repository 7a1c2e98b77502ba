"""Use a trained detector. Edit the constants below, then run `python predict.py`.

Any constant can be changed for one run instead: `python predict.py --mode=dir_predict --dir_origin_path=my_images`.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.config import check_prediction, run_script, script_constants
from utils.data.files import IMAGE_SUFFIXES
from utils.data.letterbox import read_image, write_image
from utils.draw import draw_boxes
from utils.infer import open_detector
from utils.weights.contract import confidence_words
from utils.weights.download import is_release

# ----------------------------------------------------------------------------------------------------------------------
#   WHAT TO DO
#
#   mode            'predict'      draw boxes on one picture, or, with image = '', on each path that you type.
#                   'dir_predict'  draw boxes on every picture of a folder.
#   image           The picture of mode 'predict'. '' asks for paths, one after another.
#   dir_origin_path Folder of the pictures of mode 'dir_predict'.
#   dir_save_path   Folder to which both modes write the pictures with boxes, under their own names.
# ----------------------------------------------------------------------------------------------------------------------
mode = "predict"
image = "VOCdevkit/Sample/JPEGImages/000155.jpg"
dir_origin_path = "VOCdevkit/Sample/JPEGImages"
dir_save_path = "img_out"

# ----------------------------------------------------------------------------------------------------------------------
#   THE DETECTOR
#
#   model_path      Weights. A file that training wrote says itself which network, classes and input size it needs.
#                   Any file that train.py starts from will do, if it holds a whole network, and the names of releases:
#                   'yolox_nano', 'yolov4', ...
#   classes_path    Only for files that do not say their classes and have others than COCO's 80.
#   model_name      '' lets the file say it; a name has to agree with the file.
#   weights_format  As in train.py; '' lets the file's content decide.
#   input_shape     [height, width] that the network sees, multiples of 32; [] takes the size of the training.
#   confidence      Boxes below this score are not shown. Lower it where objects are missed, raise it where boxes are
#                   wrong. None takes for each class the one that gave the best F1 on the validation set, which the
#                   file knows if training measured it, and 0.5 where it does not.
#   nms_iou         Two boxes of one class that overlap more than this are one object. Raise it for crowded scenes.
#   Cuda            Use the GPU where there is one.
# ----------------------------------------------------------------------------------------------------------------------
model_path = "logs/best_epoch_weights.pth"
classes_path = ""
model_name = ""
weights_format = ""
input_shape = []
confidence = None
nms_iou = 0.5
Cuda = True


def predict_one(detector, path, settings):
    """Detect on one picture, save it with boxes, and print what was found. Returns the path written."""
    target = Path(settings.dir_save_path) / Path(path).name
    if target.resolve() == Path(path).resolve():
        raise ValueError(
            f"dir_save_path is {settings.dir_save_path!r}, the folder of {path} itself, which would be overwritten; "
            "choose another folder."
        )
    picture = read_image(str(path))
    found = detector(picture, settings.confidence, settings.nms_iou)
    target.parent.mkdir(parents=True, exist_ok=True)
    names = detector.class_names
    write_image(str(target), draw_boxes(picture, found.boxes_xyxy, found.class_ids, found.scores, names))
    return found, target


def predict(detector, settings):
    """Mode 'predict': the picture of `image`, or every path typed until an empty line."""
    # "Copy as path" of Windows puts quotation marks around a path.
    typed = iter(lambda: input("Picture (empty line ends): ").strip("\"' "), "")
    paths = [settings.image] if settings.image else typed
    for path in paths:
        try:
            found, target = predict_one(detector, path, settings)
        except (ValueError, FileNotFoundError) as error:
            if settings.image:
                raise
            print(error)
            continue
        for box_xyxy, score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True):
            x1, y1, x2, y2 = np.round(box_xyxy).astype(int)
            print(f"{detector.class_names[class_id]:16s} {score:.3f}  x {x1}-{x2}  y {y1}-{y2}")
        print(f"{len(found.scores)} objects; saved {target}")


def dir_predict(detector, settings):
    """Mode 'dir_predict': every picture of a folder. Pictures that cannot be read are named at the end."""
    folder = Path(settings.dir_origin_path)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"dir_origin_path is {str(folder)!r}, which holds no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    objects, failed = 0, []
    for path in tqdm(paths, desc="pictures", disable=None):
        try:
            objects += len(predict_one(detector, path, settings)[0].scores)
        except ValueError as error:
            failed.append(str(error))
    print(f"{len(paths) - len(failed)} pictures, {objects} objects; saved in {settings.dir_save_path}")
    if failed:
        raise ValueError(f"{len(failed)} pictures could not be read: " + " ".join(failed[:10]))


_MODES = {"predict": predict, "dir_predict": dir_predict}


def main(settings):
    """Open the detector and do what mode says."""
    if settings.mode not in _MODES:
        raise ValueError(f"mode is {settings.mode!r}; expected one of {', '.join(_MODES)}.")
    if not Path(settings.model_path).is_file() and not is_release(settings.model_path):
        raise ValueError(
            f"model_path is {settings.model_path!r}, and there is no such file; train first (`python train.py` writes "
            "logs/best_epoch_weights.pth), or point model_path at your weights, or name a release, such as yolox_nano."
        )
    detector = open_detector(settings)
    print(confidence_words(detector.contract, detector.class_names, settings.confidence))
    _MODES[settings.mode](detector, settings)


if __name__ == "__main__":
    run_script(main, script_constants(globals()), check_prediction)
