"""Where events go: the event log first, then everything that may fail."""
