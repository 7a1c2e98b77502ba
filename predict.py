"""Use a trained detector. Edit the constants below, then run `python predict.py`.

Any constant can be changed for one run instead: `python predict.py --mode=dir_predict --dir_origin_path=my_images`.
"""

from pathlib import Path
from types import SimpleNamespace

import utils.runtime.startup  # noqa: F401 # isort: skip
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_prediction
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.modes.images import predict_folder, predict_image
from utils.weights.download import is_release

# ----------------------------------------------------------------------------------------------------------------------
#   WHAT TO DO
#
#   mode            What to do:
#                       'predict'       draw boxes on one picture, or, with image = '', on each path that you type
#                       'dir_predict'   draw boxes on every picture of a folder and its sub-folders, write them down
#                       'video'         draw boxes on a video or on what a camera sees
#                       'web'           show a page in the browser on which pictures are dropped
#                       'fps'           measure how long a picture takes: preprocessing, network, post-processing
#                       'heatmap'       show where on a picture the network sees objects
#                       'export_onnx'   write the network as an ONNX file, for programs without torch
#                       'predict_onnx'  as 'predict', 'dir_predict' or 'video', by what image names, from such a file
#                                       and without torch
#   image           The picture of the modes 'predict', 'fps', 'heatmap' and 'predict_onnx'. '' asks for paths, one
#                   after another. Mode 'predict_onnx' takes a folder, a video or the number of a camera here too.
#   dir_save_path   Folder to which all modes but 'web' and 'export_onnx' write. Pictures keep their names; those of
#                   mode 'dir_predict' go to pictures/ in it.
#   max_megapixels  Larger pictures are refused before they fill the memory; each million pixels takes 3 MB.
#   show            Show the pictures in a window too, where there is a screen and the output goes to a terminal.
# ----------------------------------------------------------------------------------------------------------------------
mode = "predict"
image = "VOCdevkit/Sample/JPEGImages/000155.jpg"
dir_save_path = "img_out"
max_megapixels = 200
show = True

# ----------------------------------------------------------------------------------------------------------------------
#   WHAT TO KEEP of pictures (modes 'predict' and 'dir_predict')
#
#   crop            Save every object as a picture of its own too, in crops/: street.jpg_car_2.png is the second object
#                   of street.jpg, a car.
#   count           Print how many objects of each class there are.
# ----------------------------------------------------------------------------------------------------------------------
crop = False
count = False

# ----------------------------------------------------------------------------------------------------------------------
#   A FOLDER OF PICTURES (mode 'dir_predict')
#
#   The boxes are always written as detections.json, in COCO's format and with scores, and the names of the classes as
#   classes.txt. Labelling tools open such files, so that nobody has to draw what the detector finds already: correct
#   its boxes, train again, and let the better detector propose the next ones.
#
#   dir_origin_path The folder. Its sub-folders are searched too, hidden ones left out.
#   batch_size      Pictures that the network sees at a time. More is faster on a GPU, until its memory is full.
#   voc_xml         Write Annotations/NAME.xml too, in the format of Pascal VOC.
#   yolo_txt        Write labels/NAME.txt too, in YOLO's format.
# ----------------------------------------------------------------------------------------------------------------------
dir_origin_path = "VOCdevkit/Sample/JPEGImages"
batch_size = 8
voc_xml = False
yolo_txt = False

# ----------------------------------------------------------------------------------------------------------------------
#   A VIDEO (mode 'video')
#
#   video_path      A file, or the number of a camera: '0' is the first. Ctrl-C ends it; what is written by then plays.
#   video_save_path The video with boxes, an .mp4; '' takes the name of the original, in dir_save_path.
# ----------------------------------------------------------------------------------------------------------------------
video_path = "0"
video_save_path = ""

# ----------------------------------------------------------------------------------------------------------------------
#   A PAGE IN THE BROWSER (mode 'web')
#
#   web_host        The address that it listens on. '127.0.0.1' is this machine alone; '0.0.0.0' lets everybody in the
#                   network use it.
#   web_port        The number behind the colon of its address, http://127.0.0.1:7860; 0 takes one that is free.
# ----------------------------------------------------------------------------------------------------------------------
web_host = "127.0.0.1"
web_port = 7860

# ----------------------------------------------------------------------------------------------------------------------
#   SPEED (mode 'fps')
#
#   test_interval   How often the picture is measured; another tenth of that comes before, unmeasured, to warm up.
# ----------------------------------------------------------------------------------------------------------------------
test_interval = 100

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
#   nms_iou         Two boxes of one class that overlap more than this are one object, of which the surer box stays:
#                   that is suppression (NMS). Raise it for crowded scenes.
#   max_boxes       So many objects of a picture at most, the surest ones.
#   tta_flip        Test-time augmentation: look at each picture in a mirror too, and keep the best boxes of both. Finds
#                   a little more in twice the time.
#   tta_scales      Look at each picture with the input at each of these sizes; keep 1.0 among them. [1.0, 1.5] finds
#                   more small objects, in more than three times the time. [1.0] looks once.
#   tile            Look at large pictures in tiles of so many pixels a side too, which finds objects that are a few
#                   pixels wide in the input. None takes what the weights were trained with, 0 looks at whole pictures
#                   alone.
#   tile_overlap    Share of a tile that its neighbours show too; None as above.
#   fuse            Fold BatchNorm into the convolutions: the network takes about a seventh less time on a CPU, and
#                   scores change by less than 0.0001. False gives exactly the numbers of tools/get_map.py.
#   cpu_threads     Threads of torch on the CPU; 0 takes the environment's TORCH_THREAD_NUM, or lets torch decide.
#   Cuda            Use the GPU where there is one.
# ----------------------------------------------------------------------------------------------------------------------
model_path = "logs/best_epoch_weights.pth"
classes_path = ""
model_name = ""
weights_format = ""
input_shape = []
confidence = None
nms_iou = 0.5
max_boxes = 300
tta_flip = False
tta_scales = [1.0]
tile = None
tile_overlap = None
fuse = False
cpu_threads = 0
Cuda = True

