"""Things on a disk: written whole, known to be whole, copied to Drive and back, fetched from a hub.

Everything this project keeps goes through here, so that there is one way to write a file, one to
tell that no byte of it has changed, and one to wait for a Drive that does not answer.
"""

from .files import write_whole
from .kept import is_kept, keep, make_once, put, take_back
from .locks import alone
from .patience import within
from .sealed import (
    SEAL_BYTES,
    DamagedFile,
    damage_named,
    read_metadata,
    read_seal,
    read_sealed,
    verify,
    write_sealed,
)
from .snapshots import (
    DEMO,
    HUB_ERRORS,
    TRANSFORMERS_WEIGHTS,
    Wanted,
    fetch,
    is_cached,
    is_silence,
    loading_quietly,
    missing_bytes,
    out_of_reach,
    passes,
)

__all__ = [
    "DEMO",
    "HUB_ERRORS",
    "SEAL_BYTES",
    "TRANSFORMERS_WEIGHTS",
    "DamagedFile",
    "Wanted",
    "alone",
    "damage_named",
    "fetch",
    "is_cached",
    "is_kept",
    "is_silence",
    "keep",
    "loading_quietly",
    "make_once",
    "missing_bytes",
    "out_of_reach",
    "passes",
    "put",
    "read_metadata",
    "read_seal",
    "read_sealed",
    "take_back",
    "verify",
    "within",
    "write_sealed",
    "write_whole",
]
