"""Models as directories: our packed one, Hugging Face's, GGUF."""
