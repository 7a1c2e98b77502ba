"""Train a YOLO detector. Edit the constants below, then run `python train.py`.

Any constant can be changed for one run instead: `python train.py --UnFreeze_Epoch=30 --fp16=False`.
As shipped it trains yolox_nano from scratch on the drawn sample in VOCdevkit/Sample and reaches a VOC mAP@0.5 of about
0.94 in less than five minutes on two CPU cores. Results land in logs/; `python predict.py` draws boxes with them.
"""

import utils.runtime.startup  # noqa: F401 # isort: skip
from utils.checkpoint.checkpointer import Checkpointer, Progress, progress_of
from utils.checkpoint.resume import load_checkpoint, resolve_resume
from utils.checkpoint.run_folder import check_disk
from utils.config.cli import override, run_script
from utils.config.constants import read_constants
from utils.config.rules import check_training
from utils.data.sampling import order_key
from utils.evaluation.evaluate import evaluate
from utils.io.logger import end_log_file
from utils.reporting.run_logger import start_run
from utils.runtime.device import init_runtime
from utils.runtime.distributed import broadcast_object
from utils.runtime.signals import StopSignals
from utils.training import build, dataset
from utils.training.batch_size import choose_batch_sizes
from utils.training.engine import LossMeter, train_one_epoch
from utils.training.interruptions import interruptions
from utils.training.lr_schedule import LRSchedule
from utils.training.phases import (
    build_phases,
    is_scored,
    remaining_epochs,
    remaining_phases,
    start_phase,
    unfreeze_begun,
)
from utils.training.preflight import preflight

# ----------------------------------------------------------------------------------------------------------------------
#   WHAT A FIRST TRAINING NEEDS
#
#   classes_path            Text file with one class name per line, in any order that stays the same for this model, or
#                           a data.yaml. THE constant to change for your own data; forgetting it is the commonest
#                           mistake. '' takes the names from the annotations, where these have names. The run's folder
#                           gets classes.txt.
#   train_annotation_path   What to train on. Either a split of a VOC folder, which is read as it is
#                               VOCdevkit/VOC2007/ImageSets/Main/train.txt   (Annotations/ and JPEGImages/ beside it)
#                           or a COCO file, which ends in .json
#                               coco/annotations/instances_train2017.json    (the images in coco/train2017/)
#                           or YOLO's layout: its data.yaml or obj.data for both constants, or a folder of images
#                               my_data/images/train                         (the boxes in my_data/labels/train/)
#                           or a folder of images with the XML file of VOC or the JSON file of LabelMe beside each,
#                           or a list file with lines `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...`
#                               2007_train.txt
#                           or a list of several of these, each read by its own format: source_weights, below
#                               ["my_data/data.yaml", "pseudo/data.yaml"]
#                           `python tools/voc_annotation.py` splits a VOC folder, `python tools/split_data.py` all other
#                           layouts; `python tools/check_data.py` shows what is wrong with the data, and pictures.
#   val_annotation_path     What to validate on, in any of these forms.
#   model_name              yolox_nano, yolox_tiny, yolox_s, yolox_m, yolox_l or yolox_x: 0.9 to 99 million parameters;
#                           yolov4_tiny, yolov4: 6 and 64 million, with anchors; dfine_n, dfine_s, dfine_m, dfine_l,
#                           dfine_x: 4 to 63 million, without suppression. Larger is more accurate and slower; on a CPU
#                           stay with nano or one of the tiny ones, on a weak GPU with yolox_s or dfine_n.
#   model_path              Weights to start from, of the same network: a .pth that a training wrote into logs/, an
#                           official YOLOX or D-FINE file, a state dict of YOLOX or YOLOv4 of another PyTorch repo, a
#                           backbone's, a Darknet file such as yolov4.weights; the content says which it is. Or the name
#                           of a release, which is fetched once into model_data/: yolox_nano, yolox_tiny, yolox_s,
#                           yolox_m, yolox_l, yolox_x, dfine_n and so on, yolov4, yolov4_tiny and more. ''
#                           starts from scratch. Real pictures want pretrained weights in nearly every case: from
#                           scratch takes thousands of images and hundreds of epochs. Classes may be others; those of
#                           the same name go on.
#   input_shape             [height, width] the network sees, multiples of 32. [224, 224] does for the drawn sample;
#                           photographs want [416, 416] or [640, 640], which finds small objects better and takes 2.4
#                           times the time and memory. The smallest objects should measure 10 pixels or more in it.
#   Freeze_Epoch            With Freeze_Train = True (below): last epoch in which the backbone is frozen, so that its
#                           pretrained weights rest while neck and head learn.
#   UnFreeze_Epoch          Last epoch of all, frozen ones included. Equal to Freeze_Epoch: never unfreezes, which is
#                           what a weak machine can do.
#   Freeze_batch_size       Images in a batch while the backbone is frozen: one to two times Unfreeze_batch_size, or 0,
#                           as there.
#   Unfreeze_batch_size     Images in a batch once everything trains. As large as memory allows, up to 16 or so; at
#                           least 2, because BatchNorm has no statistics in a batch of 1. "Out of memory": lower this or
#                           input_shape. 0 takes the largest that fits, up to 64 on each GPU: real steps are measured
#                           at the start, and the number stays the run's; on a CPU it is 8. With few images a smaller
#                           one learns better, as an epoch has more steps.
# ----------------------------------------------------------------------------------------------------------------------
classes_path = "model_data/sample_classes.txt"
train_annotation_path = "VOCdevkit/Sample/ImageSets/Main/train.txt"
val_annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"
model_name = "yolox_nano"
model_path = ""
input_shape = [224, 224]
Freeze_Epoch = 10
UnFreeze_Epoch = 100
Freeze_batch_size = 16
Unfreeze_batch_size = 8

