"""The bank of gated LoRA adapters, and their files in PEFT's format."""
