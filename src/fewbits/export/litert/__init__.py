"""Writing LiteRT models (.tflite) by litert-torch and ai-edge-quantizer, with our codes and scales."""
