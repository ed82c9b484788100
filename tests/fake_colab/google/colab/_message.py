from google.colab import errors


class MessageError(errors.Error):
    """The browser answered a request with an error."""
