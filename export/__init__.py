"""Checkpoint -> towers -> ONNX graphs -> parity and golden vectors -> bundle. The only place, beside tuning, that needs torch."""
