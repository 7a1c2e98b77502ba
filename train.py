"""Train a YOLO detector. Edit the constants below, then run `python train.py`.

Any constant can be changed for one run instead: `python train.py --UnFreeze_Epoch=30 --fp16=False`.
As shipped it trains yolox_nano from scratch on the drawn sample in VOCdevkit/Sample and reaches a VOC mAP@0.5 of about
0.93 in less than five minutes on two CPU cores. Results land in logs/; `python predict.py` draws boxes with them.
"""

import utils.runtime.threads  # noqa: F401 # isort: skip
from functools import partial
from pathlib import Path

import torch

from nets import LossOptions, build_criterion, build_model
from nets.backbones.torchvision import check_backbone
from utils.checkpoint.checkpointer import Keeper, Position, TrainingState, position_of
from utils.checkpoint.resume import (
    check_same_run,
    quoted,
    read_checkpoint,
    settings_to_go_on,
    weights_of,
    words_to_go_on,
)
from utils.checkpoint.run_folder import rehearse_disk
from utils.config.cli import plain, run_script, script_constants, with_changes
from utils.config.rules import check_training
from utils.data.anchors import choose_decode_rule, unused_anchors
from utils.data.annotations import class_names_of, read_source, to_records
from utils.data.augment import AugmentSettings
from utils.data.image_cache import RamCache, cache_fits, train_scales
from utils.data.loader import build_train_loader, build_val_loader
from utils.data.quality.checks import quick_findings
from utils.data.quality.findings import findings_table, refuse, write_findings
from utils.data.sampling import TrainShapes, multi_scale_shapes
from utils.evaluation.evaluate import evaluate
from utils.inference.detector import find_weights
from utils.io.class_names import read_class_names
from utils.reporting.hints import Run
from utils.reporting.hints.settings import advice, unlike
from utils.reporting.run_logger import RunLog
from utils.runtime import device as machine
from utils.runtime import distributed as processes
from utils.runtime.signals import StopSignals
from utils.training import nonfinite as black_box
from utils.training.compile import compile_if_faster
from utils.training.engine import Stepper, Tally, train_one_epoch
from utils.training.freezing import (
    adopt_statistics,
    frozen_parameters,
    joining_groups,
    rate_factors,
    stuck_at_random,
    training_table,
)
from utils.training.lr_schedule import Schedule, planned_rates, rates_of
from utils.training.nonfinite import NotFiniteError
from utils.training.optim import ModelEma, build_optimizer, parameter_groups, take_in
from utils.training.phases import check_batches, epochs_of, phases_of, steps_of
from utils.training.preflight import is_out_of_memory, memory_words, rehearse_steps
from utils.visualize.epochs import draw_planned_rates
from utils.weights.load import load_matching, loading_table
from utils.weights.metadata import make_contract
from utils.weights.pretrained import read_pretrained
from utils.weights.read import read_weights

# ----------------------------------------------------------------------------------------------------------------------
#   RECIPES: what to change below in typical situations. All else stays as it is.
#
#   From the weights of a whole model  model_path = 'model_data/yolox_nano.pth', input_shape = [416, 416],
#   (nearly always the right one)      Freeze_Epoch = 10, UnFreeze_Epoch = 30 for hundreds of images, 50 and 100 for
#                                      thousands, and then Init_lr = 1e-2. The name yolox_nano alone fetches the file.
#       the same with adamw            optimizer_type = 'adamw', Init_lr = 4e-3, momentum = 0.9, weight_decay = 0.05
#       the same with adam             optimizer_type = 'adam', Init_lr = 4e-3, momentum = 0.9, weight_decay = 0
#   From a backbone alone              model_path = its file, input_shape = [416, 416], Freeze_Epoch = 50,
#                                      UnFreeze_Epoch = 200: neck and head have everything to learn
#   YOLOv4-tiny from Darknet's weights model_name = 'yolov4_tiny', model_path = 'yolov4_tiny', input_shape = [416, 416],
#                                      Freeze_Epoch = 10, UnFreeze_Epoch = 30
#   YOLOv4 from Darknet's backbone     model_name = 'yolov4', model_path = 'yolov4.conv.137', Init_lr = 1e-2,
#                                      input_shape = [416, 416], Freeze_Epoch = 50, UnFreeze_Epoch = 200
#   From a backbone of torchvision     model_name = 'yolov4', backbone = 'resnet50', pretrained = True, model_path = '',
#                                      Init_lr = 1e-2, and all else as in the line above
#   From scratch                       model_path = '', input_shape = [416, 416], UnFreeze_Epoch = 300, Init_lr = 1e-2,
#                                      mosaic_prob = 1.0. The drawn sample gets by with less, as shipped.
#
#   Your own pictures, and a whole model's weights from COCO (everyday things in photographs):
#   few, and similar to COCO           train_only = ['head'], Freeze_Train = False
#   few, and different                 freeze_blocks = 3, Freeze_Train = False
#   many, and similar                  Freeze_Train = False, Init_lr = 1e-2, lr_scale = {'backbone': 0.1, 'neck': 0.1}:
#                                      what is trained already goes on at a tenth of the rate
#   many, and different                from scratch; or from the weights, with twice the epochs
#
#   A weak GPU, or a CPU               Freeze_Epoch = 30, UnFreeze_Epoch = 30: only the frozen phase;
#                                      Freeze_batch_size = 4, accumulate = 4, fp16 = True, yolox_nano at [416, 416]
#   Batch sizes                        as large as memory allows; Freeze_batch_size 1 to 2 times Unfreeze_batch_size
#   Go on where a run was broken off   resume = True, or --resume=True: exactly as if it had never stopped
#   Train a finished run further       --resume=logs/loss_<date and time> --UnFreeze_Epoch=more
#   Go on from weights in logs/        model_path = 'logs/last_epoch_weights.pth', Init_Epoch = epochs they have seen
# ----------------------------------------------------------------------------------------------------------------------

