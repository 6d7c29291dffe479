"""`python -m helpers`; everything is in `commands/`."""

import sys

from .commands import NOTEBOOK, ROOT, execute_notebook, main

__all__ = ["NOTEBOOK", "ROOT", "execute_notebook", "main"]

if __name__ == "__main__":
    sys.exit(main())
