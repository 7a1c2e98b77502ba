"""Turn weights of any kind that can be read here into a file of ours, which says itself how it must be used.

python tools/convert_weights.py IN OUT [--classes_path=... --weights_format=...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

from nets import build_model
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.data.anchors import choose_decode_rule
from utils.inference.detector import find_weights, open_network
from utils.io.class_names import read_class_names
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import counted
from utils.weights import read
from utils.weights.load import load_matching
from utils.weights.metadata import make_metadata
from utils.weights.save import save_state

# ----------------------------------------------------------------------------------------------------------------------
#   source          The file to read, or the name of a release such as 'yolov4'; the first word of the command.
#   target          The file to write, .pth; the second word. A file that exists is not replaced.
#   classes_path    Only for files that do not say their classes and have others than COCO's 80.
#   weights_format  As in train.py: how the weights expect their images, where the file cannot say it.
#   anchors_path    As in train.py, for foreign files of YOLOv4, which do not say that they were trained with other
#                   anchors than the usual ones.
#   anchors_mask    As in train.py: which anchors belong to which map.
# ----------------------------------------------------------------------------------------------------------------------
source = ""
target = ""
classes_path = ""
weights_format = ""
anchors_path = ""
anchors_mask = []


def main(settings):
    """Read, check that every tensor has its place, write."""
    if not settings.source or not settings.target:
        raise UserError("Give two files: python tools/convert_weights.py IN OUT, such as yolov4.weights yolov4.pth.")
    if Path(settings.target).suffix.lower() != ".pth":
        raise UserError(
            f"{settings.target} does not end in .pth, and this tool writes no other kind of file: give it that ending. "
            "`python predict.py --mode=export_onnx` writes ONNX files."
        )
    if Path(settings.target).exists():
        raise UserError(f"{settings.target} exists already; remove it, or give another name.")
    if not Path(settings.target).absolute().parent.is_dir():
        raise UserError(f"The folder of {settings.target} does not exist; make it, or give another name.")
    weights = read.read_weights(find_weights(settings.source), settings.weights_format)
    logger.info(f"{settings.source}: {weights.source}")
    metadata = weights.metadata
    if not metadata.get("model_name"):
        raise UserError(f"{settings.source} is a backbone of torchvision, which is used as it is: start from it.")
    if settings.anchors_path or settings.anchors_mask:
        if "format" in metadata:
            raise UserError(f"{settings.source} says its anchors itself: leave anchors_path and anchors_mask empty.")
        settings.model_name = metadata["model_name"]
        metadata = metadata | {"decode_rule": choose_decode_rule(settings, metadata)}
        weights = weights._replace(metadata=metadata)
    class_names = read_class_names(settings.classes_path) if settings.classes_path else None
    if metadata.get("num_classes") or metadata.get("class_names"):
        model, metadata = open_network(weights, class_names=class_names)
        state, class_names = model.state_dict(), metadata["class_names"]
    else:
        model = build_model(
            metadata["model_name"], read.COCO_CLASSES, metadata["pixel_rule"], metadata.get("decode_rule")
        )
        fit = load_matching(model, weights, [])
        # Only what the file holds: fresh numbers must not pass for trained ones.
        state, class_names = {key: model.state_dict()[key] for key in fit.loaded}, []
    about = make_metadata(model, class_names, metadata["input_shape"], metadata["resize_rule"])
    save_state(settings.target, state, weights.metadata | about)
    parts = f"{counted(len(class_names), 'class')}" if class_names else "a part of a network, to train from"
    logger.info(f"saved {settings.target}: {model.name}, {len(state)} tensors, {parts}")


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values, positional=("source", "target"))
