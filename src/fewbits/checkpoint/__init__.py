"""Reading models lazily: Hugging Face directories and hub ids, GGUF files."""
