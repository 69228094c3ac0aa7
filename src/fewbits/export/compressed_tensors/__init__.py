"""Writing Hugging Face directories in compressed-tensors' formats, which vLLM, SGLang and transformers load."""
