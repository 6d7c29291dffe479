"""Gives the folder `helpers/` its import name, `splat_enhancer`, in a clone.

Installed, the same folder is the package `splat_enhancer`: many people have a `helpers.py` of their
own. So the same imports work in a clone, in the notebook and after `pip install`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_folder = Path(__file__).resolve().with_name("helpers")
_spec = spec_from_file_location(
    "splat_enhancer", _folder / "__init__.py", submodule_search_locations=[str(_folder)])
_package = sys.modules["splat_enhancer"] = module_from_spec(_spec)
_spec.loader.exec_module(_package)

if __name__ == "__main__":
    from splat_enhancer.cli import main

    sys.exit(main())
