"""What cannot be seen in a model's structure, per class, as data: everything else is found (blocks.py, experts.py)."""

# Experts stacked as [E, in, out] (True) or [E, out, in] (False), by the class that has them, where it has no attribute
# `is_transposed` to say so itself.
STORED_TRANSPOSED = {
    "Llama4TextExperts": True,
    "JetMoeParallelExperts": False,
}

# Model types whose activations exceed the largest float16.
TOO_LARGE_FOR_HALF = {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "t5gemma"}