# ----------------------------------------------------------------------------------------------------------------------
#   THE MACHINE
#
#   Cuda            True trains on the GPU; without a usable GPU training says so and runs on the CPU.
#   gpu_ids         Which GPUs to use, as numbers with commas: '0' or '0,2'. '' uses all. It does what
#                   CUDA_VISIBLE_DEVICES does in a Linux shell, on any system.
#   distributed     One process drives one GPU, or several by DataParallel. One process per GPU (DDP) is faster and
#                   takes a launcher, which training recognises by itself:
#                       CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py
#                   True refuses to start without one.
#   sync_bn         Share BatchNorm statistics between the GPUs of a distributed run. It helps where each GPU holds only
#                   a few images, and costs some time.
#   fp16            Mixed precision: about half the memory and up to twice the speed, no loss of accuracy to speak of.
#                   bfloat16 where the hardware has it (GPUs from Ampere on, newer CPUs), else float16 on GPUs and
#                   float32 on CPUs. Set it to False only to rule it out as the cause of a problem.
#   num_workers     Processes that prepare images beside the training. -1 chooses: one per core up to 8 with a GPU, none
#                   on a CPU, where they would take the cores that the network needs. Raise it where an epoch's line
#                   shows much "data wait"; lower it where main memory is short.
#   worker_timeout  Seconds after which a worker that gives no batch counts as hung, which ends the run with the image
#                   that it was reading; 0 waits for ever. Raise it where images come over a slow network.
#   cpu_threads     Threads of the network's computations on a CPU. 0 takes one per core; fewer leave cores for others.
#   compile         torch.compile: translates the network for this machine, which takes some minutes per phase and pays
#                   in long trainings on a GPU. It is tried on a few steps first, and dropped where it fails or is not
#                   faster. With multi_scale only batches of input_shape itself gain: choose one of the two.
#   cudnn_benchmark Let cuDNN try which algorithm is fastest for each size of input; leave it on.
#   deterministic   Algorithms on the GPU that give the same numbers every time, where torch has them (it warns of the
#                   others): slower, for comparing experiments. Switches cudnn_benchmark off. A CPU repeats anyway.
#   seed            Same seed, same settings: same augmentation and same start weights.
# ----------------------------------------------------------------------------------------------------------------------
Cuda = True
gpu_ids = ""
distributed = False
sync_bn = False
fp16 = True
num_workers = -1
worker_timeout = 300
cpu_threads = 0
compile = False
cudnn_benchmark = True
deterministic = False
seed = 11

# ----------------------------------------------------------------------------------------------------------------------
#   THE DATA
#
#   classes_path            Text file with one class name per line, in any order that stays the same for this model.
#                           THE constant to change for your own data; forgetting it is the commonest mistake. '' takes
#                           the names from the annotations, where these have names. The run's folder gets classes.txt.
#   train_annotation_path   What to train on, and
#   val_annotation_path     what to validate on. Either a split of a VOC folder, which is read as it is
#                               VOCdevkit/VOC2007/ImageSets/Main/train.txt   (Annotations/ and JPEGImages/ beside it)
#                           or a COCO file, which ends in .json
#                               coco/annotations/instances_train2017.json    (the images in coco/train2017/)
#                           or YOLO's layout: its data.yaml for both constants, or a folder of images
#                               my_data/images/train                         (the boxes in my_data/labels/train/)
#                           or a list file with lines `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...`
#                               2007_train.txt
#                           `python tools/voc_annotation.py` makes splits and lists from a folder of annotations;
#                           `python tools/check_data.py` shows what is wrong with the data, and pictures of it.
#   keep_difficult          Learn boxes that are marked difficult (VOC), and crowds (COCO), too. False leaves them out,
#                           as most do: they are hard to make out, or stand for many objects. Scores never count them.
#   cache                   'ram' decodes every training image once, before the first epoch, and keeps it in main memory
#                           at the size of the input, one copy for all workers. It spares a quarter to a half of the
#                           loader's work. Training says how much it takes, and goes on without where it does not fit.
#                           '' is off. Zoomed parts of images become a little softer.
# ----------------------------------------------------------------------------------------------------------------------
classes_path = "model_data/sample_classes.txt"
train_annotation_path = "VOCdevkit/Sample/ImageSets/Main/train.txt"
val_annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"
keep_difficult = False
cache = ""

