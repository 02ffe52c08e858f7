"""The softmax operators."""
