"""The torch backend: a batch of sequences on a device, PyTorch's autograd, nothing clever.

The third rung after Value and Matrix. Activations are one B x T x C tensor for the whole batch:
shorter sequences are filled up at the end, where causal attention never looks and the loss does
not count. All of the maths of a model is in TorchOps, and the forward pass that calls it is
nn/gpt.py's; the optimizers are engine/optim.py's, written over tensors.
"""
import ctypes
import functools
import hashlib
import math
import warnings

try:
    with warnings.catch_warnings():  # torch works without NumPy, and nothing here asks for it
        warnings.filterwarnings("ignore", "Failed to initialize NumPy")
        import torch
except ModuleNotFoundError as error:
    if error.name != "torch":  # torch is here, but lacks something: its own words say what
        raise
    raise ImportError("the torch backend needs PyTorch, which is not installed: pip install torch; "
                      "--backend matrix works now") from None
from torch.nn import functional as F

from microgpt.backends.base import (FORWARD, HEAD, Backend, check_batch, check_rows, check_state,
                                     check_tokens, micro_batches, part_seed)
from microgpt.engine import optim
from microgpt.nn.weights import check_weights, weight_shapes

DTYPES = {"auto": torch.float32, "float32": torch.float32, "float64": torch.float64}
IGNORED = -1  # the target of a filled-up place

# ---- Where and how precisely ---------------------------------------------------------------------


