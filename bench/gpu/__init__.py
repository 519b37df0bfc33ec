"""GPU kernels timed on this machine's GPU: ``python -m bench.gpu``.

Every kernel at the shapes of the product, by events on the device with the second-level cache
emptied before each call, and again replayed from a CUDA graph with the cache warm, as a decoder
runs them. The limits (reading memory, multiplying int8) are measured in the same run; a kernel's
share of the roofline is the slower of its two limits over its time. Results go to
``bench/results/gpu_kernels.csv`` with the device, its clocks and the versions.

Without a GPU: one sentence, exit code 3.
"""
