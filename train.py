"""Train a YOLO detector. Edit the constants below, then run `python train.py`.

Any constant can be changed for one run instead: `python train.py --UnFreeze_Epoch=30 --fp16=False`.
As shipped it trains yolox_nano from scratch on the drawn sample in VOCdevkit/Sample and reaches a VOC mAP@0.5 of about
0.93 in less than five minutes on two CPU cores. Results land in logs/; `python predict.py` draws boxes with them.
"""

import utils.threads  # noqa: F401 # isort: skip
import math
from typing import NamedTuple

import torch

from nets import build_criterion, build_model
from utils import device as machine
from utils import outputs
from utils.checkpoint import describe_fit, load_matching, make_contract, read_weights
from utils.config import check_training, run_script, script_constants
from utils.data.annotations import read_annotations, read_class_names
from utils.data.dataset import build_train_loader, build_val_loader
from utils.data.plan import AugmentSettings
from utils.engine import Stepper, train_one_epoch
from utils.eval.evaluate import evaluate
from utils.eval.scores import format_scores
from utils.history import History
from utils.optim import ModelEma, build_optimizer, parameter_groups, scaled_rates, set_rates, take_in
from utils.unfreeze import adopt_statistics

# ----------------------------------------------------------------------------------------------------------------------
#   THE MACHINE
#
#   Cuda            True trains on the GPU; without a usable GPU training says so and runs on the CPU.
#   gpu_ids         Which GPUs to use, as numbers with commas: '0' or '0,2'. '' uses all. It does what
#                   CUDA_VISIBLE_DEVICES does in a Linux shell, on any system.
#   distributed     False: one process, which drives one GPU, or several by DataParallel.
#                   True: one process per GPU (DDP, faster). It needs a launcher:
#                       CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py --distributed=True
#   sync_bn         Share BatchNorm statistics between the GPUs of a distributed run. It helps where each GPU holds only
#                   a few images, and costs some time.
#   fp16            Mixed precision: about half the memory and up to twice the speed, no loss of accuracy to speak of.
#                   bfloat16 where the hardware has it (GPUs from Ampere on, newer CPUs), else float16 on GPUs and
#                   float32 on CPUs. Set it to False only to rule it out as the cause of a problem.
#   num_workers     Processes that prepare images beside the training. -1 chooses: one per core up to 8 with a GPU, none
#                   on a CPU, where they would take the cores that the network needs. Raise it where an epoch's line
#                   shows much "data wait"; lower it where main memory is short.
#   seed            Same seed, same settings: same augmentation and same start weights.
# ----------------------------------------------------------------------------------------------------------------------
Cuda = True
gpu_ids = ""
distributed = False
sync_bn = False
fp16 = True
num_workers = -1
seed = 11

# ----------------------------------------------------------------------------------------------------------------------
#   THE DATA
#
#   classes_path            Text file with one class name per line, in any order that stays the same for this model.
#                           THE constant to change for your own data; forgetting it is the commonest mistake.
#   train_annotation_path   What to train on, and
#   val_annotation_path     what to validate on. Either a split of a VOC folder, which is read as it is
#                               VOCdevkit/VOC2007/ImageSets/Main/train.txt   (Annotations/ and JPEGImages/ beside it)
#                           or a list file with lines `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...`
#                               2007_train.txt
#                           `python tools/voc_annotation.py` makes both from a folder of annotations.
# ----------------------------------------------------------------------------------------------------------------------
classes_path = "model_data/sample_classes.txt"
train_annotation_path = "VOCdevkit/Sample/ImageSets/Main/train.txt"
val_annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"