# ----------------------------------------------------------------------------------------------------------------------
#   THE NETWORK
#
#   model_name      yolox_nano, yolox_tiny, yolox_s, yolox_m, yolox_l or yolox_x: 0.9 to 99 million parameters;
#                   yolov4_tiny, yolov4: 6 and 64 million, with anchors. Larger is more accurate and slower; on a CPU
#                   stay with nano or one of the tiny ones, on a weak GPU with yolox_s.
#   backbone        A backbone of torchvision in the place of the network's own: resnet18, resnet34, resnet50,
#                   resnet101, mobilenet_v2, mobilenet_v3_large, efficientnet_b0, efficientnet_v2_s, convnext_tiny,
#                   convnext_small, swin_t, swin_s. '' keeps the network's own, which is nearly always right.
#   pretrained      For a torchvision backbone: True starts it from its usual ImageNet weights, a name such as
#                   'IMAGENET1K_V2' from others. They are fetched once. Neck and head then start fresh.
#   model_path      Weights to start from. Any of
#                       the .pth that a training wrote into logs/, to go on from it,
#                       an official YOLOX release, a YOLOX or YOLOv4 state dict of another PyTorch repo, a backbone's,
#                       a Darknet file: yolov4.weights, yolov4-tiny.weights, yolov4.conv.137, yolov4-tiny.conv.29,
#                   of the same network; the content says which it is. Or the name of a release, which is fetched once
#                   into model_data/: yolox_nano, yolox_tiny, yolox_s, yolox_m, yolox_l, yolox_x, yolov4, yolov4_tiny,
#                   yolov4.conv.137, yolov4-tiny.conv.29. '' starts from scratch.
#                   Real pictures want pretrained weights in nearly every case: from scratch takes thousands of images
#                   and hundreds of epochs. The classes may be others; those of the same name go on from the file.
#   weights_format  How a foreign file's weights expect their images, where its content cannot tell: 'yolox' (BGR,
#                   0-255), 'yolox_rgb' (YOLOX before release 0.1.1), 'flat_yolox', 'flat_yolov4' (other PyTorch repos),
#                   'darknet'. '' decides by the content, and the lines at the start say what was decided.
#   allow_partial_backbone   True also takes weights that do not fill the whole backbone. They rarely help.
#   input_shape     [height, width] the network sees, multiples of 32. [224, 224] does for the drawn sample; photographs
#                   want [416, 416] or [640, 640], which finds small objects better and takes 2.4 times the time and
#                   memory. The smallest objects should measure 10 pixels or more in it.
#   anchors_path    Only for yolov4 and yolov4_tiny: a file of box sizes, width,height, in pixels of the input. '' takes
#                   those of the weights, else the usual ones, which are those of model_data/yolo_anchors.txt and
#                   model_data/yolo_tiny_anchors.txt. Anchors of your own help where all objects have unusual shapes.
#   anchors_mask    Which anchors each map has, counted from 0, coarse map (large objects) first. [] takes those of the
#                   weights, else the usual ones: [[6, 7, 8], [3, 4, 5], [0, 1, 2]], tiny [[3, 4, 5], [1, 2, 3]], which
#                   leaves anchor 0 out; with six anchors of your own write [[3, 4, 5], [0, 1, 2]].
# ----------------------------------------------------------------------------------------------------------------------
model_name = "yolox_nano"
backbone = ""
pretrained = False
model_path = ""
weights_format = ""
allow_partial_backbone = False
input_shape = [224, 224]
anchors_path = ""
anchors_mask = []

# ----------------------------------------------------------------------------------------------------------------------
#   AUGMENTATION
#
#   mosaic              Join four images into one with probability mosaic_prob: more objects, more scales, more contexts
#   mosaic_prob         per step. The strongest help on small data sets. 0.5 for short trainings, up to 1 for long ones.
#   mixup               Blend a sample with a second one (mosaic again) with probability mixup_prob. Helps large models
#   mixup_prob          and long trainings; small models on little data are better without.
#   special_aug_ratio   All augmentation stops after this share of the epochs: its images are far from real ones, and
#                       the last epochs should see real ones.
#   scale_range         Zoom of each image, relative to the size at which it just fits: [smallest, largest]. [0.5, 1.5]
#                       where objects come in very different sizes, closer to [1, 1] where they do not.
#   aspect_jitter       Stretch: width / height changes by up to this share.
#   flip_prob           Mirror left-right with this probability. 0 where left and right differ in meaning (letters, road
#                       signs).
#   colour_jitter       [hue, saturation, brightness]: largest random change. Lower the hue where colour decides the
#                       class.
#   multi_scale         Train on inputs of several sizes: input_shape times multi_scale_range (smallest, largest), in
#   multi_scale_range   steps of 32 pixels, another one every multi_scale_period batches. It makes the network sure of
#   multi_scale_period  objects at sizes that the data rarely show, and wants more epochs. The largest size decides the
#                       memory: 1.25 takes 1.6 times as much. It ends with the other augmentation.
# ----------------------------------------------------------------------------------------------------------------------
mosaic = True
mosaic_prob = 0.5
mixup = False
mixup_prob = 0.5
special_aug_ratio = 0.7
scale_range = [0.7, 1.4]
aspect_jitter = 0.2
flip_prob = 0.5
colour_jitter = [0.015, 0.5, 0.4]
multi_scale = False
multi_scale_range = [0.75, 1.25]
multi_scale_period = 10

