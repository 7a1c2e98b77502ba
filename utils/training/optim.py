"""How weights move: parameter groups, optimisers, and the running average of the weights."""

import copy

import torch

from utils.io.errors import UserError

# The running average looks back over this share of the run's steps.
EMA_HORIZON = 0.05


def parameter_groups(module, weight_decay, start_epoch, lr_scale_of=lambda name: 1.0):
    """Optimiser groups of a module's parameters that require a gradient.

    Weights decay; biases and normalising layers do not. lr_scale_of: parameter name -> factor of its learning rate;
    parameters of one factor form a group. start_epoch: from it on their learning rate warms up. Groups without
    parameters are left out.
    """
    groups = {}
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_weight = name.endswith("weight") and parameter.ndim > 1
                lr_scale = lr_scale_of(f"{prefix}.{name}" if prefix else name)
                groups.setdefault((lr_scale, not is_weight), []).append(parameter)
    return [
        {
            "params": groups[lr_scale, is_bias],
            "weight_decay": 0.0 if is_bias else weight_decay,
            "start_epoch": start_epoch,
            "lr_scale": lr_scale,
        }
        for lr_scale, is_bias in sorted(groups, key=lambda key: (-key[0], key[1]))
    ]


def build_optimizer(optimizer_type, groups, momentum):
    """sgd (Nesterov), adam, adamw, rmsprop or adagrad over parameter groups; rates are set per step.

    momentum: beta1 for the adams; adagrad has none. On a GPU sgd and the adams are the fused ones: faster, and able to
    skip a step without asking the host.
    """
    if optimizer_type == "rmsprop":
        return torch.optim.RMSprop(groups, lr=0.0, momentum=momentum)
    if optimizer_type == "adagrad":
        return torch.optim.Adagrad(groups, lr=0.0)
    fused = True if groups[0]["params"][0].is_cuda else None
    if optimizer_type == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=fused)
        _start_state(optimizer, [parameter for group in groups for parameter in group["params"]])
        return optimizer
    optimizer_class = torch.optim.AdamW if optimizer_type == "adamw" else torch.optim.Adam
    return optimizer_class(groups, lr=0.0, betas=(momentum, 0.999), fused=fused)


def skips_on_device(optimizer):
    """Whether an optimiser reads found_inf, a float tensor (), and skips a step on the device where it is 1."""
    return bool(optimizer.defaults.get("fused"))


def _start_state(optimizer, parameters):
    """Give new parameters the state that their optimiser would otherwise lack at their first step."""
    if isinstance(optimizer, torch.optim.Adagrad):
        # Some versions of torch fill its state only when it is made.
        optimizer.state.update(torch.optim.Adagrad(parameters).state)
    elif isinstance(optimizer, torch.optim.SGD) and skips_on_device(optimizer):
        # Where the first step is skipped, the fused one would leave momenta that nobody has written.
        for parameter in parameters if optimizer.defaults["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def add_param_groups(optimizer, groups):
    """Add to an optimiser the parameters of these groups that it lacks; the state of the others stays."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for group in groups:
        parameters = [parameter for parameter in group["params"] if id(parameter) not in known]
        if parameters:
            optimizer.add_param_group(group | {"params": parameters})
            _start_state(optimizer, parameters)


def load_optimizer_state(optimizer, state):
    """Give an optimiser the state of another one, over the same groups, which may have run on another device.

    Its own momentum, decay and factors stay. Raises ValueError where the groups are others.
    """
    own, saved = optimizer.param_groups, state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved]:
        raise UserError(
            f"The checkpoint's optimiser moves {sum(len(group['params']) for group in saved)} tensors in {len(saved)} "
            f"groups, and now there are {sum(len(group['params']) for group in own)} in {len(own)}: Freeze_Train, "
            "Freeze_Epoch, freeze_whole_run, train_only, freeze_layers, freeze_blocks or lr_scale are others. Set them "
            "back, or start a new training from its weights by model_path."
        )
    groups = [group | {"params": other["params"]} for group, other in zip(own, saved, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def set_rate(group, rate):
    """Set the learning rate of a parameter group, where it lies: a number, or a tensor () of the device."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def rates_on_device(optimizer):
    """Keep the learning rates of a fused optimiser on the device, where a CUDA graph reads them in every step."""
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], torch.Tensor):
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
        if "capturable" in group and group["lr"].is_cuda:
            group["capturable"] = True


def _by_dtype(tensors):
    """Tensors as a list of lists, each of one type."""
    lists = {}
    for tensor in tensors:
        lists.setdefault(tensor.dtype, []).append(tensor)
    return list(lists.values())


class ModelEMA:
    """Exponential running average of a model's weights, which is what is evaluated and saved.

    total_steps: optimiser steps of the whole run. The average looks back over 5 % of them: a decay made for long runs
    would hold a short one at its start. `ema.model` is an ordinary copy of the model in eval mode.
    """

    def __init__(self, model, total_steps):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.horizon = max(EMA_HORIZON * total_steps, 1.0)
        self.steps, self.weight = 0, 0.0
        # The list functions, which torch's own optimisers use, are one call instead of one per tensor; fast for lists
        # of one type.
        self._weights, self._average = list(model.parameters()), list(self.model.parameters())
        self._buffers = list(zip(_by_dtype(self.model.buffers()), _by_dtype(model.buffers()), strict=True))
        self._weight_on_device = self._average[0].new_zeros((), dtype=torch.float32)

    def advance(self):
        """Count a step, which sets how much of the new weights the average takes."""
        self.steps += 1
        # Early on there is little to look back on: the horizon grows with the steps taken.
        self.weight = 1 / min(self.horizon, (self.steps + 9) / 10 + 1)
        self._weight_on_device.fill_(self.weight)

    @torch.no_grad()
    def update(self, is_skipped=None):
        """Move the average towards the model's present weights, after advance().

        is_skipped: a bool tensor () of the device, where the host does not know whether the step was skipped: then the
        average stays.
        """
        if is_skipped is None:
            torch._foreach_lerp_(self._average, self._weights, self.weight)
        else:
            steps = torch._foreach_sub(self._weights, self._average)
            torch._foreach_mul_(steps, self._weight_on_device * ~is_skipped)
            torch._foreach_add_(self._average, steps)
        # BatchNorm's running statistics are averages already: averaged again they would lag behind the weights.
        for own, new in self._buffers:
            torch._foreach_copy_(own, new)

    @torch.no_grad()
    def copy_layers(self, model, layers):
        """Copy these layers of the model, given by name, as they are."""
        for name in layers:
            self.model.get_submodule(name).load_state_dict(model.get_submodule(name).state_dict())

    def state_dict(self):
        """What it needs beyond the run's length, as plain types and tensors."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        """Go on from a state_dict()."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