# ----------------------------------------------------------------------------------------------------------------------
#   THE NETWORK
#
#   model_name      yolox_nano, yolox_tiny, yolox_s, yolox_m, yolox_l or yolox_x: 0.9 to 99 million parameters. Larger
#                   is more accurate and slower; on a CPU stay with nano or tiny, on a weak GPU with s.
#   model_path      Weights to start from: an official YOLOX release file (.pth) of the same size, or any .pth that a
#                   training wrote into logs/, to go on from it. '' starts from scratch.
#                   Real pictures want pretrained weights in nearly every case: from scratch takes thousands of images
#                   and hundreds of epochs. The number of classes may differ; then only the class predictions start
#                   fresh. A start from a whole model's weights: set model_path, Freeze_Train = True.
#                   From scratch: model_path = '', at least 100 epochs, Freeze_Train does not matter.
#   input_shape     [height, width] the network sees, multiples of 32. [224, 224] does for the drawn sample; photographs
#                   want [416, 416] or [640, 640], which finds small objects better and takes 2.4 times the time and
#                   memory. The smallest objects should measure 10 pixels or more in it.
# ----------------------------------------------------------------------------------------------------------------------
model_name = "yolox_nano"
model_path = ""
input_shape = [224, 224]

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
#                           memory of a small one.
#
#   Recipes
#   From whole-model weights   model_path = 'model_data/yolox_nano.pth', Freeze_Train = True, Freeze_Epoch = 10,
#                              UnFreeze_Epoch = 30 for hundreds of images, 50 and 100 for thousands.
#   From scratch               model_path = '', UnFreeze_Epoch = 100 at least, 300 for photographs.
#   A weak GPU, or a CPU       UnFreeze_Epoch = Freeze_Epoch (only the frozen phase), yolox_nano, [416, 416].
#   Go on from weights         model_path = 'logs/last_epoch_weights.pth', Init_Epoch = the epochs they have seen.
# ----------------------------------------------------------------------------------------------------------------------
Freeze_Train = True
Init_Epoch = 0
Freeze_Epoch = 10
Freeze_batch_size = 16
UnFreeze_Epoch = 100
Unfreeze_batch_size = 8
accumulate = 1

# ----------------------------------------------------------------------------------------------------------------------
#   LEARNING
#
#   optimizer_type  'sgd' with momentum 0.937, 'adam' or 'adamw' with momentum 0.9. With adam set weight_decay = 0:
#                   there it acts wrongly; adamw does it right.
#   Init_lr         Highest learning rate for a batch of 64 images. It is scaled to the real batch (batch * accumulate /
#                   64 * Init_lr), again at the unfreeze epoch, and kept within 5e-4..5e-2 (sgd) or 3e-4..1e-3 (adam,
#                   adamw). Hundreds of images and few epochs want large steps: 8e-2 for sgd, 4e-3 for adamw. Thousands
#                   of images, or hundreds of epochs: 1e-2 and 1e-3. Loss nan or jumping: a tenth.
#   Min_lr          Lowest learning rate, at the end. None: a hundredth of Init_lr.
#   momentum        Momentum of sgd, beta1 of adam and adamw.
#   weight_decay    Pulls weights to zero against overfitting: 5e-4 for sgd, 1e-2 to 5e-2 for adamw. Biases and
#                   BatchNorm are left out.
#   lr_decay_type   'cos': warm-up, half a cosine down to Min_lr, a flat end.
#   clip_grad_norm  Shorten gradients longer than this, a safeguard against single wild steps. 0: off.
#   ema             Evaluate and save the running average of the weights instead of their last values: smoother and
#                   nearly always better. It looks back over 5 % of the run.
# ----------------------------------------------------------------------------------------------------------------------
optimizer_type = "sgd"
Init_lr = 8e-2
Min_lr = None
momentum = 0.937
weight_decay = 5e-4
lr_decay_type = "cos"
clip_grad_norm = 0.0
ema = True

# ----------------------------------------------------------------------------------------------------------------------
#   SAVING AND EVALUATING
#
#   save_dir        Each run makes a folder logs/loss_<date and time> in it. Beside the folders best_epoch_weights.pth
#                   and last_epoch_weights.pth are always those of the newest run.
#   save_period     Epochs between the weight files ep...pth that are kept. last_epoch_weights.pth is written every
#                   epoch.
#   eval_flag       True: measure the mAP on the validation set; best_epoch_weights.pth are those of the best mAP.
#                   False: of the lowest validation loss.
#   eval_period     Epochs between two measurements. The last epoch is always measured.
# ----------------------------------------------------------------------------------------------------------------------
save_dir = "logs"
save_period = 10
eval_flag = True
eval_period = 5

