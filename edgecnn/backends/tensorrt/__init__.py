"""TensorRT and TensorRT for RTX: engines, and what their parser takes."""
