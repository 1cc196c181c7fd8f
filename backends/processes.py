"""Which of several processes this is, where torchrun, or its like, started more than one; and what
it may compute with."""
import os


def is_one_of_several():
    """Returns whether this process shares its work with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks():
    """Returns whether this process prints, and writes files: of several, the first does."""
    return not is_one_of_several() or int(os.environ.get("RANK", "0")) == 0


def available_cores():
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
