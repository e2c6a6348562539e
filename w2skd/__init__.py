"""Weak-to-strong distillation as a training accelerator."""

__version__ = "0.1.0"
