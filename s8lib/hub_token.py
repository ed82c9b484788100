"""The account on the Hub: its token, from Colab's or Kaggle's secrets or this machine, and a repository's name."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from s8lib.hub_client import ask, check_repo_id, one_line, usable_token
from s8lib.machine.progress import tell

SECRET = "HF_TOKEN"


def in_colab() -> bool:
    """Whether this is a machine of Colab's."""
    # Kaggle's images are built on Colab's, and have its COLAB_RELEASE_TAG and its google.colab.
    tagged = "COLAB_RELEASE_TAG" in os.environ and "KAGGLE_KERNEL_RUN_TYPE" not in os.environ
    if not (tagged or Path("/var/colab/hostname").exists()):
        return False
    return all(importlib.util.find_spec(name) for name in ("google", "google.colab"))


def hf_token(say: Callable[[str], None] = tell) -> str | None:
    """The Hub's token: the secret HF_TOKEN of Colab or Kaggle, else $HF_TOKEN, else the file that a login left.

    One sentence tells where it comes from, or what is missing. The token itself is never shown.
    """
    from huggingface_hub import get_token

    token, reason, source = "", f"set {SECRET}, or log in with `hf auth login`", "Colab"
    if in_colab():
        token, reason = _secret()
    elif importlib.util.find_spec("kaggle_secrets"):
        (token, reason), source = _kaggle_secret(), "Kaggle"
    source = f"the {source} secret {SECRET}"
    if not token:
        source = f"the variable {SECRET}" if os.environ.get(SECRET) else "the token file of this machine"
        with warnings.catch_warnings(action="ignore"):  # on Colab, of the very refusal that is told here
            token = get_token() or ""
    say(f"Hugging Face token: from {source}" if token else f"Hugging Face token: none; {reason}")
    return token or None


def hub_repo(named: str, run: str, token: str | None = None, say: Callable[[str], None] = tell) -> str:
    """The repository `named`; if none is, "you/run" for the run `run`, and whose name it is a token tells.

    Raises:
        HubError: this is no name, or the Hub does not know the token.
        ConnectionError: the Hub cannot be reached.
    """
    if named.strip():
        return check_repo_id(named.strip())
    owner = ask("whoami", 20.0, token=usable_token(token))["name"] if token else "you"
    name = re.sub(r"[^a-zA-Z0-9_]+", "-", run)[:90].strip("-") or "run"
    say(f"no repository is named: {owner}/{name}")
    return f"{owner}/{name}"


def _secret() -> tuple[str, str]:
    """Colab's secret, or "" and what to do about it."""
    from google.colab import errors, userdata

    try:
        return userdata.get(SECRET).strip(), f"the Colab secret {SECRET} is empty"
    except userdata.SecretNotFoundError:
        return "", f"add a Colab secret named {SECRET} (the key on the left) and give this notebook access to it"
    except userdata.NotebookAccessError:
        return "", f"give this notebook access to the Colab secret {SECRET} (the key on the left)"
    except errors.Error as error:  # TimeoutException: the notebook is not open in a browser
        return "", f"Colab did not hand out the secret {SECRET} ({one_line(error)})"


def _kaggle_secret() -> tuple[str, str]:
    """Kaggle's secret, or "" and what to do about it."""
    from kaggle_secrets import BackendError, CredentialError, UserSecretsClient

    try:
        return UserSecretsClient().get_secret(SECRET).strip(), f"the Kaggle secret {SECRET} is empty"
    except (BackendError, CredentialError):
        return "", f"add a secret named {SECRET} (Add-ons > Secrets) and attach it to this notebook"
    except ConnectionError as error:
        return "", f"Kaggle did not hand it out ({one_line(error)}): is this notebook's internet on?"
