"""Whether a model that is no directory here can be had from the hub: asked once, before loading.

A path that was mistyped looks like the id of a hub (`models/nowhere`). Where there is no network,
transformers tries every file of it several times, for more than a minute, and ends with a message
about the connection.
"""

from emlens.foundation.errors import LoadError
from emlens.foundation.files import one_line

_ASKED_FILE = "config.json"
_TOO_MANY_REQUESTS = 429
_SERVER_FAILED = 500


def check_hub_has(hub_id: str, revision: str | None) -> None:
    """Refuse an id that is neither in the local cache of the hub nor to be had from it.

    Args:
        hub_id: as `org/name`.
        revision: branch, tag or commit; None: the default branch.

    Raises:
        LoadError: says that no directory of this name is here, and what the hub answered.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(hub_id, _ASKED_FILE, revision=revision), str):
            return
        get_hf_file_metadata(hf_hub_url(hub_id, _ASKED_FILE, revision=revision))
    except Exception as error:  # the hub's client raises what its transport raises
        if _may_pass(error):
            return
        raise LoadError(
            f"{hub_id}: no such directory here, and it cannot be had from the hub"
            f" ({one_line(str(error), 160)}); pass a directory saved by save_pretrained"
        ) from None


def _may_pass(error: Exception) -> bool:
    """Whether the hub answered that it is busy or broken, for which loading tries again."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and (status == _TOO_MANY_REQUESTS or status >= _SERVER_FAILED)
