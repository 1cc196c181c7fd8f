"""Tensors by name that lie end to end in one block of memory, so that one call treats them all."""
import math

import torch

from microgpt.engine.optim import by_muon


class Flat:
    """Zeros, for shapes by name. `all`: the block, a vector. `named`: name -> its part, a matrix.

    What Muon moves comes first, and matrices of one shape lie together: `stacks` has them as
    tensors of n x rows x columns, and `rest` is the part of the vector behind them.

    >>> flat = Flat({"wte": (5, 2), "layer0.attn_wq": (2, 2), "layer0.attn_wk": (2, 2)})
    >>> flat.stacks[0].shape, flat.rest.shape
    (torch.Size([2, 2, 2]), torch.Size([10]))
    """

    def __init__(self, shapes, dtype=torch.float32, device="cpu"):
        self.shapes = shapes
        order = sorted(shapes, key=lambda name: (not by_muon(name), by_muon(name) and shapes[name]))
        sizes = [math.prod(shapes[name]) for name in order]
        self.all = torch.zeros(sum(sizes), dtype=dtype, device=device)
        parts = dict(zip(order, self.all.split(sizes)))
        self.named = {name: parts[name].view(shapes[name]) for name in shapes}
        self.stacks, start = [], 0
        for shape in dict.fromkeys(shapes[name] for name in order if by_muon(name)):
            count = sum(by_muon(name) and shapes[name] == shape for name in order)
            stop = start + count * math.prod(shape)
            self.stacks.append(self.all[start:stop].view(count, *shape))
            start = stop
        self.rest = self.all[start:]

    def like(self, dtype=None):
        """Returns zeros of the same names and shapes."""
        return Flat(self.shapes, dtype or self.all.dtype, self.all.device)

    def take(self, tensors, share=1.0, add=False):
        """Becomes share x these tensors, a list in the order of the names, or adds them."""
        mine = list(self.named.values())
        if add:
            torch._foreach_add_(mine, [t.to(self.all.dtype) for t in tensors], alpha=share)
            return
        torch._foreach_copy_(mine, list(tensors))
        if share != 1:
            self.all.mul_(share)
