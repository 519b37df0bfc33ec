"""The Cognate language model: Titans-MAG memory x TRM recursion x ACT halting."""
