"""How frozen layers start to learn without a leap of the loss."""

from itertools import islice

import torch

from utils.device import sum_over_ranks

BATCHES = 16


@torch.no_grad()
def adopt_statistics(model, layers, loader, device):
    """Give BatchNorm layers that rested until now this data's statistics, without changing what they compute.

    Frozen, these layers normalise by the statistics of the pretraining data, and the head has learned on the result.
    Once they learn, they normalise by those of each batch: all features would shift at one blow. So the statistics are
    measured on the loader's first batches, and what their change does is taken back in scale and shift:
    scale' = scale * std' / std, shift' = shift + scale * (mean' - mean) / std. In eval mode the output stays the
    same; in train mode only the noise of single batches comes in.

    model: a DetectionNetwork, left in eval mode. layers: names of the layers. loader: of training batches. Ranks
    measure their shares and put them together: all must call, with the same layers.
    """
    model.eval()
    layers = [model.get_submodule(name) for name in layers]
    if not layers:
        return
    # Of each layer and channel: images, and the sums over them of mean and mean square.
    sums = {layer: torch.zeros(3, layer.num_features, dtype=torch.float64, device=device) for layer in layers}

    def measure(layer, inputs):
        pixels = inputs[0].float()
        variance, mean = (value.double() for value in torch.var_mean(pixels, dim=(0, 2, 3), correction=0))
        sums[layer] += torch.stack((torch.ones_like(mean), mean, variance + mean.square())) * len(pixels)

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    for batch in islice(loader, BATCHES):
        model(batch.images.to(device))
    for hook in hooks:
        hook.remove()
    # Side by side, so that ranks exchange them at once.
    total = sum_over_ranks(torch.cat(list(sums.values()), dim=1))
    for layer, (images, mean, square) in zip(
        layers, total.split([layer.num_features for layer in layers], 1), strict=True
    ):
        if images.all():
            mean, square = mean / images, square / images
            _replace_statistics(layer, mean.float(), (square - mean.square()).float())


def _replace_statistics(layer, mean, variance):
    old_std, new_std = (layer.running_var + layer.eps).sqrt(), (variance + layer.eps).sqrt()
    layer.bias += layer.weight * (mean - layer.running_mean) / old_std
    layer.weight *= new_std / old_std
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
