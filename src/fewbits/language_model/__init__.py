"""Models as transformers builds them, and their tokenizers: shared by calibration, evaluation and generation."""
