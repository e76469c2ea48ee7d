"""The driver, as far as it takes to run a kernel of PTX on numpy's arrays."""

import ctypes
from dataclasses import dataclass

import numpy as np


@dataclass
class Out:
    """An array that a kernel writes: what it holds before is on the device only if said."""

    array: np.ndarray
    written: bool


class Device:
    def __init__(self, launch):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)
        module, self.function, self.launch = ctypes.c_void_p(), ctypes.c_void_p(), launch
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(launch["ptx"].encode()))
        self.call("cuModuleGetFunction", ctypes.byref(self.function), module, ctypes.c_char_p(launch["name"].encode()))
        if launch["shared"] > 48 << 10:
            self.call("cuFuncSetAttribute", self.function, 8, launch["shared"])

    def call(self, name, *arguments):
        status = getattr(self.cuda, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")

    def out(self, array, written=False):
        return Out(array, written)

    def run(self, grid, arguments):
        """Launches the kernel; gives what it leaves in its outs. Triton's kernels take two more pointers, to memory that these do not need."""
        values, outs = [], []
        for argument in arguments:
            if isinstance(argument, (np.ndarray, Out)):
                out = isinstance(argument, Out)
                array = argument.array if out else argument
                address = ctypes.c_uint64()
                self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, array.nbytes)))
                if not out or argument.written:
                    self.call("cuMemcpyHtoD_v2", address, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes))
                if out:
                    outs.append((address, array))
                values.append(address)
            else:
                values.append(ctypes.c_float(argument) if isinstance(argument, np.float32) else ctypes.c_int32(argument))
        values += [ctypes.c_uint64(0), ctypes.c_uint64(0)]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values])
        self.call("cuLaunchKernel", self.function, *grid, self.launch["threads"], 1, 1, self.launch["shared"], None, pointers, None)
        for address, array in outs:
            self.call("cuMemcpyDtoH_v2", array.ctypes.data_as(ctypes.c_void_p), address, ctypes.c_size_t(array.nbytes))
        # The lock's case wants what it locked.
        return [array for _, array in outs]
