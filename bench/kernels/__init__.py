"""CPU kernels beside the fastest public ones: ``python -m bench.kernels`` (``make bench-kernels``).

Every contestant is a process of its own with its own threads, bound to CPUs, at raised priority
where that is permitted. For each case (operation, shape, batch, threads) the contestants take
turns, one short measurement each, round after round, so that whatever else the machine does
disturbs all alike; medians over the rounds are compared. The machine's limits (reading the weights'
working set, multiplying in registers) are contestants like the others.
"""
