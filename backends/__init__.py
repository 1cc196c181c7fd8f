"""The engines behind one contract (base.py), found by name and imported when used.

    scalar    microgpt.py itself: a number a node
    matrix    plain Python, a list of rows a node
    torch     PyTorch, a batch on a device
"""
import importlib

BACKENDS = {
    "scalar": ("microgpt.backends.scalar", "ScalarBackend"),
    "matrix": ("microgpt.backends.matrix", "MatrixBackend"),
    "torch": ("microgpt.backends.pytorch", "TorchBackend"),
}


class NotInstalled(ValueError):
    """A backend's package is missing; the message says how to get it."""


def load(name):
    """Returns the class of a backend.

    ValueError for a name that is not there, NotInstalled where it lacks its package.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}: it takes {', '.join(BACKENDS)}")
    module, cls = BACKENDS[name]
    try:
        return getattr(importlib.import_module(module), cls)
    except ImportError as error:
        if error.name:  # not our own word for what is missing, but something broken
            raise
        raise NotInstalled(str(error)) from None


__all__ = ["BACKENDS", "NotInstalled", "load"]
