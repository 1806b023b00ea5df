"""What runs a bundle: ONNX Runtime, llama.cpp, and the hardware they find."""
