"""GGUF: the files of llama.cpp and all that builds on it (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
