"""What comes back from the browser tab."""

from google.colab import errors


class MessageError(errors.Error):
    """The browser answered a request with an error."""
