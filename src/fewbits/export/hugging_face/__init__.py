"""Hugging Face directories: what all containers of safetensors files share."""
