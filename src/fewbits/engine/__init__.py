"""The native engine: GGUF files, run on the processor."""
