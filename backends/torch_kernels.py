"""Forward and backward written by hand, where torch's autograd does more work than is needed.

Each is a torch.autograd.Function that computes what its plain form in torch_ops.py computes, and
is held to it by the proofs. They serve a CPU, where a step of a small model is as much a matter of
copies, and of how many calls there are, as of products.
"""
import math

import torch
from torch.autograd import Function
from torch.nn import functional as F


def joined(parts, dim):
    """Returns tensors of one shape side by side, and without a copy where they already lie so.

    >>> whole = torch.arange(6).view(3, 2)
    >>> joined(whole.split(1), 0).data_ptr() == whole.data_ptr()
    True
    >>> joined([whole[:1], whole[2:]], 0)
    tensor([[0, 1],
            [4, 5]])
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    step = first.stride(dim) * first.shape[dim]
    start, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    for i, part in enumerate(parts):
        if (part.storage_offset() != start + i * step or part.stride() != first.stride()
                or part.untyped_storage().data_ptr() != memory):
            return torch.cat(parts, dim)
    size = list(first.shape)
    size[dim] *= len(parts)
    return first.as_strided(size, first.stride(), start)


class Products(Function):
    """x @ w.T for each of several weights of one shape, as one product.

    The products are taken in the weights' dtype; the gradient of x comes back in that of x.
    """

    @staticmethod
    def forward(ctx, x, *weights):
        w = joined(weights, 0)
        ctx.dtype, ctx.count = x.dtype, len(weights)
        x = x.to(w.dtype)
        ctx.save_for_backward(x, w)
        y = F.linear(x, w)
        return y if len(weights) == 1 else y.chunk(len(weights), -1)

    @staticmethod
    def backward(ctx, *grads):
        x, w = ctx.saved_tensors
        grad = joined(grads, -1).flatten(0, -2)
        # note: autograd's own order gives the transpose, which costs a slow copy in bfloat16
        dw = grad.t() @ x.flatten(0, -2)
        return ((grad @ w).view(x.shape).to(ctx.dtype), *dw.chunk(ctx.count))


class RMSNorm(Function):
    """x / sqrt(mean(x^2) + 1e-5), row by row, given and kept in some dtype."""

    @staticmethod
    def forward(ctx, x, dtype):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(1e-5).rsqrt_()
        y = torch.mul(x, scale, out=torch.empty_like(x, dtype=dtype))
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        # y keeps its length, so what points along y is taken out: (g - y mean(g y)) scale
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True, dtype=scale.dtype).div_(-y.shape[-1])
        return (y * along).add_(grad).mul_(scale), None


class ReLU(Function):
    """max(x, 0), in the memory of x. note: the gradient is overwritten too, so that nobody else may
    hold it; what comes back from a product is held by nobody."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        torch.relu_(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        y, = ctx.saved_tensors
        return torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)


class Attention(Function):
    """TorchOps.attend() without dropout: all heads of all sequences in one batch of products."""

    @staticmethod
    def forward(ctx, q, k, v, n_head, mask):
        B, T, C = q.shape
        D = C // n_head
        heads = joined((q, k, v), -1).view(B, T, 3, n_head, D).permute(2, 0, 3, 1, 4)
        heads = heads.reshape(3, B * n_head, T, D)
        q, k, v = heads
        scores = (q @ k.mT).mul_(1 / math.sqrt(D)).add_(mask)
        odds = torch.softmax(scores, -1, out=scores)  # row by row, so in the same memory
        ctx.save_for_backward(heads, odds)
        ctx.sizes = B, T, n_head, D
        return (odds @ v).view(B, n_head, T, D).transpose(1, 2).reshape(B, T, C)

    @staticmethod
    def backward(ctx, grad):
        heads, odds = ctx.saved_tensors
        q, k, v = heads
        B, T, H, D = ctx.sizes
        grad = grad.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        out = torch.empty_like(heads)  # the gradients of q, k and v
        torch.bmm(odds.mT, grad, out=out[2])
        slope = grad @ v.mT
        torch.ops.aten._softmax_backward_data.out(slope, odds, -1, odds.dtype, grad_input=slope)
        slope.mul_(1 / math.sqrt(D))
        torch.bmm(slope, k, out=out[0])
        torch.bmm(slope.mT, q, out=out[1])
        out = out.view(3, B, H, T, D).permute(1, 3, 0, 2, 4).reshape(B, T, 3 * H * D)
        return (*out.chunk(3, -1), None, None)
