"""Models of the Hugging Face hub, through the package huggingface_hub, which knows cache and tokens."""

from __future__ import annotations

import os
from pathlib import Path

from fewbits.checkpoint.hf_directory import INDEX
from fewbits.errors import CheckpointError, HubError, MissingExtraError

_WAIT = 5.0  # seconds for the hub's answer; an offline machine should hear soon that it is offline
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*", "README*"]


def download(hub_id: str) -> Path:
    """The directory of a model in the local cache; downloads it when it isn't there whole.

    Args:
        hub_id: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

    Raises:
        HubError: neither cached nor reachable, no such model, or no access to it.
        MissingExtraError: huggingface_hub isn't installed.
    """
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(int(_WAIT * 2)))
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(_WAIT)))
    try:
        from huggingface_hub import HfApi, errors, snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface_hub", "models", "Reading a model by its hub id") from None
    # of httpx or httpx2, whichever huggingface_hub uses
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    name, _, revision = hub_id.partition("@")
    try:
        cached = snapshot_download(
            name,
            revision=revision or None,
            local_files_only=True,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
        if _is_whole(Path(cached)):
            return Path(cached)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        pass
    try:
        commit = HfApi().model_info(name, revision=revision or None, timeout=_WAIT).sha
        found = snapshot_download(
            name, revision=commit, etag_timeout=_WAIT, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except (http_error, errors.HFValidationError, OSError) as error:
        raise _unavailable(hub_id, error) from error
    return Path(found)


def _is_whole(directory: Path) -> bool:
    """Whether a cached snapshot has all weights, as far as its index says."""
    from fewbits.checkpoint.source import open_stored

    try:
        open_stored(directory)
    except CheckpointError:
        return False
    return (directory / "config.json").exists() or (directory / INDEX).exists()


def _unavailable(hub_id: str, error: Exception) -> HubError:
    kind = type(error).__name__
    reasons = {
        "RepositoryNotFoundError": "the hub knows no such model, or it is private",
        "GatedRepoError": "the model is gated and your token has no access",
        "RevisionNotFoundError": "the model has no such revision",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
    }
    reason = reasons.get(kind, f"the hub can't be reached ({kind}: {str(error).strip().splitlines()[:1]})")
    return HubError(
        f"the model {hub_id} is not in the local cache and can't be downloaded",
        found=reason,
        allowed="a local path, a cached model, or a hub id that can be reached",
        action=f"Where there is a network, run: hf download {hub_id.partition('@')[0]}; then copy the "
        "directory that it prints here, and name it. For private and gated models: hf auth login.",
    )