# ----------------------------------------------------------------------------------------------------------------------
#   RECIPES: what to change in typical situations. All else stays as it is.
#
#   From the weights of a whole model  model_path = 'model_data/yolox_nano.pth', input_shape = [416, 416],
#   (nearly always the right one)      UnFreeze_Epoch = 30 for hundreds of images, 50 to 100 for thousands. The name
#                                      yolox_nano alone fetches the file. YOLOv4-tiny: model_name and model_path =
#                                      'yolov4_tiny'
#       on a GPU                       model_name = model_path = 'yolox_s' or 'dfine_s', input_shape = [640, 640],
#                                      Unfreeze_batch_size = 16: more accurate
#       frozen at the start            Freeze_Train = True, Freeze_Epoch = 10: a sixth less time for 30 epochs
#       with sgd                       optimizer_type = 'sgd'
#   From a backbone alone              model_path = its file, input_shape = [416, 416], Freeze_Train = True,
#                                      Freeze_Epoch = 50, UnFreeze_Epoch = 200: neck and head have everything to learn
#   YOLOv4 from Darknet's backbone     model_name = 'yolov4', model_path = 'yolov4.conv.137', and as in the line above
#   From a backbone of torchvision     model_name = 'yolov4', backbone = 'resnet50', pretrained = True, model_path = '',
#                                      and as in the line above
#   From scratch                       model_path = '', input_shape = [416, 416], UnFreeze_Epoch = 300,
#                                      mosaic_prob = 1.0. The drawn sample gets by with less, as shipped.
#
#   Your own pictures, and a whole model's weights from COCO (everyday things in photographs):
#   few, and similar to COCO           train_only = ['head']
#   few, and different                 freeze_blocks = 3: all behind the first blocks learns
#   many, and similar                  lr_scale = {'backbone': 0.1, 'neck': 0.1}: what is trained already goes on at a
#                                      tenth of the rate (YOLOX and YOLOv4; dfine has such factors by itself)
#   many, and different                from scratch; or from the weights, with twice the epochs
#
#   A weak GPU, or a CPU               Freeze_Train = True, Freeze_Epoch = 30, UnFreeze_Epoch = 30: only the frozen
#                                      phase; Freeze_batch_size = 4, accumulate = 4, fp16 = True, yolox_nano at
#                                      [416, 416]
#   Batch sizes                        as large as memory allows; Freeze_batch_size 1 to 2 times Unfreeze_batch_size;
#                                      0 finds the largest that fits
#   Go on where a run was broken off   resume = True, or --resume=True: exactly as if it had never stopped
#   Train a finished run further       --resume=logs/loss_<date and time> --UnFreeze_Epoch=more
#   Go on from weights in logs/        model_path = 'logs/last_epoch_weights.pth', Init_Epoch = epochs they have seen
# ----------------------------------------------------------------------------------------------------------------------