_OUT_OF_MEMORY = (
    "The GPU's memory does not suffice. Lower Unfreeze_batch_size or Freeze_batch_size (and raise accumulate as much), "
    "or input_shape, or take a smaller model_name. The last whole epoch is kept in last_epoch_weights.pth."
)


class Phase(NamedTuple):
    """Epochs first..last - 1 (counted from 0), with the backbone frozen or not."""

    frozen: bool
    first: int
    last: int
    batch_size: int

    @property
    def name(self):
        return "frozen" if self.frozen else "unfrozen"


def phases_of(settings):
    """The one or two phases that the constants describe. A frozen one takes pretrained weights."""
    freezes = settings.Freeze_Train and settings.model_path
    border = min(settings.Freeze_Epoch, settings.UnFreeze_Epoch) if freezes else 0
    phases = [
        Phase(True, settings.Init_Epoch, border, settings.Freeze_batch_size),
        Phase(False, max(settings.Init_Epoch, border), settings.UnFreeze_Epoch, settings.Unfreeze_batch_size),
    ]
    return [phase for phase in phases if phase.first < phase.last]


def steps_of(phases, images, accumulate):
    """Optimiser steps of all phases."""
    return sum((p.last - p.first) * math.ceil(math.ceil(images / p.batch_size) / accumulate) for p in phases)


