"""Several processes that train one model, as torchrun starts them: on several GPUs or machines.

Every process holds the whole model and draws the same batches; of each batch it takes every n-th
sequence. Their gradients, each one's share of the batch's targets, are added up once a step, when
all micro-batches are done, in one block: the sum is the gradient of the whole batch, for ragged
documents too, and the step that follows is the same everywhere.
"""
import atexit
import os

import torch
from torch import distributed


class Group:
    """The processes of a run. rank: which one this is, 0 the one that writes. size: how many."""

    def __init__(self, device):
        """device: this process's. Joins the group that the environment names."""
        # note: numbers on the CPU have a way of their own, so that no one waits for a GPU
        kind = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group(kind)
            atexit.register(distributed.destroy_process_group)  # else it may abort at the end
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def mine(self, batch):
        """Returns the sequences of a batch that are this process's; of a small batch perhaps none.

        Each takes the next in turn, so that a list sorted by length is shared out evenly.
        """
        return batch[self.rank::self.size]

    def add_up(self, tensor):
        """Replaces a tensor by the sum of all processes'."""
        distributed.all_reduce(tensor)

    def summed(self, numbers):
        """Returns the sums, over all processes, of a list of numbers."""
        # note: float64, for counts of tokens must stay whole
        total = torch.tensor(numbers, dtype=torch.float64)
        self.add_up(total)
        return total.tolist()


def own_device(name):
    """Returns the name of the device of this process: on a machine with GPUs, one each.

    ValueError for a device that several processes cannot share.
    """
    if name not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device is {name!r}: the processes that torchrun starts take a GPU each, "
                         "or the CPU; leave --device out, or give cuda or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu" if name == "auto" else name
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"torchrun starts {number + 1} processes or more on this machine, and it "
                         f"has {count} GPUs: give --nproc-per-node {count}, or --device cpu")
    return f"cuda:{number}"