# ----------------------------------------------------------------------------------------------------------------------
#   THE LOSS
#
#   iou_type        How a predicted box is compared with the right one: 'iou', 'ciou' (also distance and aspect ratio)
#                   or 'siou' (also the direction of the distance). '' takes the network's own: 'iou' squared for YOLOX,
#                   'ciou' for YOLOv4. They differ by a point or so; try it last.
#   label_smoothing This share of a class target is spread over all classes: softer against wrong labels. 0.01 or less;
#                   0 is off. Without effect where there is one class.
#   focal_loss      Let the many easy cells without an object count less: p is raised to focal_gamma (0 none, 2 usual),
#   focal_alpha     and cells with an object weigh focal_alpha, the others 1 - focal_alpha. Try it where objects are
#   focal_gamma     very rare; for ordinary data leave it off.
#   ignore_iou      Only with anchors: a prediction that overlaps an object more than this, and was not chosen to learn
#                   it, is not taught that nothing is there. 1 switches that off.
#   map_weights     Only with anchors: how much the objectness of each map counts, fine map (small objects) first, such
#                   as [2.0, 1.0, 1.0] where small objects are missed. [] is 1 for all.
# ----------------------------------------------------------------------------------------------------------------------
iou_type = ""
label_smoothing = 0.0
focal_loss = False
focal_alpha = 0.25
focal_gamma = 2.0
ignore_iou = 0.7
map_weights = []

# ----------------------------------------------------------------------------------------------------------------------
#   EPOCHS AND BATCHES: first with the backbone frozen, then everything
#
#   Freeze_Train            True: up to Freeze_Epoch the backbone keeps its pretrained weights and only neck and head
#                           learn. That is fast, needs little memory and protects good features from the first rough
#                           steps. Without pretrained weights there is nothing to protect, and training says so and
#                           skips this phase.
#   Init_Epoch              Epochs already done; above 0 to go on with weights from logs/ (set model_path to them). At
#                           or beyond Freeze_Epoch training starts in the second phase.
#   Freeze_Epoch            Last epoch of the frozen phase, and
#   Freeze_batch_size       its batch size: one to two times Unfreeze_batch_size.
#   UnFreeze_Epoch          Last epoch of all, frozen ones included. Equal to Freeze_Epoch: never unfreezes, which is
#                           what a weak machine can do.
#   Unfreeze_batch_size     Batch size of the second phase. As large as memory allows, up to 16 or so; at least 2,
#                           because BatchNorm has no statistics in a batch of 1. "Out of memory": lower this or
#                           input_shape.
#   accumulate              Sum the gradients of this many batches before each step: the effect of a large batch in the
#                           memory of a small one, but for BatchNorm, which sees the small batches. The learning rate
#                           follows batch size times accumulate.
#
#   Which layers are frozen. After set-up a table shows what trains in which phase, and how fast.
#   freeze_layers           Names of what shall rest: 'backbone', 'neck', 'head', or the beginning of parameter names,
#                           such as 'head.cls_preds' or 'backbone.backbone.stem' (python tools/summary.py shows them).
#   freeze_blocks           The first so many blocks of the backbone rest: 2 or 3 of its 5 or 6. They know edges and
#                           colours, which all pictures share.
#   train_only              The opposite of both: only these names train.
#   freeze_whole_run        True: the layers named here rest from the first epoch to the last, and Freeze_Train adds the
#                           whole backbone up to Freeze_Epoch. False: they rest up to Freeze_Epoch only, in the place of
#                           the whole backbone.
# ----------------------------------------------------------------------------------------------------------------------
Freeze_Train = True
Init_Epoch = 0
Freeze_Epoch = 10
Freeze_batch_size = 16
UnFreeze_Epoch = 100
Unfreeze_batch_size = 8
accumulate = 1
freeze_layers = []
freeze_blocks = 0
train_only = []
freeze_whole_run = True

