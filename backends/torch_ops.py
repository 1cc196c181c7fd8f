"""The ops that nn/gpt.py asks for, on B x T x C tensors; dropout's masks; attention's two forms.

Activations are one B x T x C tensor for the whole batch: shorter sequences are filled up at the
end, where causal attention never looks and the loss does not count. Products are taken in the dtype
of their weights; where that is bfloat16, the stream of residuals, the sums in norms and the loss
are float32 all the same.
"""
import contextlib
import functools
import hashlib
import math

import torch
from torch.nn import functional as F

from microgpt.backends import torch_kernels as kernels

IGNORED = -1  # the target of a filled-up place
# tokens, from which torch's fused attention is the faster one on a CPU (measured with D 16 to 64:
# in float32 at 64 already, by 5 to 97 %; in bfloat16 it is 3 to 6 times slower there); float64 is
# for proofs, of the explicit form
FUSED_FROM = {torch.float32: 1, torch.bfloat16: 1024, torch.float64: float("inf")}


@functools.lru_cache(maxsize=16)
def causal_mask(T, dtype, device):
    """Returns T x T, -inf where a token (row) would look at a later one (column), and else 0."""
    return torch.full((T, T), -math.inf, dtype=dtype, device=device).triu(1)


class TorchOps:
    """The ops, and the loss.

    masks: None outside training, or a function (x, site) -> the multipliers of x, as tensors.
    by_hand: compute with torch_kernels; None: on a CPU. products: the dtype that they are taken in,
    in which norms are handed on to them; None: that of the weights.
    """

    def __init__(self, masks=None, by_hand=None, products=None):
        self.masks, self.by_hand, self.products = masks, by_hand, products

    def _kernels_serve(self, x):
        return x.device.type == "cpu" if self.by_hand is None else self.by_hand

    @staticmethod
    def embed(table, ids):
        return F.embedding(ids, table)

    @staticmethod
    def add(x, y):
        # note: the T x C of the positions meet the B x T x C of the tokens here
        return x.float() + y if x.dtype == torch.bfloat16 else x + y

    def linear(self, x, w):
        if self._kernels_serve(x):
            return kernels.Products.apply(x, w)
        return F.linear(x.to(w.dtype), w)

    def linears(self, x, weights):
        if self._kernels_serve(x):
            return kernels.Products.apply(x, *weights)
        return F.linear(x.to(weights[0].dtype), torch.cat(weights)).chunk(len(weights), -1)

    def rmsnorm(self, x):
        if self._kernels_serve(x):
            return kernels.RMSNorm.apply(x, self.products or x.dtype)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)

    def relu(self, x):
        if self._kernels_serve(x) and x.requires_grad:
            return kernels.ReLU.apply(x)
        return torch.relu(x)

    @staticmethod
    def cross_entropy(logits, targets):
        """Returns the mean of -log softmax(logits)[target] over the targets that count.

        logits: B x T x V. targets: B x T.
        """
        if logits.dtype == torch.bfloat16:
            logits = logits.float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def attention(self, q, k, v, n_head, site):
        if attention_form(q, self.masks) == "fused":
            q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
            rate = self.masks.rate if self.masks else 0.0
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
            return heads.transpose(1, 2).flatten(-2)
        mask = causal_mask(q.shape[1], q.dtype, q.device)
        return self.attend(q, k, v, n_head, site, mask)

    def attend(self, q, k, v, n_head, site, mask=0.0):
        """Returns attention's output, B x T x C, in its explicit form.

        q: B x T x C. k, v: B x S x C, the tokens that are looked at. mask: added to the scores.
        """
        if self.masks is None and torch.is_tensor(mask) and self._kernels_serve(q):
            return kernels.Attention.apply(q, k, v, n_head, mask)
        # B x T x C becomes B x H x T x D, and the scores are B x H x T x S
        q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask
        weights = self.dropout(scores.softmax(-1), site)
        return (weights @ v).transpose(1, 2).flatten(-2)

    def dropout(self, x, site):
        return x if self.masks is None else x * self.masks(x, site)


def attention_form(q, masks):
    """Returns "explicit" or "fused", torch's own, which never holds the T x T weights: whichever is
    faster for queries q, B x T x C, here.

    On a GPU the fused one is, always; on a CPU it depends on dtype and length (FUSED_FROM). Masks
    that are given from outside can be applied by the explicit form alone.
    """
    if masks is not None and not hasattr(masks, "rate"):
        return "explicit"
    if q.device.type == "cuda":
        return "fused"
    if q.device.type == "cpu" and masks is None and q.shape[1] >= FUSED_FROM[q.dtype]:
        return "fused"
    return "explicit"


# ---- Dropout: the multipliers of activations (B x T x C) and attention weights (B x H x T x T) ---


def given_masks(masks, lengths):
    """Returns the DropoutMasks of a batch as a function for TorchOps; what is filled up gets 0."""
    def multipliers(x, site):
        out = torch.zeros(x.shape, dtype=x.dtype)
        for index, T in enumerate(lengths):
            if x.dim() == 3:
                rows = masks.rows(site, (index,), T, x.shape[-1])
                out[index, :T] = torch.tensor(rows, dtype=x.dtype)
                continue
            for head in range(x.shape[1]):
                rows = masks.rows(site, (index, head), T, T)
                out[index, head, :T, :T] = torch.tensor(rows, dtype=x.dtype)
        return out.to(x.device)
    return multipliers


def seed_number(seed):
    """Returns a number below 2^64 that follows from the text of a seed, in every process the same.

    >>> seed_number("42 dropout 7")
    17417779669207694010
    """
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big")


def random_masks(rate, seed, device):
    """Returns masks drawn by torch itself, much faster, as a function for TorchOps.

    They follow from the seed (anything with a text of its own), the device's kind and the order of
    the calls. torch's global generator is left alone.
    """
    generator = torch.Generator(device).manual_seed(seed_number(seed))
    keep = 1 - rate

    def multipliers(x, site):
        return torch.empty_like(x).bernoulli_(keep, generator=generator).div_(keep)
    return multipliers


class DeviceMasks:
    """Masks from the device's own generator, for seeded(): what fused attention drops follows from
    it too, and a compiler can follow it."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, x, site):
        return F.dropout(torch.ones_like(x), self.rate)


@contextlib.contextmanager
def seeded(seed, device):
    """While it lasts, torch's global generators start from a seed; then they are as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed_number(seed))
        yield
