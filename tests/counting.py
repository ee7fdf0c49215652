"""What loops cost, counted: tensor operations, traffic of memory, waits for the device. Counts, not seconds."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# What counts as being on a device, though it is on the CPU: given there, or computed from what is.
DEVICE = WeakIdKeyDictionary()
PATTERNS = ("aten.new_", "_like.")  # operations that take a tensor for its shape and type: they read nothing of it
READS = ("_local_scalar_dense", "item", "nonzero", "equal.default", "is_nonzero", "masked_select")


class Counted(TorchDispatchMode):
    """Operations on tensors, and those that touch one as large as the state; what a model does is left out.

    `traffic` is in states: how many tensors of at least that size were read and written. A view moves nothing.
    """

    def __init__(self, size):
        super().__init__()
        self.size, self.evaluations, self.traffic = size, 0, 0.0
        self.names, self.big, self.device_names = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(out)
        if not read and not written:  # a question about dtypes
            return out
        self.names.append(str(func))
        if any(v in DEVICE for v in read):
            self.device_names.append(str(func))
            on_device(*written)
        touched = written if any(p in str(func) for p in PATTERNS) else [*read, *written]
        if any(v.numel() >= self.size for v in touched):
            self.big.append(str(func))
        if not func.is_view:
            self.traffic += sum(v.numel() for v in touched if v.numel() >= self.size) / self.size
        return out

    @property
    def waits(self):
        """Operations that on a device wait for it: those that read a value, and an index that is a mask."""
        return _reads(self.names)

    @property
    def device_waits(self):
        """Those of them that read what was put `on_device`, or was computed from it: the others read the host's."""
        return _reads(self.device_names)

    def model(self, x, sigma, *_, **__):
        """An answer that costs nothing to make."""
        self.evaluations += 1
        with _disable_current_modes():
            return torch.zeros_like(x)


def on_device(*tensors):
    """Let tensors count as being on a device; returns the first."""
    for tensor in tensors:
        DEVICE[tensor] = True
    return tensors[0] if tensors else None


def _reads(names):
    return [name for name in names if any(read in name for read in READS)]


def _tensors(values):
    return [v for v in tree_leaves(values) if isinstance(v, torch.Tensor)]


class Uploads(TorchDispatchMode):
    """What comes from the host, seen from the meta device. To read a value of that is an error anyway."""

    def __init__(self):
        super().__init__()
        self.made, self.found = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(value.is_meta for value in _tensors(out)):
            self.made += 1
            if not all(value.is_meta for value in _tensors((args, kwargs))):
                self.found.append(str(func))
        return out


class Live(TorchDispatchMode):
    """How many bytes of tensors are alive at once, at most, of those made meanwhile. Views count as nothing."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(v) for v in _tensors((args, kwargs))}  # an operation in place returns what it was given
        for made in _tensors(out) if not func.is_view else ():
            if id(made) not in given:
                size = made.numel() * made.element_size()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(made, self._gone, size)
        return out

    def _gone(self, size):
        self.now -= size
