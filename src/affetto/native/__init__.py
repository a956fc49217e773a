"""C for CPUs in float32: layers in training, frames of speech, and what compiles them."""
