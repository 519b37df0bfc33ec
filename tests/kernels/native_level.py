"""What a test says that needs instructions of another processor."""

NO_LEVEL = "this processor cannot run level"
NO_LEVEL_REASONS = tuple(f"{NO_LEVEL} {n}" for n in ("avx2", "avxvnni", "avx512vnni", "amxint8"))
"""The portable level is none of them: every processor runs it."""