# ======================================================================================================================
#   RARELY CHANGED. What stands below this line suits nearly everybody as it is.
# ======================================================================================================================

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
#   num_workers     Processes that prepare images beside the training. -1 chooses: with a GPU all cores but two, up to
#                   16; none on a CPU, where they would take the cores that the network needs. Raise it where an epoch's
#                   line shows much "data wait"; lower it where main memory is short.
#   worker_timeout  Seconds after which a worker that gives no batch counts as hung, which ends the run with the image
#                   that it was reading; 0 waits for ever. Raise it where images come over a slow network.
#   cpu_threads     Threads of the network's computations on a CPU. 0 takes one per core; fewer leave cores for others.
#   compile         How steps are sped up on a GPU: 'graphs', 'default', or '' for neither. 'graphs' records a whole
#                   step once and then runs it by one call, to the same numbers: with one GPU, sgd, adam or adamw, and
#                   accumulate = 1, and elsewhere steps run one operation at a time. 'default' is torch.compile, which
#                   translates the network for some minutes per phase and pays in long trainings; with multi_scale only
#                   batches of input_shape itself gain. Where either fails, training says so and goes on without.
#   cudnn_benchmark Let cuDNN try which algorithm is fastest for each size of input. On an H100 the search took 20 s for
#                   every new size of batch and gained nothing, so it is off; on older GPUs with large networks and a
#                   single input size it can pay in long trainings.
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
compile = "graphs"
cudnn_benchmark = False
deterministic = False
seed = 11

# ----------------------------------------------------------------------------------------------------------------------
#   MORE ON THE DATA
#
#   keep_difficult  Learn boxes that are marked difficult (VOC), and crowds (COCO), too. False leaves them out, as most
#                   do: they are hard to make out, or stand for many objects. Scores never count them.
#   source_weights  Where train_annotation_path is a list: a number above 0 for each source, how often its images are
#                   seen relative to those of the others, such as [1.0, 0.5]. An epoch keeps its length. [] is 1 for
#                   all.
#   cache           Where decoded training images are kept: 'ram', 'disk', 'gpu', or '' for nowhere. 'ram' decodes every
#                   training image once, before the first epoch, and keeps it in main memory at the size of the input,
#                   one copy for all workers. It spares a quarter to a half of the loader's work. Training says how much
#                   it takes, and goes on without where it does not fit. Zoomed parts of images become a little softer.
#                   'disk' keeps the same pixels in a file beside train_annotation_path, or in save_dir where that is
#                   read-only or full, and all later runs find it there: for data sets that are larger than memory, and
#                   for many runs on the same images. It is made anew where an image or input_shape has changed; delete
#                   it when you need the room. 'gpu' keeps the images on the GPU and draws mosaic, colours and all else
#                   there, for data sets of some thousand images; where that does not fit, 'ram' takes its place.
#   tile            Cut images into tiles of so many pixels a side, and learn and detect in these and in the whole
#                   image: for objects that are a few pixels wide once a large image is as small as input_shape. An
#                   object of 20 pixels in a tile of 640 has 13 at an input of 416. Each image takes the time of its
#                   tiles; with cache = 'ram' it is decoded once. The weights remember it. 0: whole images.
#   tile_overlap    Share of a tile that its neighbours show too. Objects up to this size are whole in one of them.
#   tile_empty      At most this share of an epoch are tiles without objects, other ones in each epoch; 1 takes all.
# ----------------------------------------------------------------------------------------------------------------------
keep_difficult = False
source_weights = []
cache = ""
tile = 0
tile_overlap = 0.2
tile_empty = 0.5

