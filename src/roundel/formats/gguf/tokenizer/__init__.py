"""A tokenizer as the metadata of a GGUF file."""
