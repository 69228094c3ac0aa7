"""Writing Core ML packages (.mlpackage) by coremltools, with our codes and scales."""