# ----------------------------------------------------------------------------------------------------------------------
#   MORE ON THE NETWORK
#
#   backbone        A backbone of torchvision in the place of the network's own: resnet18, resnet34, resnet50,
#                   resnet101, mobilenet_v2, mobilenet_v3_large, efficientnet_b0, efficientnet_v2_s, convnext_tiny,
#                   convnext_small, swin_t, swin_s. '' keeps the network's own, which is nearly always right.
#   pretrained      For a torchvision backbone: True starts it from its usual ImageNet weights, a name such as
#                   'IMAGENET1K_V2' from others. They are fetched once. Neck and head then start from no weights.
#   weights_format  How a foreign file's weights expect their images, where its content cannot tell: 'yolox' (BGR,
#                   0-255), 'yolox_rgb' (YOLOX before release 0.1.1), 'flat_yolox', 'flat_yolov4' (other PyTorch repos),
#                   'darknet', 'dfine', 'deim' (D-FINE with other activations), 'torchvision'. '' decides by the
#                   content, and the lines at the start say what was decided.
#   allow_partial_backbone  True also takes weights that do not fill the whole backbone. They rarely help.
#   anchors_path    Only for yolov4 and yolov4_tiny: a file of box sizes, width,height, in pixels of the input. '' takes
#                   those of the weights, else the usual ones, which are those of model_data/yolo_anchors.txt and
#                   model_data/yolo_tiny_anchors.txt. Anchors of your own help where all objects have unusual shapes.
#   anchors_mask    Which anchors each map has, counted from 0, coarse map (large objects) first. [] takes those of the
#                   weights, else the usual ones: [[6, 7, 8], [3, 4, 5], [0, 1, 2]], tiny [[3, 4, 5], [1, 2, 3]], which
#                   leaves anchor 0 out; with six anchors of your own write [[3, 4, 5], [0, 1, 2]].
# ----------------------------------------------------------------------------------------------------------------------
backbone = ""
pretrained = False
weights_format = ""
allow_partial_backbone = False
anchors_path = ""
anchors_mask = []

