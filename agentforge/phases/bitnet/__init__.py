"""Phase 4: ternary weights, staged and checked, packed for the compiled kernels."""
