"""The base of Colab's own errors."""


class Error(Exception):
    """Raised by nothing itself."""
