"""A published run: the publisher, other formats, the demo."""
