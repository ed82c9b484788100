"""A stand-in for the package `google.colab` of Colab's machines, with the signatures and exceptions it has there.

Put the folder above `google` on PYTHONPATH (`google` itself is a namespace that other packages share) and set

    COLAB_RELEASE_TAG    to anything: this is Colab
    FAKE_COLAB_CONTENT   a folder that plays /content, this machine's disk; s8lib.colab then uses it instead
    FAKE_COLAB_DRIVE     a folder that plays My Drive; it outlives machines. To lose a machine, kill its processes
                         and delete its content (the mount in it is a link, so that My Drive stays)

    FAKE_COLAB_NOTEBOOK  the notebook that is open, as JSON: what the front end answers to `get_ipynb`

and, to see it misbehave,

    FAKE_COLAB_MOUNT     refused, failed, timeout, unsupported: how `drive.mount` fails
    FAKE_COLAB_FLUSH     failed, hanging: how `drive.flush_and_unmount` does
    FAKE_COLAB_SECRET    the secret HF_TOKEN, or "denied:" or "timeout:" for the exceptions; unset: there is none
    FAKE_DRIVE           what is wrong with a mounted Drive, as JSON:
                         {"errno": 107, "after_checkpoints": 2, "copies": 2}: the third checkpoint breaks off half
                         written, so does everything else until two copies have failed, then it is back

A truncated or vanished file needs no fake: truncate or delete it in FAKE_COLAB_DRIVE. `runtime.unassign` leaves
the file `unassigned` in the content.
"""

import os
from pathlib import Path

from google.colab import drive, errors, runtime, userdata

import s8lib.colab

__all__ = ["drive", "errors", "runtime", "userdata"]

if "FAKE_COLAB_CONTENT" in os.environ:
    s8lib.colab.CONTENT = Path(os.environ["FAKE_COLAB_CONTENT"])
