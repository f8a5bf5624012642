"""Any causal language model: its blocks, their Linears, what reaches them."""
