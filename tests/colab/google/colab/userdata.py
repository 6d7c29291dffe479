"""The secrets a person keeps with Colab; huggingface_hub asks for HF_TOKEN here."""

import json
import os

from google.colab import errors


class SecretNotFoundError(errors.Error):
    """There is no such secret."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Secret {key} does not exist.")


class NotebookAccessError(Exception):
    """The person did not let this notebook have it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Notebook does not have access to secret {key}")


def get(key: str) -> str:
    """The value of a secret."""
    secrets = json.loads(os.environ.get("STAND_IN_SECRETS", "{}"))
    if key not in secrets:
        raise SecretNotFoundError(key)
    if secrets[key] is None:
        raise NotebookAccessError(key)
    return secrets[key]
