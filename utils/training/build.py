"""From the constants of train.py to what a training is made of: network, loss, optimiser, loaders."""

import torch

from nets import LossOptions, build_criterion, build_model
from nets.backbones.torchvision import check_backbone
from utils.checkpoint.resume import check_resumable, resume_summary, weights_of
from utils.config.constants import to_plain
from utils.data.anchors import choose_decode_rule, unused_anchors
from utils.data.augment import AugmentOptions
from utils.data.loader import LoaderOptions, build_train_loader, build_val_loader
from utils.data.sampling import MultiScale, multi_scale_of
from utils.data.tiles import tiled
from utils.image.tiles import TileOptions
from utils.inference.detector import find_weights
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.runtime.distributed import convert_sync_bn, rank_zero_first
from utils.training.caches import build_caches
from utils.training.dataset import learned, pasted_boxes
from utils.training.engine import OptimWrapper
from utils.training.freezing import frozen_parameter_names, lr_scales, warn_untrained_frozen
from utils.training.graphs import GraphedOptimWrapper, why_no_graphs
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups
from utils.training.phases import build_phases, count_steps, val_batch_size
from utils.weights.load import load_matching, loading_table
from utils.weights.metadata import make_metadata, warn_weights_differ
from utils.weights.pretrained import read_pretrained
from utils.weights.read import read_weights


