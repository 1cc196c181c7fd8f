"""The torch backend: a batch of sequences on a device, in PyTorch.

The third rung after Value and Matrix. The forward pass is nn/gpt.py's, its ops are in torch_ops.py
(with some backward passes by hand, torch_kernels.py), the optimizers are engine/optim.py's, written
over tensors in torch_optim.py. What is here puts them together: where and how precisely to compute,
how weights come in and go out, what a step is.
"""
import contextlib
import ctypes
import functools
import os
import sys
import time
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
                                     check_tokens, count_targets, micro_batches, part_seed)
from microgpt.backends.processes import available_cores, is_one_of_several
from microgpt.backends.torch_flat import Flat
from microgpt.backends.torch_group import Group, own_device
from microgpt.backends.torch_ops import (IGNORED, DeviceMasks, TorchOps, given_masks,
                                          random_masks, seeded)
from microgpt.backends.torch_optim import TensorOptimizer, clip_gradients
from microgpt.nn.weights import check_weights, weight_shapes

# the dtype of weights and optimizer; products are taken in bfloat16 where that was asked for
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.float32,
          "float64": torch.float64}
LARGE_ENOUGH = 64  # n_embd, from which auto takes bfloat16: below, casts cost what products gain
LOOKED_UP = ("wte", "wpe", "bigram")  # weights that are in no product
RESIDENT_TOKENS = 1 << 28  # tokens kept on the device, at 4 bytes each; a longer stream stays out

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


def product_dtype(name, device, config):
    """Returns the torch.dtype of the products of training, for a dtype's name.

    auto is bfloat16 where the device multiplies in it faster and the model is large enough to gain.
    """
    if name == "bfloat16":
        return torch.bfloat16
    if name == "auto" and config.n_embd >= LARGE_ENOUGH and has_bfloat16(device):
        return torch.bfloat16
    return DTYPES[name]


def has_bfloat16(device):
    """Returns whether a device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and supported()


def is_out_of_memory(error):
    """Returns whether an exception says that the device's memory is full; CUDA has a class for it,
    other devices, and CUDA's libraries, have words."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or isinstance(error, RuntimeError) and (
        "out of memory" in str(error) or "ALLOC_FAILED" in str(error))


@contextlib.contextmanager
def memory_in_words():
    """Says in a ValueError what to do about a device whose memory is full."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError("out of memory, and not for the batch: take a smaller --n-embd or "
                         "--n-layer, end what else uses the GPU, or --device cpu") from None


@functools.lru_cache(maxsize=None)
def keep_freed_memory():
    """Keeps what one step frees for the next, instead of giving it back to the system.

    glibc gives back every block above some size, and the next step pays for a thousand page faults
    more: 5 % of its time. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for parameter, value in ((-3, 1 << 25), (-1, (1 << 31) - 1)) if mallopt else ():
            mallopt(parameter, value)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


# ---- Rows of floats, and tensors -----------------------------------------------------------------

PACKED = {torch.float32: "f", torch.float64: "d"}


def to_tensor(rows, dtype, device):
    """Returns rows of floats as a tensor; quickly where they are memoryviews, as from a file."""
    if isinstance(rows[0], memoryview):
        stored = {code: kind for kind, code in PACKED.items()}[rows[0].format]
        tensor = torch.frombuffer(bytearray().join(rows), dtype=stored).view(len(rows), -1)
        return tensor.to(device, dtype)
    return torch.tensor(rows, dtype=dtype, device=device)


def stream_tensor(tokens):
    """Returns a stream of tokens, a list, an array or a TokenFile, as a tensor; a copy."""
    try:
        view = tokens.view() if hasattr(tokens, "view") else memoryview(tokens)
    except TypeError:
        return torch.tensor(tokens, dtype=torch.int32)
    stored = {2: torch.uint16, 4: torch.int32}[view.itemsize]
    return torch.frombuffer(bytearray(view), dtype=stored).to(torch.int32)


def packed(tensor):
    """Returns a copy of a matrix as rows that are memoryviews of one block of bytes."""
    tensor = tensor.detach().cpu().contiguous()
    size, width = tensor.nbytes, tensor.shape[1]
    # note: torch hands out its memory as a buffer through NumPy alone, which need not be here
    numbers = memoryview(ctypes.string_at(tensor.data_ptr(), size)).cast(PACKED[tensor.dtype])
    return [numbers[start:start + width] for start in range(0, len(numbers), width)]


# ---- Decoding ----------------------------------------------------------------------------------


