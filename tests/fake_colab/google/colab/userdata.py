import os

from google.colab import errors


class NotebookAccessError(Exception):
    def __init__(self, key):
        super().__init__(f"Notebook does not have access to secret {key}")


class SecretNotFoundError(errors.Error):
    def __init__(self, key):
        super().__init__(f"Secret {key} does not exist.")


class TimeoutException(errors.Error):
    def __init__(self, key):
        super().__init__(
            f"Requesting secret {key} timed out. Secrets can only be fetched when running from the Colab UI."
        )


def get(key):
    if key != "HF_TOKEN" or "FAKE_COLAB_SECRET" not in os.environ:
        raise SecretNotFoundError(key)
    secret = os.environ["FAKE_COLAB_SECRET"]
    if secret == "denied:":
        raise NotebookAccessError(key)
    if secret == "timeout:":
        raise TimeoutException(key)
    return secret
