"""Memory for results."""

import ctypes
import functools
import mmap
import sys

import torch
from torch import Tensor

from torch_softmax._layout import empty_rows_like

HUGE_PAGE_BYTES = 2 * 2**20
# from 32 MiB on glibc takes fresh pages for every tensor, and from half of that where it has given
# its heap back to the system; smaller ones lie where others have lain
MIN_FRESH_BYTES = 16 * 2**20


def empty_result_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized result in the layout of ``x``."""
    return _in_huge_pages(empty_rows_like(x, dtype))


def empty_result(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An uninitialized contiguous result."""
    return _in_huge_pages(torch.empty(shape, dtype=dtype))


def _in_huge_pages(y: Tensor) -> Tensor:
    """``y``, in huge pages where it is large and the system has them.

    The first write to a page makes it: 63 ms for the pages of 128 MiB, and 14 ms for huge ones (AMD
    EPYC, Linux 6, one core). Advice that is not taken costs nothing.
    """
    if y.nbytes < MIN_FRESH_BYTES or sys.platform != "linux":
        return y
    start = -(-y.data_ptr() // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    end = (y.data_ptr() + y.nbytes) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)
    return y


@functools.cache
def _libc() -> ctypes.CDLL:
    # opening it takes 0.1 ms, as long as 256 KiB of page faults
    return ctypes.CDLL(None)
