"""Things on a disk: written whole, known to be whole, copied to Drive and back, fetched from a hub.

Everything this project keeps goes through here, so that there is one way to write a file, one to
tell that no byte of it has changed, and one to wait for a Drive that does not answer.
"""

from .copies import copy_to_drive, is_kept, keep, make_once, put, take_back
from .locks import alone, held
from .paths import own_path, safe_name
from .patience import within
from .sealed import read_metadata, read_sealed, verify, write_sealed
from .silence import DEMO, HUB_ERRORS, is_silence, out_of_reach, passes
from .snapshots import (
    HUB_NAME,
    TRANSFORMERS_WEIGHTS,
    Wanted,
    fetch,
    is_cached,
    load_whole,
    loading_quietly,
    missing_bytes,
)
from .whole import (
    SEAL_BYTES,
    UNREADABLE,
    DamagedFile,
    damage_named,
    digest,
    list_digests,
    read_seal,
    refuse_changed,
    write_whole,
)
