"""Launch kernels that Triton has compiled, past its just-in-time path.

``kernel[grid](...)`` turns the specialization of its arguments and its options into text, and reads
environment variables and every global of the kernel, at each call. The kernel that it returns is
launched directly the next time that arguments have the same specialization. Interpreted kernels,
kernels with hooks, which profilers set, and a Triton whose internals differ take ``kernel[grid]``.
"""

from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

# what `kernel[grid]` returns, and what that returns
Kernel = Any
CompiledKernel = Any

_compiled: dict[tuple[Any, ...], CompiledKernel] = {}


class Launch:
    """A kernel with its grid and constexprs, for arguments of one specialization on one device."""

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        device: torch.device,
        *,
        num_warps: int,
        num_ctas: int = 1,
        **constexprs: Any,
    ) -> None:
        """``device`` is the one of the tensors."""
        self.kernel, self.grid, self.constexprs = kernel, grid, constexprs
        # on the CPU, tensors of the interpreter
        self.device_index = device.index
        # no FMA contraction: recomputed logits must match bit for bit, or the loss of a confident
        # row is negative. It would save the loss 1 to 2 % of its instructions
        self.options = {"num_warps": num_warps, "num_ctas": num_ctas, "enable_fp_fusion": False}
        self.compiled: CompiledKernel = None
        self.last_args: tuple[Any, ...] = ()

    def __call__(self, *args: Any) -> None:
        """Launch the kernel with the arguments that precede its constexprs."""
        if type(self.kernel) is not JITFunction:
            self._launch_just_in_time(args)
            return
        device = triton.runtime.driver.active.get_current_device()
        if self.device_index is None or self.device_index == device:
            self._launch_on(device, args)
        else:
            # Triton launches on the current device, so switch to the tensor's
            with torch.accelerator.device_index(self.device_index):
                self._launch_on(self.device_index, args)

    def _launch_on(self, device: int, args: tuple[Any, ...]) -> None:
        if has_hooks(self.kernel):
            self._launch_just_in_time(args)
        elif self.compiled is None:
            self._launch_specialized(device, args)
        elif not _run(self.compiled, self.grid, device, (*args, *self.last_args)):
            self._launch_just_in_time(args)

    def _launch_specialized(self, device: int, args: tuple[Any, ...]) -> None:
        """Find the kernel for such arguments, or compile it."""
        key, bound = _specialization(self.kernel, device, args, self.constexprs)
        key = (self.kernel.fn, device, *self.options.values(), *key)
        compiled = _compiled.get(key)
        if compiled is None or not _run(compiled, self.grid, device, bound):
            compiled = self._launch_just_in_time(args)
        if bound:
            # first the arguments: another thread may launch as soon as there is a kernel
            self.last_args = bound[len(args) :]
            self.compiled = compiled
            _compiled[key] = compiled

    def _launch_just_in_time(self, args: tuple[Any, ...]) -> CompiledKernel:
        return self.kernel[self.grid](*args, **self.constexprs, **self.options)


def has_hooks(kernel: Kernel) -> bool:
    """Whether a profiler, or whoever else has set a hook, is to see each launch."""
    runtime = triton.knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        # a chain of hooks, which may be empty, or one hook
        if getattr(hook, "calls", hook):
            return True
    return bool(kernel.pre_run_hooks)


def _specialization(
    kernel: Kernel, device: int, args: tuple[Any, ...], constexprs: dict[str, Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What Triton compiles apart for these arguments, and all of them in the kernel's order.

    Both are empty where Triton's binder is not what it is in Triton 3.6 to 3.9.
    """
    try:
        *_, binder = kernel.device_caches[device]
        bound, specialization, _ = binder(*args, **constexprs)
        return tuple(specialization), tuple(bound.values())
    except (AttributeError, LookupError, TypeError, ValueError):
        return (), ()


def _run(
    compiled: CompiledKernel, grid: tuple[int, ...], device: int, args: tuple[Any, ...]
) -> bool:
    """Launch on the current stream; False where Triton's launcher takes other arguments."""
    col_blocks = grid[1] if len(grid) > 1 else 1
    stream = triton.runtime.driver.active.get_current_stream(device)
    try:
        function, metadata = compiled.function, compiled.packed_metadata
        # no hooks, and so no description of the launch for them
        compiled.run(grid[0], col_blocks, 1, stream, function, metadata, None, None, None, *args)
    except (AttributeError, TypeError):
        return False
    return True
