"""Ternary kernels for 1.58-bit models; usable without the rest of Agent Forge."""
