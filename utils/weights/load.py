"""Weights into a network: all that fits, class by class, and a table that says what did not."""

from typing import NamedTuple

from utils.io.errors import UserError
from utils.io.text import format_table
from utils.weights.darknet import darknet_state

# A counter that older and foreign files lack and that nothing here reads.
COUNTER = "num_batches_tracked"
# How many tensors that stay fresh are named one by one.
SHOWN = 6


class LoadResult(NamedTuple):
    """How a file's tensors fit a network.

    loaded: keys taken over whole. by_class: {key: number of classes whose rows were taken over}. missing_keys: {key of
    the network: why it is not loaded}. unexpected_keys: keys of the file that have no place.
    """

    loaded: list
    by_class: dict
    missing_keys: dict
    unexpected_keys: list


def load_matching(model, weights, class_names, allow_partial_backbone=False):
    """Load every tensor of a file that has its place in the network; of class predictions, the rows of known classes.

    model: a DetectorBase. weights: a WeightFile. class_names: of the network, in order. Returns a LoadResult. Raises
    ValueError, with the counts, where the feature extractor is not whole and allow_partial_backbone is not set: then
    the file belongs to another network, and training would silently start from noise. The same for values that are not
    finite.
    """
    state = _state_for(model, weights)
    own, rows = model.state_dict(), model.class_rows()
    old_names = weights.metadata.get("class_names")
    old_count = len(old_names) if old_names else weights.metadata.get("num_classes")
    pairs = _shared_classes(old_names, class_names)
    taken, by_class, missing = {}, {}, {}
    for key, value in own.items():
        if key in rows and key in state and (pairs is not None or state[key].shape != value.shape):
            groups, before, *behind = rows[key]
            carried = carry_rows(value, state[key], groups, before, pairs or [], old_count, *behind)
            if carried is not None:
                taken[key], by_class[key] = carried, len(pairs or [])
                continue
        if key not in state:
            missing[key] = "not in the file"
        elif state[key].shape != value.shape:
            missing[key] = f"{_size(state[key])} in the file, {_size(value)} here"
        else:
            taken[key] = state[key]
    missing = {key: why for key, why in missing.items() if not key.endswith(COUNTER)}
    _refuse_wrong_backbone(model, weights, own, missing, allow_partial_backbone)
    broken = [key for key, value in taken.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{weights.path} holds values that are no finite numbers ({len(broken)} tensors, first: {broken[0]}); it "
            "is damaged, or from a training that had failed. Take another file."
        )
    model.load_state_dict(taken, strict=False)
    whole = [key for key in taken if key not in by_class]
    return LoadResult(whole, by_class, missing, _without_place(state, own))


def _without_place(state, own):
    return [key for key in state if key not in own and not key.endswith(COUNTER)]


def _state_for(model, weights):
    """The file's tensors under the network's keys."""
    if weights.numbers is not None:
        try:
            return darknet_state(model, weights.numbers, weights.metadata.get("num_classes"))
        except ValueError as error:
            raise UserError(f"{weights.path} ({weights.source}) does not fit {model.name}: {error}") from error
    prefix = model.extractor_prefix() if weights.is_backbone else ""
    return {prefix + key: value for key, value in weights.state.items()}


def _shared_classes(old_names, new_names):
    """[(old position, new position)] of classes with one name; None where rows go over as they stand.

    That is so for the same names in the same order, and where the file does not know its names.
    """
    if not old_names or list(old_names) == list(new_names):
        return None
    return [(list(old_names).index(name), new) for new, name in enumerate(new_names) if name in old_names]


def carry_rows(fresh, stored, groups, offset, pairs, old_classes=None, behind=0):
    """Rows of known classes into a fresh tensor of class predictions.

    fresh (groups * (offset + new classes + behind), ...), stored alike with the old classes: each group has `offset`
    rows before those of the classes, which go over as they are, and so many behind them, which stay. pairs: as from
    _shared_classes. old_classes: None where they are not known. Returns a tensor like fresh, None where the shapes
    allow it not.
    """
    if stored.shape[1:] != fresh.shape[1:] or len(stored) % groups:
        return None
    # Another number of anchors may divide the rows by chance, and mean something else.
    if old_classes is not None and len(stored) != groups * (offset + old_classes + behind):
        return None
    if pairs and max(old for old, _ in pairs) >= len(stored) // groups - offset - behind:
        return None
    rows, old_rows = fresh.clone().unflatten(0, (groups, -1)), stored.to(fresh).unflatten(0, (groups, -1))
    rows[:, :offset] = old_rows[:, :offset]
    for old, new in pairs:
        rows[:, offset + new] = old_rows[:, offset + old]
    return rows.flatten(0, 1)


def _size(tensor):
    return "x".join(map(str, tensor.shape)) or "1"


def _refuse_wrong_backbone(model, weights, own, missing, allowed):
    prefix = model.extractor_prefix()
    lost = [key for key in missing if key.startswith(prefix)]
    total = [key for key in own if key.startswith(prefix) and not key.endswith(COUNTER)]
    if lost and not (allowed and len(lost) < len(total)):
        raise UserError(
            f"{weights.path} ({weights.source}) does not fit {model.name}: {len(lost)} of the backbone's {len(total)} "
            f"tensors do not (first: {lost[0]}, {missing[lost[0]]}). Set model_name and backbone to what the file was "
            "trained with, or model_path to a file of this network"
            + (", or allow_partial_backbone = True." if len(lost) < len(total) else ".")
        )


def loading_table(model, result):
    """How a file fits a network, part by part, as text; what stays fresh is named with the reason."""
    rows = [("part", "tensors", "loaded", "by class", "fresh")]
    keys = [key for key in model.state_dict() if not key.endswith(COUNTER)]
    # Of a prediction that holds rows of classes alone, nothing is left where none of them is known.
    rows_of = model.class_rows()
    by_class = {key for key, count in result.by_class.items() if count or rows_of[key][1]}
    groups = set(result.loaded), by_class, {*result.missing_keys, *result.by_class} - by_class
    for part in model.parts:
        members = [key for key in keys if model.part_of(key) == part]
        counts = (sum(key in group for key in members) for group in groups)
        rows.append((part, str(len(members)), *map(str, counts)))
    lines = [format_table(rows, right=range(5))]
    if result.by_class:
        count = next(iter(result.by_class.values()))
        lines.append(f"  class predictions: {count} of {model.num_classes} classes go on from the file, by their names")
    lines += [f"  fresh: {key} ({why})" for key, why in list(result.missing_keys.items())[:SHOWN]]
    if len(result.missing_keys) > SHOWN:
        lines.append(f"  fresh: {len(result.missing_keys) - SHOWN} more")
    if result.unexpected_keys:
        count, first = len(result.unexpected_keys), result.unexpected_keys[0]
        lines.append(f"  {count} tensors of the file have no place here (the first: {first})")
    return "\n".join(lines)
