import os
from pathlib import Path

from google.colab import errors

__all__ = ["unassign"]


def unassign():
    if "FAKE_COLAB_CONTENT" not in os.environ:
        raise errors.RuntimeManagementError("Unable to find the runtime management service.")
    Path(os.environ["FAKE_COLAB_CONTENT"], "unassigned").touch()
