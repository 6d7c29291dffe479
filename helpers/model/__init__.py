"""The enhancer, its tiles and its exports; read `enhancer.py`, then `added.py` and `base.py`."""
