"""GGUF files run by our own engine: the forward pass in C++, and what it takes to write text with it."""
