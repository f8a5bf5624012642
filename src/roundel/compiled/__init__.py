"""What is compiled (src/kernels), as functions of tensors. Torch's operators compute the same where it is not there."""