def build_detector(settings, class_names, runtime, checkpoint=None):
    """The network on its device, with the weights that model_path or pretrained names.

    checkpoint: of a run that goes on, with its weights then, else None. Raises UserError for constants that contradict
    the weights or the checkpoint.
    """
    weights = weights_of(settings.resume, checkpoint) if checkpoint else find_start_weights(settings, runtime)
    metadata = weights.metadata if weights else {}
    for name in ("model_name", "backbone"):
        value = getattr(settings, name)
        if metadata.get(name, value) != value:
            raise UserError(
                f"{name} is {value!r}, but {weights.path} holds weights of {metadata[name]!r}: set {name} = "
                f"{metadata[name]!r}, or {'resume' if checkpoint else 'model_path'} to weights of {value!r}."
            )
    decode_rule = choose_decode_rule(settings, metadata)
    try:
        model = build_model(
            settings.model_name, len(class_names), metadata.get("pixel_rule"), decode_rule, settings.backbone
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    model.resize_rule = metadata.get("resize_rule", model.resize_rule)
    network = f"{settings.model_name} with {settings.backbone}" if settings.backbone else settings.model_name
    logger.info(f"{network} {'from ' + weights.path if weights else 'from scratch'}")
    for sentence in model.remarks(settings.input_shape):
        logger.warning(sentence)
    model.adapt_to(weights.state if weights else {})
    uninitialised = set(model.state_dict())
    if weights:
        result = load_matching(model, weights, class_names, settings.allow_partial_backbone)
        logger.info(f"  {weights.source}\n{loading_table(model, result)}")
        partly = (key for key, count in result.by_class.items() if count < model.num_classes)
        uninitialised = {*result.missing_keys, *partly}
    if weights and not checkpoint:
        warn_weights_differ(metadata, settings.Init_Epoch, model)
    if settings.anchors_path and (unused := unused_anchors(model.decode_rule)):
        logger.warning(f"no map has anchors {unused} of {settings.anchors_path}: see anchors_mask")
    if checkpoint:
        check_resumable(settings.resume, checkpoint, run_metadata(settings, model, class_names), settings)
        logger.info("\n".join(resume_summary(settings.resume, checkpoint, settings)))
    warn_untrained_frozen(model, settings, build_phases(settings), uninitialised)
    model.to(runtime.device, memory_format=torch.channels_last)
    return convert_sync_bn(model, settings.sync_bn, runtime)


def find_start_weights(settings, runtime):
    """The weights to start from, fetched first where model_path names a release; None to start from scratch."""
    if settings.backbone:
        try:
            check_backbone(settings.backbone)  # before its weights are fetched
        except ValueError as error:
            raise UserError(str(error)) from error
    with rank_zero_first(runtime.dist):
        if settings.model_path:
            return read_weights(find_weights(settings.model_path), settings.weights_format)
        return read_pretrained(settings.backbone, settings.pretrained) if settings.pretrained else None


def run_metadata(settings, model, class_names):
    """What the weight files of a run say about their use."""
    plain = to_plain(vars(settings))
    about = {"tiles": TileOptions(settings.tile, settings.tile_overlap)._asdict()} if settings.tile else {}
    return make_metadata(model, class_names, tuple(settings.input_shape), model.resize_rule, settings=plain, **about)


def build_loss(settings, model):
    """The criterion of a network, by the constants of the loss block. Raises UserError where they do not fit it."""
    options = LossOptions(
        settings.iou_type,
        settings.label_smoothing,
        settings.focal_loss,
        settings.focal_alpha,
        settings.focal_gamma,
        settings.ignore_iou,
        tuple(settings.map_weights),
    )
    try:
        return build_criterion(model, options)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_optim(settings, model, criterion, phases, runtime, images):
    """The OptimWrapper of a training over so many images, with what trains in its first phase."""
    model.freeze(frozen_parameter_names(model, settings, phases[0].frozen))
    groups = parameter_groups(model, settings.weight_decay, phases[0].first, lr_scales(model, settings.lr_scale))
    optimizer = build_optimizer(settings.optimizer_type, groups, settings.momentum)
    ema = ModelEMA(model, count_steps(phases, images, settings.accumulate)) if settings.ema else None
    wrapper = _optim_class(settings, optimizer, runtime, criterion)
    clip = settings.clip_grad_norm, settings.clip_norm_type
    return wrapper(model, criterion, optimizer, ema, runtime, settings.accumulate, *clip)


def _optim_class(settings, optimizer, runtime, criterion):
    if settings.compile != "graphs":
        return OptimWrapper
    if reason := why_no_graphs(runtime, optimizer, settings.accumulate, criterion):
        if runtime.on_gpu:
            logger.info(f"Steps are no CUDA graphs, as compile asks for: {reason}.")
        return OptimWrapper
    return GraphedOptimWrapper


def augment_options(settings, resize_rule, donors=None):
    """The constants of the augmentation block as the loader takes them. resize_rule: that of the network. donors: what
    copy_paste pastes."""
    hue, saturation, brightness = settings.colour_jitter
    return AugmentOptions(
        augment_epochs=augmented_epochs(settings),
        mosaic=settings.mosaic,
        mosaic_prob=settings.mosaic_prob,
        mixup=settings.mixup,
        mixup_prob=settings.mixup_prob,
        copy_paste=settings.copy_paste,
        donors=donors,
        scale_range=tuple(settings.scale_range),
        aspect_jitter=settings.aspect_jitter,
        flip_prob=settings.flip_prob,
        hue_gain=hue,
        saturation_gain=saturation,
        value_gain=brightness,
        resize_mode=resize_rule["mode"],
        pad=resize_rule["pad"],
    )


def augmented_epochs(settings):
    """How many epochs have augmentation."""
    return round(settings.special_aug_ratio * settings.UnFreeze_Epoch)


def build_loaders(settings, data, runtime, resize_rule):
    """The loader of training batches, those of the first phase at first, and that of validation batches."""
    augment = augment_options(settings, resize_rule, pasted_boxes(settings, data))
    multi_scale = build_multi_scale(settings)
    workers = runtime.workers(settings.num_workers)
    options = LoaderOptions(
        workers, runtime.on_gpu, settings.worker_timeout, runtime.dist.rank, runtime.dist.world_size
    )
    batch_size = build_phases(settings, runtime.dist.world_size)[0].batch_size
    caches = build_caches(settings, data.entries, augment, multi_scale, workers > 0, runtime)
    train_loader = build_train_loader(
        data.entries, augment, settings.seed, multi_scale, batch_size, options, *caches, data.repeats
    )
    val_loader = build_val_loader(
        tiled(learned(data.val, settings), data.tiles),
        tuple(settings.input_shape),
        augment.rule,
        val_batch_size(settings, runtime.dist.world_size),
        options._replace(num_workers=min(workers, 2)),
    )
    return train_loader, val_loader


def multi_scale_of_settings(settings):
    """The input shapes of training batches: one, or several with multi_scale."""
    shape = tuple(settings.input_shape)
    if not settings.multi_scale:
        return MultiScale([shape])
    return multi_scale_of(shape, settings.multi_scale_range, settings.multi_scale_period, augmented_epochs(settings))


def build_multi_scale(settings):
    """multi_scale_of_settings, which are said where there may be several."""
    multi_scale = multi_scale_of_settings(settings)
    if not settings.multi_scale:
        return multi_scale
    if len(multi_scale.shapes) == 1:
        logger.warning("multi_scale is True, but multi_scale_range holds no other multiple of 32: widen it.")
    logger.info("input sizes: " + ", ".join(f"{height}x{width}" for height, width in sorted(multi_scale.shapes)))
    return multi_scale
