"""The same file on other processors, by emulation: does it answer there as it does here?

qemu's user emulation runs ONNX Runtime's own kernels as another processor would: those of x86 in the Python at hand,
those of ARM in a folder with a Python of theirs (`root.py`). What comes back are answers, never times.
"""
