"""Agent Forge: make a small 1.58-bit language model that reasons, on your own machine."""

__version__ = "0.1.0"
