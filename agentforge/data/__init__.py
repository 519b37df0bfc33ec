"""Text in, batches out: the task world, the 16 datasets, splits, tokenizers, curriculum."""
