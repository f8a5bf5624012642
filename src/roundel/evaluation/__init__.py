"""Quality measured: perplexity, divergence from the original."""