# ----------------------------------------------------------------------------------------------------------------------
#   LEARNING
#
#   optimizer_type  'sgd' with momentum 0.937; 'adam' or 'adamw' with momentum 0.9; 'rmsprop' with momentum 0.9;
#                   'adagrad', which has none. sgd and adamw are the ones to choose. With adam set weight_decay = 0:
#                   there it acts wrongly; adamw does it right.
#   Init_lr         Highest learning rate for a batch of 64 images. It is scaled to the real batch (batch * accumulate /
#                   64 * Init_lr), again at the unfreeze epoch, and kept within 5e-4..5e-2 (sgd), 3e-4..1e-3 (adam,
#                   adamw), 1e-4..5e-4 (rmsprop) or 1e-3..2e-2 (adagrad).
#                       sgd                 8e-2 for hundreds of images and few epochs, 1e-2 for thousands of images
#                       adamw, adam         4e-3 for hundreds of images and few epochs, 1e-3 for thousands of images
#                       rmsprop, adagrad    1e-3, 8e-2
#                   Where the loss jumps or becomes NaN: a tenth.
#   Min_lr          Lowest learning rate, for a batch of 64, scaled likewise. None is a hundredth of Init_lr.
#   momentum        0.937 for sgd, 0.9 for adam, adamw and rmsprop.
#   weight_decay    Pull of the weights to zero against learning by heart: 5e-4 for sgd, 1e-2 to 5e-2 for adamw, 0 for
#                   adam, rmsprop and adagrad. BatchNorm and biases are left out.
#   lr_decay_type   How the rate falls. Every course begins with a warm-up, and again for layers that are unfrozen; the
#                   log folder gets a picture of it, planned_lr.png.
#                       'cos'        a half cosine, then a flat end: the one to choose
#                       'step'       times lr_gamma every lr_step_size epochs (None: a tenth, every third of the run)
#                       'multistep'  times lr_gamma at each of lr_milestones ([]: at 70 % and 90 % of the epochs)
#                       'exp'        times lr_gamma every epoch (None: so that the last one ends at Min_lr)
#                       'plateau'    times lr_factor once the validation loss has not fallen for more than lr_patience
#                                    epochs; then it waits lr_cooldown epochs. For trainings of unknown length.
#                       'constant'   stays
#                   or a function of your own, epoch (from 0) -> factor of the rate, written above the constant:
#                       def my_course(epoch):
#                           return 1.0 if epoch < 20 else 0.1
#                       lr_decay_type = my_course
#   lr_scale        Factors of the rate by name, as in freeze_layers: {'backbone': 0.1} lets the backbone learn at a
#                   tenth of the rate, which keeps good features; 0 freezes for the whole run. Of several names that
#                   mean a parameter the longest counts.
#   clip_grad_norm  Longest gradient allowed; 0 is off. 10 is a safeguard against single wild steps.
#   clip_norm_type  How its length is measured: 2.0 as usual, float("inf") by its largest entry.
#   ema             Evaluate and save the running average of the weights instead of their last values: smoother and
#                   nearly always better. It looks back over 5 % of the run.
# ----------------------------------------------------------------------------------------------------------------------
optimizer_type = "sgd"
Init_lr = 8e-2
Min_lr = None
momentum = 0.937
weight_decay = 5e-4
lr_decay_type = "cos"
lr_step_size = None
lr_milestones = []
lr_gamma = None
lr_factor = 0.5
lr_patience = 5
lr_cooldown = 0
lr_scale = {}
clip_grad_norm = 0.0
clip_norm_type = 2.0
ema = True

# ----------------------------------------------------------------------------------------------------------------------
#   SAVING AND EVALUATING
#
#   resume          True goes on with the newest run under save_dir, exactly where it was broken off: into the same
#                   folder, with the same settings and the same results as if it had never stopped. Or the folder of a
#                   run. Settings given on the command line, or edited here since, count instead of the run's, and
#                   training says so: with a larger UnFreeze_Epoch it goes on for longer. False begins a new run.
#   save_minutes    Minutes between two savings within an epoch; the end of each epoch saves anyway, and so do Ctrl-C
#                   and a system that asks the program to stop. So only a power cut or kill -9 costs anything: this.
#   keep_checkpoints  How many of the files ep...pth stay, the newest ones. 0 keeps all of them.
#   save_dir        Each run makes a folder logs/loss_<date and time> in it. Beside the folders best_epoch_weights.pth
#                   and last_epoch_weights.pth are always those of the newest run.
#   save_period     Epochs between the weight files ep...pth that are kept. last_epoch_weights.pth is written every
#                   epoch.
#   eval_flag       True: measure the mAP on the validation set; best_epoch_weights.pth are those of the best mAP.
#                   False: of the lowest validation loss.
#   eval_period     Epochs between two measurements. The last epoch is always measured.
#   patience        Stop once the mAP (with eval_flag = False: the validation loss) has not become better for so many
#                   epochs, which a measurement must show. 0 is off. The last epochs, without mosaic, often bring the
#                   best mAP: with less than a third of UnFreeze_Epoch they may never be reached.
# ----------------------------------------------------------------------------------------------------------------------
resume = False
save_minutes = 10.0
keep_checkpoints = 0
save_dir = "logs"
save_period = 10
eval_flag = True
eval_period = 5
patience = 0


