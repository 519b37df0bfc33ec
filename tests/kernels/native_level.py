"""What a test says that needs instructions of another processor."""

NO_LEVEL = "this processor cannot run level"