# ----------------------------------------------------------------------------------------------------------------------
#   AUGMENTATION
#
#   mosaic              Join four images into one: more objects, more scales, more contexts per step. The strongest help
#                       on small data sets.
#   mosaic_prob         Probability of it. 0.5 for short trainings, up to 1 for long ones.
#   mixup               Blend a sample with a second one (mosaic again). Helps large models and long trainings; small
#                       models on little data are better without.
#   mixup_prob          Probability of it.
#   copy_paste          Cut boxes of rare classes out of other images, and paste up to three of them into a sample, with
#                       this probability. Try 0.5 where classes have a few dozen boxes and others far more; with
#                       hundreds of each it changed nothing. 0 is off.
#   special_aug_ratio   All augmentation stops after this share of the epochs: its images are far from real ones, and
#                       the last epochs should see real ones.
#   scale_range         Zoom of each image, relative to the size at which it just fits: [smallest, largest]. [0.5, 1.5]
#                       where objects come in very different sizes, closer to [1, 1] where they do not.
#   aspect_jitter       Stretch: width / height changes by up to this share.
#   flip_prob           Mirror left-right with this probability. 0 where left and right differ in meaning (letters, road
#                       signs).
#   colour_jitter       [hue, saturation, brightness]: largest random change. Lower the hue where colour decides the
#                       class.
#   multi_scale         Train on inputs of several sizes, which makes the network sure of objects at sizes that the data
#                       rarely show, and wants more epochs. It ends with the other augmentation.
#   multi_scale_range   input_shape times the smallest to the largest of these, in steps of 32 pixels. The largest size
#                       decides the memory: 1.25 takes 1.6 times as much.
#   multi_scale_period  Another size every so many batches.
# ----------------------------------------------------------------------------------------------------------------------
mosaic = True
mosaic_prob = 0.5
mixup = False
mixup_prob = 0.5
copy_paste = 0.0
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
#   focal_loss      Let the many easy cells without an object count less. Try it where objects are very rare; for
#                   ordinary data leave it off.
#   focal_alpha     Weight of cells with an object; the others weigh 1 - focal_alpha.
#   focal_gamma     Power by which easy cells count less: 0 none, 2 usual.
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
#   WHAT IS FROZEN, AND HOW BATCHES BECOME STEPS. After set-up a table shows what trains in which phase, and how fast.
#
#   Freeze_Train        True: up to Freeze_Epoch the backbone keeps its pretrained weights. Such an epoch takes half the
#                       time and little memory; but where all trains from the first epoch on, the detector became better
#                       on all data sets that were tried. Without pretrained weights there is nothing to freeze, and
#                       training says so and skips this phase.
#   Init_Epoch          Epochs already done; above 0 to go on with weights from logs/ (set model_path to them). At or
#                       beyond Freeze_Epoch training starts in the second phase.
#   accumulate          Sum the gradients of this many batches before each step: the effect of a large batch in the
#                       memory of a small one, but for BatchNorm, which sees the small batches. The learning rate
#                       follows batch size times accumulate.
#   freeze_layers       Names of what shall be frozen: 'backbone', 'neck', 'head', or the beginning of parameter names,
#                       such as 'head.cls_preds' or 'backbone.backbone.stem' (`python tools/summary.py` shows them).
#   freeze_blocks       The first so many blocks of the backbone are frozen: 2 or 3 of its 5 or 6. They know edges and
#                       colours, which all pictures share.
#   train_only          The opposite of both: only these names train.
#   freeze_whole_run    True: the layers named here are frozen from the first epoch to the last, and Freeze_Train adds
#                       the whole backbone up to Freeze_Epoch. False: they are frozen up to Freeze_Epoch only, in the
#                       place of the whole backbone.
# ----------------------------------------------------------------------------------------------------------------------
Freeze_Train = False
Init_Epoch = 0
accumulate = 1
freeze_layers = []
freeze_blocks = 0
train_only = []
freeze_whole_run = True

