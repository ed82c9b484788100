class Error(Exception):
    """Base of Colab's errors, but not of all."""


class RuntimeManagementError(Error):
    """The runtime could not be given back."""
