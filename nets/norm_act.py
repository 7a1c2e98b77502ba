"""BatchNorm and its activation as one function that keeps one map for the backward pass instead of two."""

import torch
from torch import nn

_BACKWARD = {
    nn.ReLU: lambda act, gradient, x: torch.ops.aten.threshold_backward(gradient, x, 0),
    nn.SiLU: lambda act, gradient, x: torch.ops.aten.silu_backward(gradient, x),
    nn.Mish: lambda act, gradient, x: torch.ops.aten.mish_backward(gradient, x),
    nn.LeakyReLU: lambda act, gradient, x: torch.ops.aten.leaky_relu_backward(gradient, x, act.negative_slope, False),
}


def norm_act(x, norm, act):
    """act(norm(x)), in less memory where both can be one function. x: (B, C, H, W)."""
    is_plain = norm.training and type(norm) is nn.BatchNorm2d and type(act) in _BACKWARD
    if not is_plain or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return act(norm(x))
    return NormAct.apply(x, norm.weight, norm.bias, norm, act)


class NormAct(torch.autograd.Function):
    """act(batch_norm(x)) in training. What BatchNorm gave is computed again in the backward pass, not kept.

    x: (B, C, H, W). norm: a BatchNorm2d in train mode, whose statistics move; it counts no batches, as its momentum is
    fixed. act: an activation, which may work in place.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, norm, act):
        y, mean, inverse_std = torch.native_batch_norm(
            x, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(x, weight, bias, mean, inverse_std)
        ctx.eps, ctx.act = norm.eps, act
        return act(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight, bias, mean, inverse_std = ctx.saved_tensors
        if x.is_cuda:
            normalised = torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, ctx.eps)
        else:
            variance = inverse_std.square().reciprocal() - ctx.eps
            normalised = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, ctx.eps)[0]
        gradient = _BACKWARD[type(ctx.act)](ctx.act, gradient, normalised)
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
        )
        return *gradients, None, None
