"""CIFAR-100 and its stand-in as tensors, and the batches of an epoch."""