def check_batches(phases, ranks):
    """Raise ValueError where a batch cannot be shared out evenly between the ranks."""
    for phase in phases:
        if phase.batch_size % ranks.world_size:
            name = "Freeze_batch_size" if phase.frozen else "Unfreeze_batch_size"
            nearest = max(phase.batch_size // ranks.world_size, 1) * ranks.world_size
            raise ValueError(
                f"{name} is {phase.batch_size}, which {ranks.world_size} processes cannot share evenly; set it to "
                f"{nearest}, or another multiple of {ranks.world_size}."
            )


def advice(settings, phases, images, ranks):
    """Sentences on settings that will train badly, before time is spent on them."""
    if settings.Freeze_Train and not settings.model_path:
        yield "Freeze_Train is True, but the backbone is untrained (model_path = ''): nothing is worth freezing."
    if any(min(phase.batch_size // ranks.world_size, images) == 1 for phase in phases):
        yield "A batch of 1 image gives BatchNorm no statistics: use batch sizes of 2 or more."
    steps = steps_of(phases, images, settings.accumulate)
    wanted = 300 if settings.model_path else 1000
    if steps < wanted and not settings.Init_Epoch:
        start = "from weights" if settings.model_path else "from scratch"
        name = "Freeze_Epoch and UnFreeze_Epoch" if phases[-1].frozen else "UnFreeze_Epoch"
        yield (
            f"Only {steps} optimiser steps in all; training {start} wants at least {wanted}: raise {name} to about "
            f"{math.ceil(settings.UnFreeze_Epoch * wanted / steps)}, or lower the batch size."
        )


def read_data(settings, say):
    """Class names, training records, validation records; what is odd about them is said."""
    class_names = read_class_names(settings.classes_path)
    records = []
    for path in (settings.train_annotation_path, settings.val_annotation_path):
        part, notes = read_annotations(path, class_names)
        say(f"{path}: {len(part)} images, {len(part.boxes_xyxy)} boxes, {len(class_names)} classes")
        for note in notes:
            say(f"  note: {note}")
        records.append(part)
    return class_names, *records


def make_model(settings, class_names, say):
    """The network, with the weights of model_path where one is given."""
    if not settings.model_path:
        say(f"{settings.model_name} from scratch")
        return build_model(settings.model_name, len(class_names))
    weights = read_weights(settings.model_path)
    model = build_model(settings.model_name, len(class_names), weights.contract.get("pixel_rule"))
    fit = load_matching(model, weights)
    say(
        f"{settings.model_name} from {settings.model_path} ({weights.source}): "
        + describe_fit(fit, len(model.state_dict()))
    )
    for sentence in unlike(weights.contract, class_names, settings):
        say(f"note: {sentence}")
    return model


def unlike(contract, class_names, settings):
    """Sentences on what a weight file says about itself and the constants do not follow."""
    if len(contract.get("class_names", ())) == len(class_names) and contract["class_names"] != class_names:
        yield (
            f"the weights were trained for the classes {', '.join(contract['class_names'])}, yours are "
            f"{', '.join(class_names)}; their predictions are taken over in this order."
        )
    if contract.get("epoch") and not settings.Init_Epoch:
        yield (
            f"these weights have seen {contract['epoch']} epochs; this is a new training from them. To go on with that "
            f"one instead, set Init_Epoch = {contract['epoch']}."
        )


def augmentation(settings):
    """The constants of the augmentation block as the loader takes them."""
    hue, saturation, brightness = settings.colour_jitter
    return AugmentSettings(
        input_shape=tuple(settings.input_shape),
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


def epoch_line(row, last_epoch):
    """What a person reads of one epoch; row: as in History.add_epoch."""
    parts = " ".join(f"{key.removeprefix('loss_')} {row[key]:.2f}" for key in row if key.startswith("loss_"))
    text = f"epoch {row['epoch']:3d}/{last_epoch} {row['phase']:8s}  loss {row['loss']:6.3f} ({parts})"
    text += f"  val {row['val_loss']:6.3f}  lr {row['lr']:.1e}  {row['images_per_second']:.0f} images/s"
    text += f"  data wait {row['data_wait']:.0%}  {row['seconds']:.1f} s"
    return text if row["map50"] is None else f"{text}  mAP@0.5 {row['map50']:.3f}  AP {row['ap']:.3f}"


def stop_if_not_finite(loss, epoch):
    """Raise ValueError where the mean loss of an epoch, counted from 0, is no number."""
    if not math.isfinite(loss):
        raise ValueError(
            f"The loss became {loss} in epoch {epoch + 1}: lower Init_lr, set clip_grad_norm = 10, or rule out mixed "
            "precision by fp16 = False. The weights of the epochs before are kept."
        )


def result_row(epoch, phase, result, evaluation, world_size):
    """One epoch as History takes it; epoch counts from 0."""
    scores = evaluation.scores
    losses = {key if key == "loss" else f"loss_{key}": value for key, value in result.losses.items()}
    return {
        "epoch": epoch + 1,
        "phase": phase.name,
        **losses,
        "val_loss": evaluation.loss,
        "lr": result.learning_rate,
        "map50": scores["map50"] if scores else None,
        "ap": scores["AP"] if scores else None,
        "images_per_second": result.images_per_second * world_size,
        "data_wait": result.data_wait,
        "seconds": result.seconds,
    }


def report(files, scores, settings, say):
    """Say at the end what came out and where it lies."""
    if scores:
        say(f"\nThe last evaluation:\n{format_scores(scores)}")
    if files.best_score is None:
        say("\nNo epoch could be scored: the validation set holds no boxes, or its loss was not a number.")
        return
    best = f"mAP@0.5 {files.best_score:.3f}" if settings.eval_flag else f"validation loss {-files.best_score:.3f}"
    say(f"\nBest weights: {files.folder / outputs.BEST} ({best}, epoch {files.best_epoch})")
    say(f"Last weights: {files.folder / outputs.LAST}")
    newest = files.folder.parent / outputs.BEST
    command = "python predict.py" if settings.save_dir == "logs" else f"python predict.py --model_path={newest}"
    say(f"Both are also in {settings.save_dir}/. Draw boxes with them: {command}")


def main(settings):
    """Train as the settings say. Returns (folder of the run, scores of the last evaluation or None)."""
    place = machine.set_up(settings)
    say, device, ranks = place.say, place.device, place.ranks

    # What it learns from, what learns, and how it is judged
    class_names, train_records, val_records = read_data(settings, say)
    model = make_model(settings, class_names, say).to(device, memory_format=torch.channels_last)
    model = machine.with_sync_bn(model, settings.sync_bn, place)
    criterion = build_criterion(model)
    augment = augmentation(settings)
    contract = make_contract(model, class_names, augment.input_shape, augment.rule, settings=vars(settings))
    phases = phases_of(settings)
    check_batches(phases, ranks)
    for sentence in advice(settings, phases, len(train_records), ranks):
        say(f"note: {sentence}")

    workers = place.workers(settings.num_workers)
    train_loader = build_train_loader(
        train_records, augment, settings.seed, phases[0].batch_size, workers, ranks.rank, ranks.world_size, place.on_gpu
    )
    val_loader = build_val_loader(
        val_records, augment.input_shape, augment.rule, 2 * settings.Unfreeze_batch_size, min(workers, 2), place.on_gpu
    )

    # What moves it: the frozen part joins the optimiser when it is unfrozen
    model.freeze(phases[0].frozen)
    groups = parameter_groups(model, settings.weight_decay, settings.Init_Epoch)
    optimizer = build_optimizer(settings.optimizer_type, groups, settings.momentum)
    total_steps = steps_of(phases, len(train_records), settings.accumulate)
    average = ModelEma(model, total_steps) if settings.ema else None
    stepper = Stepper(model, optimizer, average, place.precision, device, settings.clip_grad_norm)
    judged = average.model if average else model

    files = (
        outputs.WeightFiles(outputs.new_run_folder(settings.save_dir), settings.save_period) if ranks.is_main else None
    )
    history = History(files.folder) if ranks.is_main else None
    if ranks.is_main:
        outputs.save_settings(files.folder, vars(settings))
        say(f"results go to {files.folder}\n")

    scores, named = None, set()
    try:
        for phase in phases:
            if settings.Freeze_Train and settings.model_path and not phase.frozen:
                train_loader.batch_sampler.set_epoch(phase.first, phase.batch_size)
                adopt_statistics(model, train_loader, device)
                judged.feature_extractor.load_state_dict(model.feature_extractor.state_dict())
            model.freeze(phase.frozen)
            take_in(optimizer, model, settings.weight_decay, phase.first)
            network = machine.parallel(model, place)
            batch_size = phase.batch_size * settings.accumulate
            rates = scaled_rates(settings.Init_lr, settings.Min_lr, settings.optimizer_type, batch_size)

            for epoch in range(phase.first, phase.last):
                network.train()
                criterion.use_l1 = not augment.mosaic or epoch >= augment.augment_epochs
                train_loader.batch_sampler.set_epoch(epoch, phase.batch_size)

                def set_rates_at(share, epoch=epoch, rates=rates):
                    return set_rates(optimizer, epoch + share, settings.UnFreeze_Epoch, *rates)

                bar = f"epoch {epoch + 1}/{settings.UnFreeze_Epoch}" if ranks.is_main else ""
                result = train_one_epoch(
                    network, criterion, train_loader, stepper, set_rates_at, settings.accumulate, bar
                )
                stop_if_not_finite(result.losses["loss"], epoch)
                if not ranks.is_main:
                    continue

                is_last = epoch + 1 == settings.UnFreeze_Epoch
                scored = settings.eval_flag and (is_last or (epoch + 1) % settings.eval_period == 0)
                judged.eval()
                criterion.use_l1 = False  # so that validation losses of all epochs compare
                evaluation = evaluate(
                    judged, val_loader, val_records, class_names, device, place.precision.dtype, criterion, scored
                )
                scores = evaluation.scores or scores
                row = result_row(epoch, phase, result, evaluation, ranks.world_size)
                history.add_epoch(row)
                for path in sorted({*result.unreadable, *evaluation.unreadable} - named):
                    say(f"note: {path} cannot be decoded any more and is left out")
                    named.add(path)
                say(epoch_line(row, settings.UnFreeze_Epoch))
                contract |= {"epoch": epoch + 1, "scores": {key: row[key] for key in ("map50", "ap")}}
                score = row["map50"] if settings.eval_flag else -row["val_loss"]
                files.save(judged, contract, epoch + 1, is_last, row["loss"], row["val_loss"], score)
    except KeyboardInterrupt:
        if files:
            say(f"\nThe last whole epoch, if there was one, is in {files.folder / outputs.LAST}")
        raise
    except torch.OutOfMemoryError as error:
        raise ValueError(_OUT_OF_MEMORY) from error
    finally:
        if ranks.is_main:
            history.close()
        machine.leave_ranks()

    if ranks.is_main:
        report(files, scores, settings, say)
    return (files.folder if files else None), scores


if __name__ == "__main__":
    run_script(main, script_constants(globals()), check_training)
