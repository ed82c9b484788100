"""One save, and the places that hold it."""