def read_data(settings, say):
    """Class names, training records, validation records, and what was found wrong with them, which is also said."""
    paths = {"train": settings.train_annotation_path, "val": settings.val_annotation_path}
    sources = [read_source(path, split) for split, path in paths.items()]
    class_names = read_class_names(settings.classes_path) if settings.classes_path else class_names_of(sources)
    records, findings = [], []
    for path, source in zip(paths.values(), sources, strict=True):
        part, found = to_records(source, class_names)
        refuse(path, found, class_names)
        say(f"{path}: {len(part)} images, {len(part.boxes_xyxy)} boxes, {len(class_names)} classes")
        records.append(part)
        findings += found
    findings += quick_findings(*records, class_names, settings.input_shape, settings.keep_difficult)
    refuse(settings.train_annotation_path, findings, class_names)
    if findings:
        say(f"\nIn the data, the worst first (python tools/check_data.py looks deeper):\n{findings_table(findings)}\n")
    return class_names, *records, findings


def make_model(settings, class_names, place, resumed):
    """The network, with the weights that model_path or pretrained names, and the names of what starts fresh.

    resumed: the checkpoint of a run that goes on, with its weights then, else None.
    """
    weights = weights_of(settings.resume, resumed) if resumed else find_start(settings, place)
    contract = weights.contract if weights else {}
    for name in ("model_name", "backbone"):
        if contract.get(name, getattr(settings, name)) != getattr(settings, name):
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}, but {weights.path} ({weights.source}) holds weights of "
                f"{contract[name]!r}: set {name} so, or model_path (or resume) to what fits."
            )
    model = build_model(
        settings.model_name,
        len(class_names),
        contract.get("pixel_rule"),
        choose_decode_rule(settings, contract),
        settings.backbone,
    )
    say = place.say
    network = f"{settings.model_name} with {settings.backbone}" if settings.backbone else settings.model_name
    say(f"{network} {'from ' + weights.path if weights else 'from scratch'}")
    if weights:
        fit = load_matching(model, weights, class_names, settings.allow_partial_backbone)
        say(f"  {weights.source}\n{loading_table(model, fit)}")
        for sentence in () if resumed else unlike(contract, settings, model.decode_rule, model.decode_defaults):
            say(f"note: {sentence}")
    if settings.anchors_path and unused_anchors(model.decode_rule):
        say(
            f"note: no map has anchors {unused_anchors(model.decode_rule)} of {settings.anchors_path}: see anchors_mask"
        )
    if not weights:
        return model, set(model.state_dict())
    return model, {*fit.missing, *(key for key, count in fit.by_class.items() if count < model.num_classes)}


def find_start(settings, place):
    """The weights to start from, fetched first where model_path names a release; None to start from scratch."""
    if settings.backbone:
        check_backbone(settings.backbone)  # before its weights are fetched
    with processes.main_rank_first(place.ranks):
        if settings.model_path:
            return read_weights(find_weights(settings.model_path), settings.weights_format)
        return read_pretrained(settings.backbone, settings.pretrained) if settings.pretrained else None


def loss_options(settings):
    """The constants of the loss block as the networks take them."""
    return LossOptions(
        settings.iou_type,
        settings.label_smoothing,
        settings.focal_loss,
        settings.focal_alpha,
        settings.focal_gamma,
        settings.ignore_iou,
        tuple(settings.map_weights),
    )


def chosen_boxes(records, settings):
    """The records with the boxes that are learned; scores look at all of them."""
    return records if settings.keep_difficult else records.without_difficult()


def images_in_memory(settings, records, augment, shapes, workers, place):
    """What gives the loader its decoded images; None where it decodes them itself."""
    if settings.cache != "ram":
        return None
    scales, shared = train_scales(records, shapes.shapes, augment), workers > 0
    fits, sentence = cache_fits(records, scales, shared, processes.processes_here())
    place.say(sentence)
    # Ranks must agree before one of them takes memory: else the others see less of it.
    if processes.sum_over_ranks(torch.tensor(float(fits), device=place.device)) < place.ranks.world_size:
        return None
    cache = RamCache(records, scales, shared)
    cache.fill("decoding into main memory" if place.ranks.is_main else None)
    return cache


def augmentation(settings):
    """The constants of the augmentation block as the loader takes them."""
    hue, saturation, brightness = settings.colour_jitter
    return AugmentSettings(
        augment_epochs=round(settings.special_aug_ratio * settings.UnFreeze_Epoch),
        mosaic=settings.mosaic,
        mosaic_prob=settings.mosaic_prob,
        mixup=settings.mixup,
        mixup_prob=settings.mixup_prob,
        scale_range=tuple(settings.scale_range),
        aspect_jitter=settings.aspect_jitter,
        flip_prob=settings.flip_prob,
        hue_gain=hue,
        saturation_gain=saturation,
        value_gain=brightness,
    )


def train_shapes(settings, augment, say):
    """The input shapes of training batches: one, or several with multi_scale."""
    if not settings.multi_scale:
        return TrainShapes([tuple(settings.input_shape)])
    shapes = multi_scale_shapes(
        tuple(settings.input_shape),
        settings.multi_scale_range,
        settings.multi_scale_period,
        augment.augment_epochs,
    )
    if len(shapes.shapes) == 1:
        say("note: multi_scale is True, but multi_scale_range holds no other multiple of 32: widen it.")
    say("input sizes: " + ", ".join(f"{height}x{width}" for height, width in sorted(shapes.shapes)))
    return shapes