# ----------------------------------------------------------------------------------------------------------------------
#   LEARNING
#
#   optimizer_type  'adamw', or 'sgd', 'adam', 'rmsprop', 'adagrad'. adamw won on all data sets that were tried, sgd is
#                   the usual choice for thousands of images and hundreds of epochs.
#   Init_lr         Highest learning rate for a batch of 64 images. It is scaled to the real batch (batch * accumulate /
#                   64 * Init_lr), again at the unfreeze epoch, and kept within 1e-4..2e-3 (adamw, adam; both fall with
#                   the width of the network), 5e-4..5e-2 (sgd), 1e-4..5e-4 (rmsprop) or 1e-3..2e-2
#                   (adagrad). None takes what suits:
#                       adamw, adam         8e-3 for yolox_nano, 4e-3 for yolox_s and yolov4_tiny, 2e-3 for yolox_l;
#                                           4e-3 for dfine_n, 2e-3 for dfine_s, 1e-3 for dfine_m, l and x
#                       sgd                 1e-2
#                       rmsprop, adagrad    1e-3, 8e-2
#                   Where the loss jumps or becomes NaN: a tenth.
#   Min_lr          Lowest learning rate, for a batch of 64, scaled likewise. None is a hundredth of Init_lr.
#   momentum        None takes 0.937 for sgd, 0.9 for the others (adagrad has none).
#   weight_decay    Pull of the weights to zero against learning by heart. None takes 5e-2 for adamw, 5e-4 for sgd and 0
#                   for the others, where it acts wrongly. BatchNorm and biases are left out.
#   lr_decay_type   How the rate falls. Every schedule begins with a warm-up, and again for layers that are unfrozen;
#                   the log folder gets a picture of it, planned_lr.png. None takes what suits the network: 'cos', and
#                   'flat_cos' for dfine.
#                       'cos'        a half cosine, then a flat end
#                       'flat_cos'   stays for the first 55 % of the epochs, then a half cosine
#                       'step'       times lr_gamma every lr_step_size epochs
#                       'multistep'  times lr_gamma at each of lr_milestones
#                       'exp'        times lr_gamma every epoch
#                       'plateau'    times lr_factor once the validation loss has not fallen for more than lr_patience
#                                    epochs; then it waits lr_cooldown epochs. For trainings of unknown length.
#                       'constant'   stays
#                   or a function of your own, epoch (from 0) -> factor of the rate, written above the constant:
#                       def my_schedule(epoch):
#                           return 1.0 if epoch < 20 else 0.1
#                       lr_decay_type = my_schedule
#   lr_step_size    Epochs between the steps of 'step'. None: a third of the run.
#   lr_milestones   Epochs of the steps of 'multistep'. []: at 70 % and 90 % of the epochs.
#   lr_gamma        Factor of a step. None: a tenth; with 'exp' so that the last epoch ends at Min_lr.
#   lr_factor       Factor of a step of 'plateau'.
#   lr_patience     Epochs without progress before a step of 'plateau'.
#   lr_cooldown     Epochs after a step of 'plateau' in which none follows.
#   lr_scale        Factors of the rate by name, as in freeze_layers: {'backbone': 0.1} lets the backbone learn at a
#                   tenth of the rate, which keeps good features; 0 freezes for the whole run. Of several names that
#                   mean a parameter the longest counts. None takes what suits the network: a slow backbone for dfine.
#   clip_grad_norm  Longest gradient allowed, a safeguard against single wild steps; 0 is off. None takes what suits the
#                   network: 10, and 0.1 for dfine.
#   clip_norm_type  How its length is measured: 2.0 as usual, float("inf") by its largest entry.
#   ema             Evaluate and save the running average of the weights instead of their last values: smoother and
#                   nearly always better. It looks back over 5 % of the run.
# ----------------------------------------------------------------------------------------------------------------------
optimizer_type = "adamw"
Init_lr = None
Min_lr = None
momentum = None
weight_decay = None
lr_decay_type = None
lr_step_size = None
lr_milestones = []
lr_gamma = None
lr_factor = 0.5
lr_patience = 5
lr_cooldown = 0
lr_scale = None
clip_grad_norm = None
clip_norm_type = 2.0
ema = True

# ----------------------------------------------------------------------------------------------------------------------
#   SAVING AND EVALUATING
#
#   resume            True goes on with the newest run under save_dir, exactly where it was broken off: into the same
#                     folder, with the same settings and the same results as if it had never stopped. Or the folder of a
#                     run. Settings given on the command line, or edited here since, count instead of the run's, and
#                     training says so: with a larger UnFreeze_Epoch it goes on for longer. False begins a new run.
#   save_minutes      Minutes between two savings within an epoch; the end of each epoch saves anyway, and so do Ctrl-C
#                     and a system that asks the program to stop. So only a power cut or kill -9 costs anything: this.
#   keep_checkpoints  How many of the files ep...pth stay, the newest ones. 0 keeps all of them.
#   save_dir          Each run makes a folder logs/loss_<date and time> in it. Beside the folders best_epoch_weights.pth
#                     and last_epoch_weights.pth are always those of the newest run.
#   save_period       Epochs between the weight files ep...pth that are kept. last_epoch_weights.pth is written every
#                     epoch.
#   eval_flag         True: measure the mAP on the validation set; best_epoch_weights.pth are those of the best mAP.
#                     False: of the lowest validation loss.
#   eval_period       Epochs between two measurements. The last epoch is always measured.
#   patience          Stop once the mAP (with eval_flag = False: the validation loss) has not become better for so many
#                     epochs, which a measurement must show. 0 is off. The last epochs, without mosaic, often bring the
#                     best mAP: with less than a third of UnFreeze_Epoch they may never be reached.
#   report_language   'en' or 'zh', the language of report.html, the page in the folder of the run that shows scores,
#                     curves and the worst pictures.
# ----------------------------------------------------------------------------------------------------------------------
resume = False
save_minutes = 10.0
keep_checkpoints = 0
save_dir = "logs"
save_period = 10
eval_flag = True
eval_period = 5
patience = 0
report_language = "en"