# ----------------------------------------------------------------------------------------------------------------------
#   EXPORT (modes 'export_onnx' and 'predict_onnx'), which take: pip install -r requirements-export.txt
#
#   The file takes uint8 RGB pictures of the input's size, any number at once, and holds class names and all that
#   belongs to its use. confidence and nms_iou above become its defaults.
#
#   onnx_path       The file to write or to use; '' takes the name of model_path with the ending .onnx.
#   export_nms      True: the file gives the boxes that stay. False: a box and the scores of all classes for every cell,
#                   a place of the network's maps, for programs with their own suppression. predict_onnx takes True.
#   export_dynamic_size  Height and width may be any multiples of 32. False fixes those of input_shape.
#   opset           Version of ONNX's operators, 18 to 23. Lower is understood by more programs.
#   export_pictures A folder of pictures, or a list as val_annotation_path of train.py. The file is run on 16 of them
#                   beside PyTorch, and deleted where results differ; the report is a .json beside it.
# ----------------------------------------------------------------------------------------------------------------------
onnx_path = ""
export_nms = True
export_dynamic_size = False
opset = 18
export_pictures = "VOCdevkit/Sample/JPEGImages"


# Torch is imported inside the functions that use it: mode 'predict_onnx' runs on machines that have none.


def predict(settings):
    """Mode 'predict': the picture of `image`, or every path typed until an empty line."""
    predict_image(open_detector(settings), settings)


def dir_predict(settings):
    """Mode 'dir_predict': every picture of a folder. Pictures that cannot be read are named at the end."""
    predict_folder(open_detector(settings), settings)


def video(settings):
    """Mode 'video': a file or a camera, frame by frame."""
    from utils.modes.video import predict_video

    predict_video(open_detector(settings), settings)


def web(settings):
    """Mode 'web': a page in the browser on which pictures are dropped."""
    from utils.modes.web.server import serve

    serve(open_detector(settings), settings)


def fps(settings):
    """Mode 'fps': how long one picture takes, by stage."""
    from utils.modes.speed import measure

    measure(open_detector(settings), settings)


def heatmap(settings):
    """Mode 'heatmap': where on a picture the network sees objects."""
    from utils.modes.heatmap import draw_heatmaps

    draw_heatmaps(open_detector(settings), settings)


def export_onnx(settings):
    """Mode 'export_onnx': the network as a file for programs without torch, compared with PyTorch."""
    from utils.export.verify import export

    export(open_detector(settings, Cuda=False), settings)


def predict_onnx(settings):
    """Mode 'predict_onnx': as 'predict', or with a video as 'video', from such a file and without torch."""
    from utils.modes.onnx import predict_onnx

    predict_onnx(settings)


_MODES = {
    function.__name__: function
    for function in (predict, dir_predict, video, web, fps, heatmap, export_onnx, predict_onnx)
}
_SHOWS_BOXES = ("predict", "dir_predict", "video", "web")
# Constants that are off, and the modes in which they are of no use.
_OFF = {"tta_flip": False, "tta_scales": [1.0], "fuse": False, "classes_path": "", "model_name": "", "tile": 0}
_UNUSED = {
    "fps": ("tile",),
    "heatmap": ("tta_flip", "tta_scales", "tile"),
    "export_onnx": ("tta_flip", "tta_scales", "fuse", "tile"),
    "predict_onnx": ("tta_flip", "tta_scales", "fuse", "classes_path", "model_name"),
}


def open_detector(settings, **changes):
    """The detector of model_path; says how it is used. changes: constants with other values than those of settings.

    Raises ValueError for a file that is not there or of no use.
    """
    from utils.inference import detector as inference
    from utils.weights.metadata import confidence_words

    if not Path(settings.model_path).is_file() and not is_release(settings.model_path):
        raise UserError(
            f"model_path is {settings.model_path!r}, and there is no such file; train first (`python train.py` writes "
            "logs/best_epoch_weights.pth), or point model_path at your weights, or name a release, such as yolox_nano."
        )
    if settings.model_path.endswith(".onnx"):
        raise UserError(
            f"model_path is {settings.model_path!r}, which mode 'predict_onnx' takes as onnx_path; expected weights."
        )
    settings = SimpleNamespace(**vars(settings) | changes)
    names = ("fuse", "cpu_threads", "tta_flip", "tta_scales", "tile", "tile_overlap")
    detector = inference.open_detector(settings, **{name: getattr(settings, name) for name in names})
    if settings.mode in _SHOWS_BOXES:
        logger.info(confidence_words(detector.metadata, detector.class_names, settings.confidence))
    return detector


def main(settings):
    """Do what mode says."""
    if settings.mode not in _MODES:
        raise UserError(f"mode is {settings.mode!r}; expected one of {', '.join(_MODES)}.")
    unused = _UNUSED.get(settings.mode, ())
    if changed := [name for name in unused if getattr(settings, name) not in (None, _OFF[name])]:
        logger.warning(f"mode {settings.mode!r} does not use {', '.join(changed)}")
    try:
        _MODES[settings.mode](SimpleNamespace(**vars(settings) | {name: _OFF[name] for name in unused}))
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision"):
            raise
        raise UserError(
            f"mode {settings.mode!r} needs the package {error.name}, which is not installed: see docs/installation.md. "
            " Without it, mode 'predict_onnx' uses a file that mode 'export_onnx' wrote."
        ) from error


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_prediction)