def build_loaders(settings, train_records, val_records, augment, batch_size, place):
    """The loader of training batches, batch_size of them at first, and that of validation batches."""
    workers, of_all = place.workers(settings.num_workers), place.ranks.of_all
    shapes = train_shapes(settings, augment, place.say)
    train_loader = build_train_loader(
        train_records,
        augment,
        settings.seed,
        shapes,
        batch_size,
        workers,
        *of_all,
        place.on_gpu,
        images_in_memory(settings, train_records, augment, shapes, workers, place),
        settings.worker_timeout,
    )
    val_loader = build_val_loader(
        chosen_boxes(val_records, settings),
        tuple(settings.input_shape),
        augment.rule,
        2 * settings.Unfreeze_batch_size,
        min(workers, 2),
        place.on_gpu,
        *of_all,
        settings.worker_timeout,
    )
    return train_loader, val_loader


def leave_black_box(error, log, model, criterion, stepper, records, settings, epoch, place):
    """Write what led to a NotFiniteError, and raise it with what it was and what to do."""
    folder = Path(processes.from_main(str(log.folder) if log else ""))
    path = folder / (black_box.BLACK_BOX if log else f"black_box_rank{place.ranks.rank}.pth")
    paths = [records.path(index) for batch in error.batches for index in batch.indices]
    path = path if folder.is_dir() else None  # another machine may not see the disk of the main one
    cause = black_box.write_black_box(
        path, model, criterion, stepper, error.batches, paths, plain(vars(settings)), epoch
    )
    raise NotFiniteError(
        f"{error} In epoch {epoch + 1}, first of all {cause}, with the images {', '.join(paths[:4])}"
        f"{' ...' if len(paths) > 4 else ''}. These steps were left out, so the weights are those before. Lower "
        "Init_lr, set clip_grad_norm = 10, or rule out mixed precision by fp16 = False, and go on with --resume="
        f"{quoted(folder)}. {path or black_box.BLACK_BOX} holds the batch for a closer look."
    ) from error


def config(**changes):
    """Settings for main(): the constants above, with these changes, checked. As many as you like, by name.

    `train.main(train.config(UnFreeze_Epoch=30, save_dir="my_logs"))` is a training from Python.
    Raises ValueError for an unknown name and an impossible value.
    """
    constants = script_constants(globals())
    return check_training(settings_to_go_on(constants, with_changes(constants, changes), changes))


