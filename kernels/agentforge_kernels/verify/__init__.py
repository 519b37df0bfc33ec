"""Verification of the Triton kernels on a machine without a GPU.

Three independent looks at the same kernel, each catching what the others cannot:

1. ``interpreter``: Triton's own interpreter, in this process, on CPU tensors: is the algorithm
   right?
2. ``aot``, ``sass``, ``amdgcn``, ``roofline``: compiled ahead of time for every supported GPU and
   read back as machine code: is it fast in all that can be counted (registers, spills, load width,
   instructions a weight)?
3. ``ptx``: the compiled PTX executed in numpy, every thread of it: do layouts, shuffles, shared
   memory, barriers and addresses of the *compiled* kernel hold?

What no look covers: ptxas itself (PTX is executed, SASS only counted), timing, and the last bit of
the GPU's approximate float instructions. ``tests/gpu`` covers these on a machine with a device.

``python -m agentforge_kernels.verify`` prints the static report.
"""
