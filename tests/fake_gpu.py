"""A GPU without memory and kernels: tensors on the CPU are real, those on "cuda" have no values.

`FakeGpu` runs a program as if there were a GPU, and within `must_not_wait` raises WaitError where
the program would wait for it. What torch's FakeTensorMode checks itself fails too: operations
between devices, and shapes that depend on values of the device.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
aten = torch.ops.aten


class WaitError(Exception):
    """The program waits for the GPU, or copies to it from memory that is not pinned."""


class FakeGpu(TorchDispatchMode):
    """Within it, tensors can be made on `GPU`. Values that are read from it are zeros.

    copies, products: number of copies to the GPU, and of matrix products on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.products = 0
        self._may_wait = True
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._pinned: list[Tensor] = []  # kept, so that no other tensor gets their memory

    @contextmanager
    def must_not_wait(self) -> Iterator[None]:
        self._may_wait = False
        try:
            yield
        finally:
            self._may_wait = True

    @contextmanager
    def may_wait(self) -> Iterator[None]:
        """Within `must_not_wait`, an exception."""
        before, self._may_wait = self._may_wait, True
        try:
            yield
        finally:
            self._may_wait = before

    def wait(self, why: str) -> None:
        """Raise WaitError where the program must not wait."""
        if not self._may_wait:
            raise WaitError(why)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten":  # they arrive whole
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in (aten._pin_memory.default, aten.is_pinned.default):
            return (
                self._is_pinned(args[0]) if func is aten.is_pinned.default else self._pin(args[0])
            )
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **kwargs | {"pin_memory": False}))
        device = torch.device(kwargs.get("device") or "cpu")
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if device.type != "cuda" and not any(isinstance(one, FakeTensor) for one in inputs):
            return func(*args, **kwargs)
        self.products += func in (aten.mm.default, aten.addmm.default, aten.bmm.default)
        if func is aten.copy_.default:
            return self._copy(args[0], args[1], waits=not (args[2:] and args[2]))
        moves = func is aten._to_copy.default and kwargs.get("device") is not None
        if moves and device != args[0].device:
            return self._moved(args[0], device, kwargs)
        self._check(func, args, kwargs)
        if func is aten._local_scalar_dense.default:
            return torch.zeros((), dtype=args[0].dtype).item()
        with self._fake:
            return func(*args, **kwargs)

    def _check(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if func is aten._local_scalar_dense.default:
            self.wait("a value of the GPU is read")
        indexes = args[1] if func in (aten.index.Tensor, aten.index_put_.default) else ()
        if any(index is not None and not index.is_cuda for index in indexes):
            self.wait("an index on the CPU is copied to the GPU")
        if func is aten.segment_reduce.default and not kwargs.get("unsafe"):
            self.wait("segment_reduce reads its lengths")

    def _moved(self, tensor: Tensor, device: torch.device, options: dict[str, Any]) -> Tensor:
        """A copy on the other device."""
        waits = not options.get("non_blocking")
        dtype = options.get("dtype") or tensor.dtype
        if device.type == "cpu":
            if waits:
                self.wait("a copy from the GPU")
            return self._pin(torch.zeros(tensor.shape, dtype=dtype))
        with self._fake:
            there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
        return self._copy(there, tensor, waits=waits)

    def _copy(self, target: Tensor, source: Tensor, *, waits: bool) -> Tensor:
        if target.is_cuda == source.is_cuda:
            with self._fake:
                return target.copy_(source)
        self.copies += target.is_cuda
        host = source if target.is_cuda else target
        if waits or not self._is_pinned(host):
            kind = "blocking" if waits else "pageable"
            self.wait(f"{kind} copy between devices, {list(source.shape)} {source.dtype}")
        return target

    def _pin(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self._pinned.append(copy)
        return copy

    def _is_pinned(self, tensor: Tensor) -> bool:
        memory = tensor.untyped_storage().data_ptr()
        return any(one.untyped_storage().data_ptr() == memory for one in self._pinned)


class _Event:
    """torch.cuda.Event: to wait for one is not a wait for the GPU if that has more to do."""

    def __init__(self, gpu: FakeGpu, enable_timing: bool = False) -> None:
        self._gpu, self._timed, self._after = gpu, enable_timing, -1

    def record(self) -> None:
        self._after = self._gpu.products

    def synchronize(self) -> None:
        assert self._after >= 0
        if self._gpu.products == self._after:
            self._gpu.wait("an event is waited for, and nothing is left to do")

    def elapsed_time(self, other: "_Event") -> float:
        assert self._timed
        assert other._timed
        self.synchronize()
        other.synchronize()
        return float(other._after - self._after)


_backward = torch.autograd._engine_run_backward  # type: ignore[attr-defined]


def _run_backward(*given: Any, **options: Any) -> Any:
    """In this thread: torch starts one for each GPU that it knows in its first backward pass."""
    with torch.autograd.set_multithreading_enabled(False):
        return _backward(*given, **options)


@contextmanager
def fake_gpu(capability: tuple[int, int] = (8, 0)) -> Iterator[FakeGpu]:
    """A `FakeGpu` that torch.cuda tells of, too."""
    with ExitStack() as held:
        before = torch._C._only_lift_cpu_tensors()
        held.callback(torch._C._set_only_lift_cpu_tensors, before)
        torch._C._set_only_lift_cpu_tensors(True)
        gpu = FakeGpu()
        for name, value in {
            "torch.cuda.Event": partial(_Event, gpu),
            "torch.autograd._engine_run_backward": _run_backward,
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.get_device_capability": lambda device=None: capability,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: (
                including_emulation or capability >= (8, 0)
            ),
            "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available": (
                lambda: False
            ),
        }.items():
            held.enter_context(patch(name, value))
        yield held.enter_context(gpu)


def load_driver(folder: Path) -> Any:
    """What a build of torch for the CPU lacks, as a function that switches it on and off."""
    if torch.backends.cuda.is_built():
        return lambda on: None
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    torch_folder, target = Path(torch.__file__).parent, folder / "fake_gpu.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder}/include",
         str(Path(__file__).with_suffix(".cpp")), "-o", str(target), f"-L{torch_folder}/lib",
         "-ltorch_cpu", "-lc10"],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(target)).set_fake_gpu
