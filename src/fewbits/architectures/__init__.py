"""What is known per model architecture: names of tensors and settings in Hugging Face files and in GGUF."""

from __future__ import annotations

from fewbits.architectures.interpreter import (
    architecture_of,
    gguf_settings,
    gguf_tensors,
    known_model_types,
    parameters_of_directory,
    to_hugging_face,
    to_published,
)

__all__ = [
    "architecture_of",
    "gguf_settings",
    "gguf_tensors",
    "known_model_types",
    "parameters_of_directory",
    "to_hugging_face",
    "to_published",
]