class CachedOps(TorchOps):
    """The ops for decoding: the new tokens only, B x n of them; of those before, attention keeps
    the keys and values, B x H x T x D, written into memory that is there from the start.

    head: the table that makes the logits, which are computed for the last token only. T: the
    model's block_size.
    """

    def __init__(self, head, T):
        super().__init__(by_hand=False)  # those are for the way back, and there is none
        self.head, self.T, self.cache = head, T, {}
        self.start = self.end = 0  # where in the texts the new tokens stand

    def embed(self, table, ids):
        return TorchOps.embed(table, ids[:, -1:] if table is self.head else ids)

    def linear(self, x, w):
        return super().linear(x[:, -1:] if w is self.head else x, w)

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


# ---- The backend ---------------------------------------------------------------------------------


class TorchBackend(Backend):
    """A model in PyTorch.

    device: auto (CUDA, else MPS, else the CPU), or a name of devices(). dtype: of DTYPES. bfloat16
    takes the products of training in it; weights, optimizer, norms and loss stay float32, and so
    does all that is not training: the loss of held-out text is that of every other backend. auto:
    see product_dtype(). threads: for the CPU, of the whole process; None leaves torch's. compiled:
    by torch.compile; None: on CUDA. report: a function that takes a line on something unexpected.
    together: as one of the processes that torchrun started, if it did (torch_group.py).
    ValueError for what is not here. `device`, `dtype`, `products` and `threads` say what was taken.
    """

    name = "torch"

    def __init__(self, config, weights, optimizer="adam", max_norm=None, device="auto",
                 dtype="auto", threads=None, compiled=None, report=warnings.warn, together=False,
                 **settings):
        self.dtype = find_dtype(dtype)
        together = together and is_one_of_several()
        device = own_device(device) if together else device
        self.device = find_device(device, self.dtype)
        self.products = product_dtype(dtype, self.device, config)
        if threads is not None:
            set_threads(threads)
        self.threads = torch.get_num_threads()
        self.report, self.micro_batch, self.test_batch = report, None, None
        self.group = Group(self.device) if together else None
        self.rank, self.size = (self.group.rank, self.group.size) if together else (0, 1)
        keep_freed_memory()
        with memory_in_words():
            super().__init__(config, weights, optimizer, max_norm, **settings)
            self._grads = self._flat.like()
            self._low = self._flat.like(self.products) if self.products != self.dtype else None
        self._steps = TensorOptimizer(self.optimizer, weight_shapes(config), self.products)
        self._resident = None, None
        self._compiled = None
        if self.device.type == "cuda" if compiled is None else compiled:
            self._compiled = torch.compile(self._plain_loss, dynamic=False)

    @property
    def tolerance(self):
        """Of a gradient's error: that of the products."""
        return {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}[self.products]

    def describe(self):
        name = str(self.products).split(".")[1]
        return f"{name} on {self.device}, torch {torch.__version__}"

    def summed(self, numbers):
        return self.group.summed(numbers) if self.group else numbers

    def tune(self, batch):
        if self.device.type != "cpu":
            return {}
        if self.group:  # they share the cores of a machine
            beside = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
            set_threads(max(1, available_cores() // beside))
        else:
            set_threads(choose_threads(self, batch))
        self.threads = torch.get_num_threads()
        return {"threads": self.threads}

    # ---- weights ----

    def facts(self):
        kind = str(self.device)
        if self.device.type == "cuda":
            kind = torch.cuda.get_device_name(self.device)
        return {**super().facts(), "torch": torch.__version__, "device": kind,
                "dtype": str(self.products).split(".")[1], "threads": torch.get_num_threads(),
                "processes": self.size}

    def load(self, weights):
        check_weights(self.config, weights)
        flat = Flat(weight_shapes(self.config), self.dtype, self.device)
        for name, tensor in flat.named.items():
            tensor.copy_(to_tensor(weights[name], self.dtype, self.device))
        self._flat = flat
        self._weights = {name: w.detach().requires_grad_() for name, w in flat.named.items()}

    def weights(self):
        return {name: w.tolist() for name, w in self._weights.items()}

    def _training_weights(self):
        """Returns the weights as leaves to differentiate by, in the dtype of the products."""
        if self._low is None:
            return self._weights
        self._low.all.copy_(self._flat.all)
        return {name: self._weights[name] if name in LOOKED_UP else low.detach().requires_grad_()
                for name, low in self._low.named.items()}

    # ---- batches ----

    def _windows(self, batch):
        """Returns a batch as a tensor, B x T + 1; behind the end of a shorter sequence, IGNORED."""
        if getattr(batch, "starts", None):
            tokens = self._tokens(batch)
            if tokens is not None:  # then nothing is copied but where the windows start
                first = torch.tensor(batch.starts).to(self.device, non_blocking=True)
                places = first[:, None] + torch.arange(batch.length, device=self.device)
                return tokens[places].long()
        check_batch(self.config, batch)
        longest = max(map(len, batch))
        filled = [[*tokens, *[IGNORED] * (longest - len(tokens))] for tokens in batch]
        # note: a plain copy would wait for all that the GPU still has to do
        return torch.tensor(filled).to(self.device, non_blocking=True)

    def _tokens(self, batch):
        """Returns the stream that a batch is cut from, on the device; None for one that is too
        long. It is brought there once, and checked then."""
        if self._resident[0] is not batch.tokens:
            self._resident = batch.tokens, None
            if len(batch.tokens) <= RESIDENT_TOKENS:
                tokens = stream_tensor(batch.tokens)
                check_batch(self.config, [[int(tokens.min()), int(tokens.max())]])
                self._resident = batch.tokens, tokens.to(self.device)
        if not 2 <= batch.length <= self.config.block_size + 1:
            check_batch(self.config, batch)  # which says so
        return self._resident[1]

    # ---- the model ----

    def _logits(self, weights, windows, masks=None, by_hand=None, products=None):
        """Returns (ops, logits, targets): B x T x V and B x T.

        The inputs are all but each sequence's last token. What follows the end of a shorter one is
        token 0, or its last; the targets there are IGNORED.
        """
        positions = torch.arange(windows.shape[1] - 1, device=windows.device)
        ops, forward = TorchOps(masks, by_hand, products), FORWARD[self.config.model]
        logits = forward(ops, weights, self.config, windows[:, :-1].clamp(min=0), positions)
        return ops, logits, windows[:, 1:]

    def _plain_loss(self, weights, windows, masks=None, by_hand=False, products=None):
        ops, logits, targets = self._logits(weights, windows, masks, by_hand, products)
        return ops.cross_entropy(logits, targets)

    @torch.no_grad()
    def logits(self, batch):
        _, logits, _ = self._logits(self._weights, self._windows(batch))
        return [rows[:len(tokens) - 1].tolist() for rows, tokens in zip(logits, batch)]

    @torch.no_grad()
    def loss(self, batch):
        def in_parts(size):
            return sum(share * self._plain_loss(self._weights, self._windows(part), by_hand=None
                                                ).item()
                       for _, part, share in micro_batches(batch, size))
        loss, self.test_batch = self._fitting(in_parts, len(batch), self.test_batch)
        return loss

    def _gradients(self, weights, batch, masks=None):
        """Returns (loss, gradients in the order of the weights), as tensors; compiled where that
        works, and the batch has the one shape that it is compiled for."""
        def both(loss):
            return loss.detach(), torch.autograd.grad(loss, list(weights.values()))

        windows = self._windows(batch)
        if self._compiled is not None and windows.shape[1] > self.config.block_size:
            try:
                return both(self._compiled(weights, windows, masks))
            except Exception as error:  # whatever a compiler may lack, the run goes on without it
                if is_out_of_memory(error):
                    raise
                self._compiled = None
                self.report(f"torch.compile does not work here ({type(error).__name__}): this run "
                            "goes on without it, slower")
        return both(self._plain_loss(weights, windows, masks, None, self.products))

    def gradients(self, batch, dropout=None):
        masks = dropout and given_masks(dropout, [len(tokens) - 1 for tokens in batch])
        loss, grads = self._gradients(self._training_weights(), batch, masks)
        return loss.item(), {name: grad.tolist() for name, grad in zip(self._weights, grads)}

    # ---- a step ----

    def step(self, batch, learning_rate, dropout_seed=None, micro_batch=None):
        """Returns the loss of a batch, after one step; on a GPU as a tensor, for which nobody waits
        until float() asks for it.

        Where the GPU's memory does not do, `micro_batch` becomes half as many sequences, for the
        rest of the run, and the step is taken again.
        """
        mine = self.group.mine(batch) if self.group else batch
        loss, self.micro_batch = self._fitting(
            lambda size: self._sum_gradients(mine, dropout_seed, size),
            min(micro_batch or len(mine), len(mine)), self.micro_batch)
        if self.group:
            loss = self._add_up(loss, count_targets(mine) / count_targets(batch))
        if self.max_norm is not None:
            clip_gradients([self._grads.all], self.max_norm)
        with memory_in_words():  # the first step makes room for what the optimizer remembers
            self._steps.step(self._flat, self._grads, learning_rate)
        return loss.item() if self.device.type == "cpu" else loss

    def _fitting(self, compute, size, limit):
        """Returns (compute(size), limit), where size is halved until the GPU's memory does.

        size: sequences at a time. limit: how many an earlier attempt has found to fit, or None.
        ValueError where not even one fits.
        """
        size = min(size, limit or size)
        while True:
            try:
                return compute(size), limit
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size <= 1:
                    raise ValueError("out of memory with one sequence at a time: take a smaller "
                                     "--n-embd, --n-layer or --block-size, or --device cpu"
                                     ) from None
            # note: only here is the error gone, and with it what the attempt held
            size = limit = (size + 1) // 2
            self.report(f"out of memory: {size} sequences at a time from here on; the batch stays "
                        "as it is")

    def _add_up(self, loss, share):
        """Returns the loss of the whole batch, and leaves its gradients in _grads: the sums of all
        processes', each one's with its share of the targets."""
        loss = share * torch.as_tensor(loss, dtype=self.dtype, device=self.device)
        self._grads.all.mul_(share)
        self.group.add_up(self._grads.all)
        self.group.add_up(loss)
        return loss

    def _sum_gradients(self, batch, dropout_seed, size):
        """Returns the loss of a batch, its gradients then being in _grads."""
        loss, weights = 0.0, self._training_weights()
        if not batch and self.group:  # more processes than sequences
            self._grads.all.zero_()
            return 0.0
        for index, part, share in micro_batches(batch, size):
            with self._dropout(dropout_seed, index) as masks:
                part_loss, grads = self._gradients(weights, part, masks)
            self._grads.take(grads, share, add=index > 0)
            loss += share * part_loss
        return loss

    @contextlib.contextmanager
    def _dropout(self, seed, index):
        """Gives the masks of a part of a batch, or None."""
        seed = None if seed is None else part_seed(seed, index)
        if self.rank and seed is not None:
            seed = f"{seed} rank {self.rank}"
        if not self.config.dropout or seed is None:
            yield None
        elif self.device.type == "cuda":
            with seeded(seed, self.device):
                yield DeviceMasks(self.config.dropout)
        else:
            yield random_masks(self.config.dropout, seed, self.device)

    # ---- decoding ----

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

    # ---- the optimizer's state ----

    def optimizer_state(self):
        return self._steps.state()

    def snapshot(self):
        return {name: packed(w) for name, w in self._weights.items()}, self._steps.state(packed)

    def load_optimizer_state(self, state):
        check_state(self.config, state)
        self._steps.load_state(state, self._flat,
                               lambda rows: to_tensor(rows, self.dtype, self.device))


# ---- How many threads ----------------------------------------------------------------------------


def set_threads(count):
    """Sets how many threads torch computes with; ValueError unless it is 1 or more."""
    if type(count) is not int or count < 1:
        raise ValueError(f"threads is {count!r}: it takes a whole number, 1 or more")
    torch.set_num_threads(count)


def choose_threads(backend, batch, seconds=0.25, cores=None):
    """Returns the number of threads with which gradients of the batch come fastest: 1, 2, 4, ...

    Nothing of the backend changes, nor how many threads torch has now. Each number is tried for
    some `seconds`; more threads must gain 10 %, as a busy machine punishes them. Tries end when
    one is slower. On one core, and on a GPU, there is nothing to find out.
    """
    before = torch.get_num_threads()
    cores = cores or available_cores()
    if cores == 1 or backend.device.type != "cpu":
        return 1 if cores == 1 else before
    best, best_time, count = 1, float("inf"), 1
    try:
        while count <= cores:
            torch.set_num_threads(count)
            took = gradient_seconds(backend, batch, seconds)
            if took > 0.9 * best_time:
                break
            best, best_time = count, took
            count = min(2 * count, cores) if count < cores else cores + 1
    finally:
        torch.set_num_threads(before)
    return best


def gradient_seconds(backend, batch, seconds):
    """Returns the time that gradients of a batch take, the median of some tries."""
    weights, times = backend._training_weights(), []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until and len(times) < 50:
        began = time.perf_counter()
        backend._gradients(weights, batch)
        times.append(time.perf_counter() - began)
        if times[0] > 2 * seconds:  # a step this long needs no second opinion
            break
    return sorted(times[1:] or times)[len(times[1:]) // 2]
