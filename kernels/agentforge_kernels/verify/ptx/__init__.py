"""Executes the PTX of a compiled kernel on the CPU, and raises where hardware would misbehave."""

from agentforge_kernels.verify.ptx.control import Schedule
from agentforge_kernels.verify.ptx.executor import Execution, launch
from agentforge_kernels.verify.ptx.parser import parse
from agentforge_kernels.verify.ptx.program import Program

__all__ = ["Execution", "Program", "Schedule", "launch", "parse"]
