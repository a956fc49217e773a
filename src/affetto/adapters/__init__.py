"""The bank of gated LoRA adapters, and PEFT's files."""
