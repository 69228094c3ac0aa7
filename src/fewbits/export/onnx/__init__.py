"""Folders for ONNX Runtime and onnxruntime-genai."""
