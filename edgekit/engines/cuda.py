"""The little of CUDA that running an engine takes: memory, copies and a stream, from the driver's own library.

Calls libcuda (CUDA driver API) through ctypes, so that no package is needed that fits one CUDA version only.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import numpy as np

from edgekit.errors import BadInput

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: no waiting for the default stream."""


def missing() -> str | None:
    """Why nothing can run on a GPU here; None where something can."""
    try:
        _driver()
    except BadInput as error:
        return str(error)
    return None


@functools.cache
def _driver() -> Any:
    """The driver's library with the first device's primary context, the one that TensorRT uses.

    Raises:
        BadInput: there is no driver or no device.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise BadInput(f"there is no NVIDIA GPU here: the driver's {LIBRARY} is not installed") from None
    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    _check(library, "cuInit", 0)
    _check(library, "cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise BadInput("there is no NVIDIA GPU here: the driver finds no device")
    _check(library, "cuDeviceGet", ctypes.byref(device), 0)
    _check(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _check(library, "cuCtxSetCurrent", context)
    return library


def _check(library: Any, function: str, *arguments: Any) -> None:
    code = getattr(library, function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        raise BadInput(f"CUDA: {function} failed: {(text.value or b'error').decode()} ({code})")


def call(function: str, *arguments: Any) -> None:
    """Raises BadInput with the driver's own message where the call fails."""
    _check(_driver(), function, *arguments)


class Buffer:
    """Device memory of a fixed size; freed with the object."""

    def __init__(self, size: int) -> None:
        self.size, self._pointer = size, ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self._pointer), ctypes.c_size_t(size))

    @property
    def address(self) -> int:
        return self._pointer.value

    def write(self, values: np.ndarray) -> None:
        assert values.flags.c_contiguous and values.nbytes <= self.size
        call("cuMemcpyHtoD_v2", self._pointer, ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes))

    def read(self, values: np.ndarray) -> np.ndarray:
        """Fill `values` from the device."""
        assert values.flags.c_contiguous and values.nbytes <= self.size
        call("cuMemcpyDtoH_v2", ctypes.c_void_p(values.ctypes.data), self._pointer, ctypes.c_size_t(values.nbytes))
        return values

    def __del__(self) -> None:
        if self._pointer.value:
            _driver().cuMemFree_v2(self._pointer)


class Stream:
    """A queue of work; `wait` returns when all of it is done."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(self._handle), NON_BLOCKING)

    @property
    def address(self) -> int:
        return self._handle.value or 0

    def wait(self) -> None:
        call("cuStreamSynchronize", self._handle)
