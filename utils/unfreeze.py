"""How frozen layers start to learn without a leap of the loss."""

from itertools import islice

import torch

BATCHES = 16


@torch.no_grad()
def adopt_statistics(model, layers, loader, device):
    """Give BatchNorm layers that rested until now this data's statistics, without changing what they compute.

    Frozen, these layers normalise by the statistics of the pretraining data, and the head has learned on the result.
    Once they learn, they normalise by those of each batch: all features would shift at one blow. So the statistics are
    measured on the loader's first batches, and what their change does is taken back in scale and shift:
    scale' = scale * std' / std, shift' = shift + scale * (mean' - mean) / std. In eval mode the output stays the
    same; in train mode only the noise of single batches comes in.

    model: a DetectionNetwork, left in eval mode. layers: names of the layers. loader: of training batches.
    """
    layers = [model.get_submodule(name) for name in layers]
    measured = {layer: [] for layer in layers}

    def measure(layer, inputs):
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        measured[layer].append((mean, variance))

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    model.eval()
    for batch in islice(loader, BATCHES):
        model(batch.images.to(device))
    for hook in hooks:
        hook.remove()
    for layer, batches in measured.items():
        if not batches:
            return
        means, variances = (torch.stack(values) for values in zip(*batches, strict=True))
        _replace_statistics(layer, means.mean(0), variances.mean(0) + means.var(0, correction=0))


def _replace_statistics(layer, mean, variance):
    old_std, new_std = (layer.running_var + layer.eps).sqrt(), (variance + layer.eps).sqrt()
    layer.bias += layer.weight * (mean - layer.running_mean) / old_std
    layer.weight *= new_std / old_std
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
