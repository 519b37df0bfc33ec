"""Triton kernels for GPUs from compute capability 7.5 on, and for AMD's CDNA and RDNA 3.

The package is named like the library it uses; inside it ``import triton`` is absolute and means the
library. Nothing here is imported before a GPU path or a verification needs it.
"""