def devices():
    """Returns the names of the devices that are here, the one to prefer first.

    >>> devices()[-1]
    'cpu'
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = ["cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else []
    return found + ["mps"] * torch.backends.mps.is_available() + ["cpu"]


def find_dtype(name):
    """Returns the torch.dtype of a name; ValueError for one that is not in DTYPES."""
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}: it takes {', '.join(DTYPES)}")
    return DTYPES[name]


def find_device(name, dtype):
    """Returns the torch.device of a name; "auto" is the first that can compute in this dtype.

    ValueError for a device that is not here, or that lacks the dtype.
    """
    found = devices()
    if name == "auto":
        if dtype == torch.float64 and "mps" in found:
            found.remove("mps")
        return torch.device(found[0])
    if name not in found:
        raise ValueError(f"device is {name!r}: torch finds none here; there is {', '.join(found)}")
    if name == "mps" and dtype == torch.float64:
        raise ValueError("dtype is 'float64': the device mps has none; use float32, or the device "
                         "cpu")
    return torch.device(name)


# ---- Rows of floats, and tensors -----------------------------------------------------------------

PACKED = {torch.float32: "f", torch.float64: "d"}


def to_tensor(rows, dtype, device):
    """Returns rows of floats as a tensor; quickly where they are memoryviews, as from a file."""
    if isinstance(rows[0], memoryview):
        stored = {code: kind for kind, code in PACKED.items()}[rows[0].format]
        tensor = torch.frombuffer(bytearray().join(rows), dtype=stored).view(len(rows), -1)
        return tensor.to(device, dtype)
    return torch.tensor(rows, dtype=dtype, device=device)


def packed(tensor):
    """Returns a copy of a matrix as rows that are memoryviews of one block of bytes."""
    tensor = tensor.detach().cpu().contiguous()
    size, width = tensor.nbytes, tensor.shape[1]
    # note: torch hands out its memory as a buffer through NumPy alone, which need not be here
    numbers = memoryview(ctypes.string_at(tensor.data_ptr(), size)).cast(PACKED[tensor.dtype])
    return [numbers[start:start + width] for start in range(0, len(numbers), width)]


# ---- Ops -----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def causal_mask(T, dtype, device):
    """Returns T x T, -inf where a token (row) would look at a later one (column), and else 0."""
    return torch.full((T, T), -math.inf, dtype=dtype, device=device).triu(1)


class TorchOps:
    """The ops that nn/gpt.py asks for, on B x T x C tensors, and the loss.

    masks: None outside training, or a function (x, site) -> the multipliers of x, as tensors.
    """

    def __init__(self, masks=None):
        self.masks = masks

    @staticmethod
    def embed(table, ids):
        return F.embedding(ids, table)

    @staticmethod
    def add(x, y):
        return x + y  # note: the T x C of the positions meet the B x T x C of the tokens here

    @staticmethod
    def linear(x, w):
        return F.linear(x, w)

    @staticmethod
    def rmsnorm(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)

    @staticmethod
    def relu(x):
        return torch.relu(x)

    @staticmethod
    def cross_entropy(logits, targets):
        """Returns the mean of -log softmax(logits)[target] over the targets that count.

        logits: B x T x V. targets: B x T.
        """
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def attention(self, q, k, v, n_head, site):
        mask = causal_mask(q.shape[1], q.dtype, q.device)
        return self.attend(q, k, v, n_head, site, mask)

    def attend(self, q, k, v, n_head, site, mask=0.0):
        """Returns attention's output, B x T x C, in its explicit form.

        q: B x T x C. k, v: B x S x C, the tokens that are looked at. mask: added to the scores. On
        a CPU this is faster than torch's fused attention, whose backward is slow there.
        """
        # B x T x C becomes B x H x T x D, and the scores are B x H x T x S
        q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask
        weights = self.dropout(scores.softmax(-1), site)
        return (weights @ v).transpose(1, 2).flatten(-2)

    def dropout(self, x, site):
        return x if self.masks is None else x * self.masks(x, site)


class CachedOps(TorchOps):
    """The ops for decoding: the new tokens only, B x n of them; of those before, attention keeps
    the keys and values, B x H x T x D, written into memory that is there from the start.

    head: the table that makes the logits, which are computed for the last token only. T: the
    model's block_size.
    """

    def __init__(self, head, T):
        super().__init__()
        self.head, self.T, self.cache = head, T, {}
        self.start = self.end = 0  # where in the texts the new tokens stand

    def embed(self, table, ids):
        return TorchOps.embed(table, ids[:, -1:] if table is self.head else ids)

    def linear(self, x, w):
        return TorchOps.linear(x[:, -1:] if w is self.head else x, w)

    def attention(self, q, k, v, n_head, site):
        q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
        if site not in self.cache:
            self.cache[site] = [x.new_empty(*x.shape[:2], self.T, x.shape[3]) for x in (k, v)]
        for memory, x in zip(self.cache[site], (k, v)):
            memory[:, :, self.start:self.end] = x
        k, v = (memory[:, :, :self.end] for memory in self.cache[site])
        count, mask = self.end - self.start, None  # a lone token sees all there is
        if count > 1:
            mask = torch.ones(count, self.end, dtype=torch.bool, device=q.device).tril(self.start)
        heads = F.scaled_dot_product_attention(q, k, v, mask)  # fast, with nothing to go back
        return heads.transpose(1, 2).flatten(-2)

    def keep(self, places):
        """Forgets all texts but those at some places."""
        self.cache = {site: [memory[places] for memory in pair]
                      for site, pair in self.cache.items()}


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


# ---- Optimizers: the arithmetic of engine/optim.py, for all tensors of a kind at once ------------

# torch._foreach_*(list, ...) does the same to each tensor of a list, with fewer calls; on a GPU it
# is one kernel for all of them. A name that ends in _ changes the first list in place.


def clip_gradients(grads, max_norm):
    """Shrinks a list of tensors to a common norm of max_norm, as engine.optim.clip_gradients does.

    The norm stays on the device, so that no one waits for it.
    """
    optim.require(max_norm > 0, "max_norm", max_norm, "above 0")
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    clipped = (norm > max_norm) & norm.isfinite()
    torch._foreach_mul_(grads, torch.where(clipped, max_norm / norm, 1.0))


def orthogonalize(x):
    """Returns what engine.optim.orthogonalize does, for a stack of matrices of one shape."""
    a, b, c = optim.NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + optim.NORM_EPS)
    for _ in range(optim.NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class TensorOptimizer:
    """Takes the steps of an optimizer of engine.optim, on tensors, with the same state.

    rule: that optimizer, for its settings and its count of steps; its own slots stay empty, since
    they are tensors here: slot -> name -> tensor.
    """

    def __init__(self, rule):
        self.rule = rule
        self.slots = {slot: {} for slot in rule.slot_names}

    @torch.no_grad()
    def step(self, weights, grads, learning_rate):
        """Changes weights, name -> tensor, in place. grads: the same names and shapes."""
        self.rule.t += 1
        UPDATES[type(self.rule)](self, weights, grads, learning_rate)

    def lists(self, weights, grads, *slots):
        """Returns lists in one order: the weights, their gradients, and what each slot has."""
        for slot in slots:
            for name, w in weights.items():
                if name not in self.slots[slot]:
                    self.slots[slot][name] = torch.zeros_like(w)
        return [[tensors[name] for name in weights]
                for tensors in (weights, grads, *(self.slots[slot] for slot in slots))]

    def sgd(self, weights, grads, learning_rate):
        rule = self.rule
        w, slopes = self.lists(weights, grads)
        if rule.weight_decay:
            slopes = torch._foreach_add(slopes, w, alpha=rule.weight_decay)
        if rule.momentum:
            past = self.lists(weights, grads, "momentum")[-1]
            torch._foreach_mul_(past, rule.momentum)
            torch._foreach_add_(past, slopes)
            slopes = (torch._foreach_add(slopes, past, alpha=rule.momentum) if rule.nesterov
                      else past)
        torch._foreach_add_(w, slopes, alpha=-learning_rate)

    def adamw(self, weights, grads, learning_rate):
        rule = self.rule
        w, g, m, v = self.lists(weights, grads, "m", "v")
        torch._foreach_mul_(m, rule.beta1)
        torch._foreach_add_(m, g, alpha=1 - rule.beta1)
        torch._foreach_mul_(v, rule.beta2)
        torch._foreach_addcmul_(v, g, g, 1 - rule.beta2)
        sizes = torch._foreach_mul(v, 1 / (1 - rule.beta2 ** rule.t))
        torch._foreach_sqrt_(sizes)
        torch._foreach_add_(sizes, rule.eps)
        if rule.weight_decay:
            torch._foreach_mul_(w, 1 - learning_rate * rule.weight_decay)
        torch._foreach_addcdiv_(w, m, sizes, -learning_rate / (1 - rule.beta1 ** rule.t))

    def muon(self, weights, grads, learning_rate):
        rule = self.rule
        rest = {name: w for name, w in weights.items() if not optim.by_muon(name)}
        self.adamw(rest, grads, learning_rate * optim.ADAMW_SHARE)
        shapes = {}  # shape -> name -> weights, so that matrices of one shape go together
        for name, w in weights.items():
            if name not in rest:
                shapes.setdefault(w.shape, {})[name] = w
        for (rows, columns), same in shapes.items():
            w, g, past = self.lists(same, grads, "momentum")
            torch._foreach_lerp_(past, g, 1 - rule.momentum)
            ahead = torch._foreach_lerp(g, past, rule.momentum)
            directions = orthogonalize(torch.stack(ahead)).unbind()
            if rule.weight_decay:
                torch._foreach_mul_(w, 1 - learning_rate * rule.weight_decay)
            pace = learning_rate * math.sqrt(max(1.0, rows / columns))
            torch._foreach_add_(w, directions, alpha=-pace)

    def state(self, rows=torch.Tensor.tolist):
        """Returns {"step": steps done, slot: {name: rows}}: engine.optim's form."""
        slots = {slot: {name: rows(tensor) for name, tensor in tensors.items()}
                 for slot, tensors in self.slots.items()}
        return {"step": self.rule.t, **slots}

    def load_state(self, state, weights):
        """Takes over a state that fits the weights; ValueError if it is another optimizer's."""
        self.rule.load_state({key: rows if key == "step" else {} for key, rows in state.items()})
        self.slots = {slot: {name: to_tensor(rows, weights[name].dtype, weights[name].device)
                             for name, rows in state[slot].items()} for slot in self.slots}


