"""Methods choose the integers. A method is mathematics: weights and activations in, QuantizedWeights out."""
