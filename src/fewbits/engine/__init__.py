"""Running GGUF files natively."""
