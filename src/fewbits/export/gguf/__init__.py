"""Writing GGUF, the container of llama.cpp and everything built on it."""
