"""A program that runs a small kernel on the first GPU that CUDA shows it, and says so as JSON.

It needs Python and the driver's own library: the driver compiles the kernel. Its source is also run
by the Python of containers, 3.7 or newer, whose images know nothing of this package.

With the argument "hold" it keeps the GPU's memory until its input ends.

ref: https://docs.nvidia.com/cuda/cuda-driver-api/
ref: https://docs.nvidia.com/cuda/parallel-thread-execution/
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
import uuid
from array import array
from typing import Any

LIBRARY = "libcuda.so.1"
# Exit statuses: the kernel's result is right, it isn't or a call has failed, there is no library.
DONE, FAILED, NO_LIBRARY = 0, 1, 3
VALUES = 1 << 20
THREADS = 256
MIB = 1024 * 1024
HELD_MIB = 256
# The attributes of a device with the numbers of its compute capability.
MAJOR, MINOR = 75, 76

# value = value * 3 + its number, in 32 bits.
KERNEL = """
.version {version}
.target {target}
.address_size 64

.visible .entry mix(.param .u64 values, .param .u32 count)
{{
    .reg .pred %outside;
    .reg .b32 %r<7>;
    .reg .b64 %rd<4>;

    ld.param.u64 %rd1, [values];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.u32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %outside, %r5, %r1;
    @%outside bra END;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd2, %rd2, %rd3;
    ld.global.u32 %r6, [%rd2];
    mad.lo.u32 %r6, %r6, 3, %r5;
    st.global.u32 [%rd2], %r6;
END:
    ret;
}}
"""
# The newest that a GPU is at least: its compute capability -> the first PTX version that has it.
TARGETS = (((7, 5), "6.3"), ((5, 0), "4.0"), ((3, 0), "3.0"))


class CUDAError(Exception):
    """A call of CUDA's has failed. `str()` names it and the error."""


def kernel(capability: tuple[int, int]) -> str:
    """Return the PTX text for a GPU of this compute capability.

    Raises:
        CUDAError: the GPU is older than any that a driver in use knows.
    """
    for least, version in TARGETS:
        if capability >= least:
            return KERNEL.format(version=version, target="sm_{}{}".format(*least))
    raise CUDAError("a GPU of compute capability {}.{} is too old".format(*capability))


class CUDA:
    """The driver's library; `cuda.cuInit(0)` calls its function of that name."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> None:
            code = function(*arguments)
            if code:
                raise CUDAError(f"{name}: {self._error(code)}")

        return call

    def _error(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(text)) or not text.value:
            return f"error {code}"
        return text.value.decode("ascii", "replace")


def identity(cuda: CUDA, device: ctypes.c_int) -> dict[str, Any]:
    """Return what a device says of itself."""
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    numbers = []
    for attribute in (MAJOR, MINOR):
        number = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    said = (ctypes.c_ubyte * 16)()
    try:
        # Of a MIG instance it is the instance's own, since driver 470.
        cuda.cuDeviceGetUuid_v2(said, device)
    except AttributeError:
        cuda.cuDeviceGetUuid(said, device)
    return {
        "cuda": version.value,
        "name": name.value.decode("utf-8", "replace"),
        "capability": numbers,
        "uuid": str(uuid.UUID(bytes=bytes(said))),
    }


def compile_kernel(cuda: CUDA, capability: tuple[int, int]) -> ctypes.c_void_p:
    """Return the function that the driver makes of the kernel's text."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    text = kernel(capability).encode() + b"\0"
    cuda.cuModuleLoadData(ctypes.byref(module), text)
    cuda.cuModuleGetFunction(ctypes.byref(function), module, b"mix")
    return function


def launch(cuda: CUDA, function: ctypes.c_void_p, numbers: array[int]) -> None:
    """Run the kernel over numbers of 32 bits, in place."""
    size = ctypes.c_size_t(len(numbers) * numbers.itemsize)
    memory, count = ctypes.c_uint64(), ctypes.c_uint(len(numbers))
    cuda.cuMemAlloc_v2(ctypes.byref(memory), size)
    here = ctypes.c_void_p(numbers.buffer_info()[0])
    cuda.cuMemcpyHtoD_v2(memory, here, size)
    given = (ctypes.c_void_p * 2)(ctypes.addressof(memory), ctypes.addressof(count))
    blocks = (len(numbers) + THREADS - 1) // THREADS
    cuda.cuLaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, None, given, None)
    cuda.cuCtxSynchronize()
    cuda.cuMemcpyDtoH_v2(here, memory, size)
    cuda.cuMemFree_v2(memory)


def run(hold: bool) -> tuple[int, dict[str, Any]]:
    """Run the kernel on the first device; return (exit status, what is printed)."""
    found: dict[str, Any] = {}
    try:
        cuda = CUDA()
    except OSError as error:
        return NO_LIBRARY, {"error": str(error)}
    steps: dict[str, float] = {}
    found["milliseconds"] = steps
    begun = time.monotonic()

    def step(name: str) -> None:
        nonlocal begun
        now = time.monotonic()
        steps[name] = round((now - begun) * 1000, 1)
        begun = now

    try:
        cuda.cuInit(0)
        count, device = ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGetCount(ctypes.byref(count))
        found["devices"] = count.value
        cuda.cuDeviceGet(ctypes.byref(device), 0)
        found.update(identity(cuda, device))
        step("init")
        context = ctypes.c_void_p()
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        cuda.cuCtxSetCurrent(context)
        step("context")
        function = compile_kernel(cuda, tuple(found["capability"]))
        step("compile")
        numbers = array("I", range(1, VALUES + 1))
        begun = time.monotonic()
        launch(cuda, function, numbers)
        step("kernel")
        if numbers != array("I", ((each + 1) * 3 + each for each in range(VALUES))):
            return FAILED, dict(found, error="the kernel's result is wrong")
        if hold:
            held = ctypes.c_uint64()
            cuda.cuMemAlloc_v2(ctypes.byref(held), ctypes.c_size_t(HELD_MIB * MIB))
    except CUDAError as error:
        return FAILED, dict(found, error=str(error))
    except AttributeError as error:
        return FAILED, dict(found, error=f"the driver's library is too old: {error}")
    return DONE, found


def main() -> int:
    """Print what was found, and with "hold" wait for the end of the input."""
    hold = "hold" in sys.argv[1:]
    status, found = run(hold)
    print(json.dumps(found), flush=True)
    if hold and status == DONE:
        sys.stdin.read()
    return status


if __name__ == "__main__":
    sys.exit(main())