def main(settings):
    """Train as the settings say. Returns (folder of the run, scores of the last evaluation or None)."""
    place = machine.set_up(settings)
    say, device, ranks = place.say, place.device, place.ranks
    resumed = processes.from_main(read_checkpoint(settings.resume) if settings.resume and ranks.is_main else None)

    # What it learns from, what learns, and how it is judged
    class_names, train_records, val_records, findings = read_data(settings, say)
    train_records = chosen_boxes(train_records, settings)
    model, fresh = make_model(settings, class_names, place, resumed)
    model = processes.with_sync_bn(model.to(device, memory_format=torch.channels_last), settings.sync_bn, place)
    criterion = build_criterion(model, loss_options(settings))
    augment = augmentation(settings)
    contract = make_contract(
        model, class_names, tuple(settings.input_shape), augment.rule, settings=plain(vars(settings))
    )
    phases = phases_of(settings)
    check_batches(phases, ranks)
    if resumed:
        check_same_run(settings.resume, resumed, contract, settings)
        say("\n".join(words_to_go_on(settings.resume, resumed, settings)))
    for sentence in (
        *advice(settings, phases, len(train_records), ranks),
        stuck_at_random(model, settings, phases, fresh),
    ):
        say(f"note: {sentence}") if sentence else None
    train_loader, val_loader = build_loaders(settings, train_records, val_records, augment, phases[0].batch_size, place)

    # What moves it: the frozen part joins the optimiser when it is unfrozen
    schedule = Schedule(settings)
    say(f"\n{training_table(model, settings, phases)}")
    model.freeze(frozen_parameters(model, settings, phases[0].frozen))
    factor_of = rate_factors(model, settings.lr_scale)
    groups = parameter_groups(model, settings.weight_decay, phases[0].first, factor_of)
    optimizer = build_optimizer(settings.optimizer_type, groups, settings.momentum)
    average = ModelEma(model, steps_of(phases, len(train_records), settings.accumulate)) if settings.ema else None
    stepper = Stepper(
        model, optimizer, average, place.precision, device, settings.clip_grad_norm, settings.clip_norm_type
    )
    judged = average.model if average else model

    def enter(phase):
        """Let a phase's layers learn. Returns the BatchNorm layers that rested until now."""
        woken = model.freeze(frozen_parameters(model, settings, phase.frozen))
        take_in(optimizer, parameter_groups(model, settings.weight_decay, phase.first, factor_of))
        return woken

    def begin(phase):
        """The network as a phase trains it: unfrozen without a leap, compiled, wrapped for several devices."""
        train_loader.batch_sampler.set_epoch(phase.first, phase.batch_size)
        woken = enter(phase)
        if woken:
            adopt_statistics(model, woken, train_loader, device)
            average.take_over(model, woken) if average else None
        shape = (phase.batch_size // ranks.world_size, 3, *settings.input_shape)
        network = compile_if_faster(model, criterion, stepper, shape, place) if settings.compile else model
        return processes.parallel(network, place)

    # What it leaves
    log, courses = None, joining_groups(model, settings, phases)
    if ranks.is_main:
        run = Run(settings, class_names, train_records, val_records, model.decode_rule, train_loader.num_workers)
        try:
            log = RunLog(settings, contract, run, ranks.world_size, say, resumed["log"] if resumed else None)
            write_findings(log.folder / "findings.csv", findings)
            rates = planned_rates(settings, phases, courses)
            draw_planned_rates(*rates, courses, settings.lr_decay_type, log.folder / "planned_lr.png")
        except OSError as error:
            raise ValueError(
                f"save_dir is {settings.save_dir!r}, and {error.filename or 'a file'} could not be written there "
                f"({error.strerror}): make room or give the right to write, or choose another save_dir."
            ) from error
    del findings  # hundreds of thousands in a bad data set, and every worker would get a copy

    with StopSignals() as signals:
        state, order = TrainingState(stepper, schedule), [settings.seed, len(train_records)]
        keeper = Keeper(state, log, settings, script_constants(globals()), order, place, signals)
        start, tally = (position_of(resumed) if resumed else Position(settings.Init_Epoch)), None
        ahead = [phase for phase in phases if phase.last > start.epoch]
        phase, epoch, sizes = ahead[0], start.epoch, train_loader.batch_sampler.shapes.shapes
        try:
            say(f"rehearsal: {rehearse_steps(model, judged, criterion, settings, ahead, sizes, train_records, place)}")
            if resumed:
                for begun in filter(start.has_begun, phases):
                    enter(begun)
                start, tally = keeper.restore(resumed)
                del resumed
            keeper.save(start, tally)
            if log:
                log.saver.close()  # which says so where the checkpoint could not be written
                say(f"           {rehearse_disk(keeper.path, settings, ahead, judged)}\n")
                log.draw_data(train_loader, phase)

            for phase, epoch in epochs_of(ahead, start):
                if epoch == max(phase.first, start.epoch):
                    network, rates = begin(phase), rates_of(settings, phase)
                network.train()
                criterion.use_l1 = not augment.mosaic or epoch >= augment.augment_epochs  # where a loss has it
                position = start if epoch == start.epoch else Position(epoch)
                tally = tally or Tally()
                train_loader.batch_sampler.set_epoch(epoch, phase.batch_size, position.images)

                def set_rates_at(share, epoch=epoch, rates=rates):
                    return schedule.set_rates(optimizer, epoch + share, *rates)

                def after_step(batches, position=position, size=phase.batch_size, tally=tally):
                    keeper.after_step(position.after(batches, size, len(train_records)), tally)

                result = train_one_epoch(
                    network,
                    criterion,
                    train_loader,
                    stepper,
                    set_rates_at,
                    settings.accumulate,
                    f"epoch {epoch + 1}/{settings.UnFreeze_Epoch}" if ranks.is_main else "",
                    tally,
                    position.batches(phase.batch_size),
                    after_step,
                )

                is_due = (epoch + 1) % settings.eval_period == 0 or epoch + 1 == settings.UnFreeze_Epoch
                judged.eval()
                processes.follow_main(judged)
                criterion.use_l1 = False  # so that validation losses of all epochs compare
                evaluation = evaluate(
                    judged,
                    val_loader,
                    val_records,
                    class_names,
                    device,
                    place.precision.dtype,
                    criterion,
                    scored=settings.eval_flag and is_due,
                    ranks=ranks,
                    after_batch=partial(after_step, position.batches(phase.batch_size) + len(train_loader)),
                )
                schedule.end_epoch(evaluation.loss)
                is_over = log.end_epoch(epoch, phase, result, evaluation, judged) if log else None
                is_over, tally = processes.from_main(is_over), None
                keeper.save(Position(epoch + 1), is_over=is_over)
                if is_over:
                    break
            keeper.close()
        except KeyboardInterrupt:
            say(f"\nLeft at once. What was saved last is in {keeper.path}.")
            log = None  # no last pictures
            raise
        except NotFiniteError as error:
            leave_black_box(error, log, model, criterion, stepper, train_records, settings, epoch, place)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise ValueError(memory_words(settings, phase)) from error
            raise
        finally:
            if log:
                log.close()
            processes.leave_ranks()

    if log:
        log.saver.close()
        log.summarise()
    return (log.folder, log.scores) if log else (None, None)


if __name__ == "__main__":
    run_script(main, script_constants(globals()), check_training, complete=settings_to_go_on)
