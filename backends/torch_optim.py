"""The optimizers of engine/optim.py over tensors, all weights in a few calls.

Weights, gradients and slots are Flat: what treats every number alike is one call for the whole
model, and Muon's matrices of one shape are orthogonalised together.
"""
import math

import torch

from microgpt.engine import optim


def clip_gradients(grads, max_norm):
    """Shrinks a list of tensors to a common norm of max_norm, as engine.optim.clip_gradients does.

    The norm stays on the device, so that no one waits for it.
    """
    optim.require(max_norm > 0, "max_norm", max_norm, "above 0")
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    clipped = (norm > max_norm) & norm.isfinite()
    torch._foreach_mul_(grads, torch.where(clipped, max_norm / norm, 1.0))


def orthogonalize(x, dtype=None):
    """Returns what engine.optim.orthogonalize does, for a stack of matrices of one shape.

    dtype: of the products; None: that of x.
    """
    a, b, c = optim.NEWTON_SCHULZ
    tall, whole = x.shape[-2] > x.shape[-1], x.dtype
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + optim.NORM_EPS)
    x = x.to(dtype or whole)
    for _ in range(optim.NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(whole)


class TensorOptimizer:
    """Takes the steps of an optimizer of engine.optim, on Flat tensors, with the same state.

    rule: that optimizer, for its settings and its count of steps; its own slots stay empty, since
    they are here: slot -> Flat. products: the dtype of Muon's; None: the weights'.
    """

    def __init__(self, rule, shapes, products=None):
        self.rule, self.shapes, self.products = rule, shapes, products
        self.slots = {}

    @torch.no_grad()
    def step(self, weights, grads, learning_rate):
        """Changes weights in place. grads: of the same shapes; spoiled when it returns."""
        for slot in self.rule.slot_names:
            if slot not in self.slots:
                self.slots[slot] = weights.like()
        self.rule.t += 1
        UPDATES[type(self.rule)](self, weights, grads, learning_rate)

    def names(self, slot):
        """Returns the names of the weights beside which a slot has something."""
        if type(self.rule) is not optim.Muon:
            return list(self.shapes)
        return [name for name in self.shapes if optim.by_muon(name) == (slot == "momentum")]

    def sgd(self, weights, grads, learning_rate):
        rule, slopes = self.rule, grads.all
        if rule.weight_decay:
            slopes.add_(weights.all, alpha=rule.weight_decay)
        if rule.momentum:
            past = self.slots["momentum"].all
            past.mul_(rule.momentum).add_(slopes)
            slopes = slopes.add_(past, alpha=rule.momentum) if rule.nesterov else past
        weights.all.add_(slopes, alpha=-learning_rate)

    def adamw(self, weights, grads, learning_rate, part="all"):
        rule = self.rule
        w, g, m, v = (getattr(flat, part) for flat in (weights, grads, self.slots["m"],
                                                       self.slots["v"]))
        if hasattr(torch, "_fused_adamw_") and w.device.type in ("cpu", "cuda"):
            steps = torch.full((), float(rule.t), device=w.device)
            torch._fused_adamw_(
                [w], [g], [m], [v], [], [steps], lr=learning_rate, beta1=rule.beta1,
                beta2=rule.beta2, weight_decay=rule.weight_decay, eps=rule.eps, amsgrad=False,
                maximize=False)
            return
        m.mul_(rule.beta1).add_(g, alpha=1 - rule.beta1)
        v.mul_(rule.beta2).addcmul_(g, g, value=1 - rule.beta2)
        sizes = (v / (1 - rule.beta2 ** rule.t)).sqrt_().add_(rule.eps)
        w.mul_(1 - learning_rate * rule.weight_decay)
        w.addcdiv_(m, sizes, value=-learning_rate / (1 - rule.beta1 ** rule.t))

    def muon(self, weights, grads, learning_rate):
        rule = self.rule
        self.adamw(weights, grads, learning_rate * optim.ADAMW_SHARE, "rest")
        for w, g, past in zip(weights.stacks, grads.stacks, self.slots["momentum"].stacks):
            past.lerp_(g, 1 - rule.momentum)
            directions = orthogonalize(g.lerp_(past, rule.momentum), self.products)
            if rule.weight_decay:
                w.mul_(1 - learning_rate * rule.weight_decay)
            rows, columns = w.shape[1:]
            w.add_(directions, alpha=-learning_rate * math.sqrt(max(1.0, rows / columns)))

    def state(self, rows=torch.Tensor.tolist):
        """Returns {"step": steps done, slot: {name: rows}}: engine.optim's form."""
        slots = {slot: {name: rows(self.slots[slot].named[name])
                        for name in self.names(slot) if slot in self.slots}
                 for slot in self.rule.slot_names}
        return {"step": self.rule.t, **slots}

    def load_state(self, state, weights, to_tensor):
        """Takes over a state that fits the weights; ValueError if it is another optimizer's."""
        self.rule.load_state({key: rows if key == "step" else {} for key, rows in state.items()})
        self.slots = {}
        for slot in self.rule.slot_names:
            if state[slot]:
                self.slots[slot] = weights.like()
                for name, rows in state[slot].items():
                    self.slots[slot].named[name].copy_(to_tensor(rows))


UPDATES = {optim.SGD: TensorOptimizer.sgd, optim.Adam: TensorOptimizer.adamw,
           optim.AdamW: TensorOptimizer.adamw, optim.Muon: TensorOptimizer.muon}
