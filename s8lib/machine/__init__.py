"""What computes: device, precision, compiler, ranks."""
