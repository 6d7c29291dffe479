"""A user's own renders restored: pictures, folders and what else `many.KINDS` names.

`inputs.py` finds them, `many.py` restores one after the other and says what became of each;
`marks.py` tells what is done already. Every kind has a module with one function of one signature.
"""

from .inputs import KINDS, Input, count, find, is_result, kind_of
from .library import load, restore
from .many import Outcome, restore_all, zipped
from .settings import RestoreConfig
