"""The smallest useful adapter for pre-trained transformers, as a method of Hugging Face PEFT."""

__version__ = "0.1.0"