UPDATES = {optim.SGD: TensorOptimizer.sgd, optim.Adam: TensorOptimizer.adamw,
           optim.AdamW: TensorOptimizer.adamw, optim.Muon: TensorOptimizer.muon}


# ---- The backend ---------------------------------------------------------------------------------


class TorchBackend(Backend):
    """A model in PyTorch.

    device: auto (CUDA, else MPS, else the CPU), or a name of devices(). dtype: auto (float32),
    float32 or float64. threads: of this process, on a CPU. ValueError for what is not here.
    `device` and `dtype` say what was taken.
    """

    name = "torch"

    def __init__(self, config, weights, optimizer="adam", max_norm=None, device="auto",
                 dtype="auto", threads=None, **settings):
        if threads:
            torch.set_num_threads(threads)
        self.dtype = find_dtype(dtype)
        self.device = find_device(device, self.dtype)
        super().__init__(config, weights, optimizer, max_norm, **settings)
        self._steps = TensorOptimizer(self.optimizer)

    @property
    def tolerance(self):
        return 1e-9 if self.dtype == torch.float64 else 1e-4

    def describe(self):
        return f"{str(self.dtype).split('.')[1]} on {self.device}, torch {torch.__version__}"

    def facts(self):
        kind = str(self.device)
        if self.device.type == "cuda":
            kind = torch.cuda.get_device_name(self.device)
        return {**super().facts(), "torch": torch.__version__, "device": kind,
                "dtype": str(self.dtype).split(".")[1], "threads": torch.get_num_threads()}

    def load(self, weights):
        check_weights(self.config, weights)
        self._weights = {
            name: to_tensor(weights[name], self.dtype, self.device).requires_grad_()
            for name in weight_shapes(self.config)}

    def weights(self):
        return {name: w.tolist() for name, w in self._weights.items()}

    def _forward(self, batch, masks=None):
        """Returns (ops, logits, targets): B x T x V and B x T.

        The inputs are all but each sequence's last token. What follows the end of a shorter one is
        token 0, or its last; the targets there are IGNORED.
        """
        longest = max(map(len, batch))
        filled = [[*tokens, *[IGNORED] * (longest - len(tokens))] for tokens in batch]
        filled = torch.tensor(filled, device=self.device)
        positions = torch.arange(longest - 1, device=self.device)
        ops, forward = TorchOps(masks), FORWARD[self.config.model]
        logits = forward(ops, self._weights, self.config, filled[:, :-1].clamp(min=0), positions)
        return ops, logits, filled[:, 1:]

    @torch.no_grad()
    def logits(self, batch):
        check_batch(self.config, batch)
        _, logits, _ = self._forward(batch)
        return [rows[:len(tokens) - 1].tolist() for rows, tokens in zip(logits, batch)]

    def _loss(self, batch, masks=None):
        check_batch(self.config, batch)
        ops, logits, targets = self._forward(batch, masks)
        return ops.cross_entropy(logits, targets)

    @torch.no_grad()
    def loss(self, batch):
        return self._loss(batch).item()

    def _gradients(self, batch, masks=None):
        """Returns (loss, name -> gradient), as tensors."""
        loss = self._loss(batch, masks)
        return loss.detach(), dict(zip(self._weights, torch.autograd.grad(
            loss, list(self._weights.values()))))

    def gradients(self, batch, dropout=None):
        masks = dropout and given_masks(dropout, [len(tokens) - 1 for tokens in batch])
        loss, grads = self._gradients(batch, masks)
        return loss.item(), {name: grad.tolist() for name, grad in grads.items()}

    def step(self, batch, learning_rate, dropout_seed=None, micro_batch=None):
        loss, grads = 0.0, {}
        for index, part, share in micro_batches(batch, micro_batch):
            masks = None
            if self.config.dropout and dropout_seed is not None:
                seed = part_seed(dropout_seed, index)
                masks = random_masks(self.config.dropout, seed, self.device)
            part_loss, part_grads = self._gradients(part, masks)
            loss += share * part_loss
            if share == 1:
                grads = part_grads
            for name, grad in part_grads.items() if share < 1 else ():
                grads[name] = grads[name].add_(grad, alpha=share) if index else share * grad
        if self.max_norm is not None:
            clip_gradients(list(grads.values()), self.max_norm)
        self._steps.step(self._weights, grads, learning_rate)
        return loss.item()

    def decoder(self):
        decode = self.batch_decoder(1)
        return lambda *tokens: decode([tokens])[0]

    def batch_decoder(self, count):
        config, texts = self.config, range(count)
        forward, ops = FORWARD[config.model], CachedOps(self._weights[HEAD[config.model]],
                                                        config.block_size)
        places = torch.arange(config.block_size, device=self.device)

        @torch.inference_mode()
        def decode(rows, keep=None):
            nonlocal texts
            check_rows(texts if keep is None else keep, rows)
            for tokens in rows:
                check_tokens(config, ops.end, tokens)
            if keep is not None:
                ops.keep(keep)
                texts = range(len(keep))
            ops.start, ops.end = ops.end, ops.end + len(rows[0])
            logits = forward(ops, self._weights, config, torch.tensor(rows, device=self.device),
                             places[ops.start:ops.end])
            return logits[:, -1].tolist()
        return decode

    def optimizer_state(self):
        return self._steps.state()

    def snapshot(self):
        return {name: packed(w) for name, w in self._weights.items()}, self._steps.state(packed)

    def load_optimizer_state(self, state):
        check_state(self.config, state)
        self._steps.load_state(state, self._weights)