def config(**changes):
    """Settings for main(): the constants above, with these changes, checked. As many as you like, by name.

    `train.main(train.config(UnFreeze_Epoch=30, save_dir="my_logs"))` is a training from Python.
    Raises UserError for an unknown name and an impossible value.
    """
    end_log_file()  # of a training that failed before in this process
    constants = read_constants(globals())
    return check_training(resolve_resume(constants, override(constants, changes), changes))


def main(settings):
    """Train as the settings say. Returns (folder of the run, scores of the last evaluation or None)."""
    runtime = init_runtime(settings)
    checkpoint = load_checkpoint(settings.resume, runtime)

    data = dataset.load_dataset(settings)
    model = build.build_detector(settings, data.class_names, runtime, checkpoint)
    criterion = build.build_loss(settings, model)
    settings = choose_batch_sizes(settings, model, criterion, runtime, data.entries)
    train_loader, val_loader = build.build_loaders(settings, data, runtime, model.resize_rule)

    phases = build_phases(settings, runtime.dist.world_size)
    schedule = LRSchedule(settings)
    optim = build.build_optim(settings, model, criterion, phases, runtime, data.epoch_length)

    run_logger = start_run(settings, data, model, phases, runtime, train_loader.num_workers, checkpoint)
    order = order_key(len(data.entries), settings.seed, data.repeats)
    constants, signals = read_constants(globals()), StopSignals()
    checkpointer = Checkpointer(run_logger, runtime, settings, constants, order, signals, optim, schedule)
    progress, meter = progress_of(checkpoint) if checkpoint else Progress(settings.Init_Epoch), LossMeter()
    ahead = remaining_phases(phases, progress)
    checkpointer.phase = ahead[0]

    with interruptions(run_logger, checkpointer, optim, train_loader, settings):
        memory = preflight(optim, settings, ahead, train_loader)
        if checkpoint:
            unfreeze_begun(optim, phases, progress, settings)
            progress = checkpointer.load(checkpoint, meter)
            del checkpoint
        checkpointer.save(progress, meter)
        check_disk(checkpointer, settings, ahead)
        run_logger.draw_data(train_loader, ahead[0])

        for phase, epoch, begins in remaining_epochs(ahead, progress):
            after_step = checkpointer.begin_epoch(phase, progress, meter)
            if begins:
                network = start_phase(phase, optim, train_loader, settings)
            train_loader.batch_sampler.set_epoch(epoch, phase.batch_size, progress.images)

            title = f"epoch {epoch + 1}/{settings.UnFreeze_Epoch}" if runtime.dist.is_main else ""
            set_lr, done = schedule.of_epoch(optim.optimizer, phase, epoch), progress.batches(phase.batch_size)
            result = train_one_epoch(network.train(), train_loader, optim, set_lr, meter, done, title, after_step)
            memory.check(phase)
            evaluation = evaluate(
                optim.eval_model,
                val_loader,
                data.val,
                data.class_names,
                runtime,
                criterion,
                scored=is_scored(settings, epoch),
                after_batch=after_step,
                tiles=data.tiles,
            )
            schedule.end_epoch(evaluation.loss)
            is_over = broadcast_object(run_logger.end_epoch(epoch, phase, result, evaluation, optim.eval_model))
            progress, meter = Progress(epoch + 1), LossMeter()
            checkpointer.save(progress, is_over=is_over)
            if is_over:
                break
    run_logger.summarise()
    end_log_file()
    return run_logger.folder, run_logger.scores


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_training, complete=resolve_resume)
