"""Running quantized models."""
