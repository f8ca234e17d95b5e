"""Checkpoints from the Hugging Face hub: only the files that are needed, through huggingface_hub and its cache."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ..runtime.errors import MissingPackageError, OutzoomError, UserError
from . import pickles
from .layout import CONFIG_FILES, PARTS, TOKENIZER_FILES, is_shard, weight_names

SUGGESTION = "sd2-community/stable-diffusion-2-inpainting"
DELETED = "stabilityai/stable-diffusion-2-inpainting"
MAX_SMALL_FILE_BYTES = 64 * 2**20  # configurations and tokenizer; each has a limit of its own when it is read
SHORT_COMMIT = 12
_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
OnDownload = Callable[[int, int], object]  # bytes so far, bytes in all


@dataclass(frozen=True)
class HubId:
    """A model on the hub; without a revision its newest."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class Snapshot:
    """The files of a model in the cache, at one commit."""

    path: Path
    name: str  # owner/name@commit


def parse_hub_id(text: str) -> HubId | None:
    """`owner/name` or `owner/name@revision`; None for what is neither."""
    found = _ID.fullmatch(text)
    if not found or ".." in text or "--" in found["repo"] or text.endswith((".safetensors", *pickles.PICKLES)):
        return None
    return HubId(found["repo"], found["revision"])


def fetch_checkpoint(hub_id: HubId, on_download: OnDownload | None = None) -> Snapshot:
    """Its configurations, tokenizer and safetensors, downloaded unless the cache has them."""
    return _fetch(hub_id, _checkpoint_files, on_download)


def fetch_config(hub_id: HubId) -> Snapshot:
    """Its configurations and tokenizer, downloaded unless the cache has them."""
    return _fetch(hub_id, _config_files)


def fetch_tokenizer(hub_id: HubId) -> Path:
    """The folder of its tokenizer, downloaded unless the cache has any version of it."""
    return (_cached(hub_id, _tokenizer_files) or _fetch(hub_id, _tokenizer_files)).path / "tokenizer"


Choose = Callable[[HubId, set[str]], set[str]]  # of the files that there are, the ones to have


def _tokenizer_files(hub_id: HubId, names: set[str]) -> set[str]:
    wanted = names & {f"tokenizer/{name}" for name in TOKENIZER_FILES}
    if not wanted:
        raise UserError(f"the model '{hub_id}' has no tokenizer/", hint="name one with CLIP's tokenizer")
    return wanted


def _config_files(hub_id: HubId, names: set[str]) -> set[str]:
    return _tokenizer_files(hub_id, names) | names & set(CONFIG_FILES.values())


def _checkpoint_files(hub_id: HubId, names: set[str]) -> set[str]:
    if "model_index.json" not in names:
        alone = sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))
        raise UserError(
            f"the model '{hub_id}' is no diffusers checkpoint: it has no model_index.json",
            hint=f"download its {alone[0]} and give that file" if alone else f"try {SUGGESTION}",
        )
    wanted = {"model_index.json"} | _config_files(hub_id, names)
    return wanted.union(*(_weight_files(hub_id, names, part) for part in PARTS))


def _weight_files(hub_id: HubId, names: set[str], part: str) -> set[str]:
    inside = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
    for variant, whole, index in weight_names(part):
        if whole in inside:
            return {f"{part}/{whole}"}
        if index in inside:
            return {f"{part}/{name}" for name in inside if name == index or is_shard(name, part, variant)}
    if found := sorted(filter(pickles.is_pickle, inside)):
        raise pickles.refused_on_hub(hub_id.repo, hub_id.revision, f"{part}/{found[0]}")
    raise UserError(f"the model '{hub_id}' has no weights for its {part}", hint=f"try {SUGGESTION}")


def _fetch(hub_id: HubId, choose: Choose, on_download: OnDownload | None = None) -> Snapshot:
    hub = _library()
    if hub_id.revision and _COMMIT.fullmatch(hub_id.revision) and (found := _cached(hub_id, choose)):
        return found  # a commit stays what it is: nothing to ask
    try:
        info = hub.HfApi().repo_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = {name: sizes[name] for name in choose(hub_id, set(sizes))}
        _check_sizes(hub, hub_id, wanted, info.sha)
        path = hub.snapshot_download(
            hub_id.repo,
            revision=hub_id.revision,
            allow_patterns=sorted(wanted),
            tqdm_class=_bar(on_download, sum(wanted.values())),
        )
    except OutzoomError:
        raise
    except Exception as error:  # of the HTTP library that huggingface_hub happens to use
        if _is_offline(error) and (found := _cached(hub_id, choose)):
            return found
        raise _explained(hub, hub_id, error) from error
    return _snapshot(hub_id, path)


def _cached(hub_id: HubId, choose: Choose) -> Snapshot | None:
    """What the cache has, without a request; None unless it has everything.

    Which files that is, is for `choose` to say: for huggingface_hub no file has to be there.
    """
    hub = _library()
    try:
        path = Path(
            hub.snapshot_download(hub_id.repo, revision=hub_id.revision, local_files_only=True, allow_patterns=[])
        )
    except hub.errors.LocalEntryNotFoundError:
        return None
    except hub.errors.HFValidationError as error:
        raise _explained(hub, hub_id, error) from error
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    try:
        choose(hub_id, names)
    except UserError:
        return None
    return _snapshot(hub_id, path)


def _snapshot(hub_id: HubId, path: str | Path) -> Snapshot:
    return Snapshot(Path(path), f"{hub_id.repo}@{Path(path).name[:SHORT_COMMIT]}")


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingPackageError("huggingface_hub", "export", "a model on the hub") from error
    return huggingface_hub


def _check_sizes(hub: Any, hub_id: HubId, wanted: Mapping[str, int], commit: str) -> None:
    for name, size_bytes in wanted.items():
        if not name.endswith(".safetensors") and size_bytes > MAX_SMALL_FILE_BYTES:
            raise UserError(
                f"'{name}' of '{hub_id}' has {size_bytes} bytes; that is no configuration", hint=f"try {SUGGESTION}"
            )
    missing_bytes = sum(
        size_bytes
        for name, size_bytes in wanted.items()
        if not isinstance(hub.try_to_load_from_cache(hub_id.repo, name, revision=commit), str)
    )
    folder = Path(hub.constants.HF_HUB_CACHE).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if missing_bytes > (free_bytes := shutil.disk_usage(existing).free):
        raise _no_space(hub_id, f"{missing_bytes / 1e9:.1f} GB are missing, '{folder}' has {free_bytes / 1e9:.1f} GB")


def _bar(on_download: OnDownload | None, total_bytes: int) -> type:
    """What huggingface_hub takes for tqdm: it shows nothing, and passes on how far its bars for bytes are."""
    from tqdm.auto import tqdm

    reached: dict[int, int] = {}  # by bar: one counts what was received, one what was written
    lock = Lock()  # files come in several threads

    class Bar(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.counts_bytes and on_download:
                with lock:
                    reached[id(self)] = reached.get(id(self), 0) + int(n or 0)
                    on_download(min(max(reached.values()), total_bytes), total_bytes)

    return Bar


def _is_offline(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= 500


def _explained(hub: Any, hub_id: HubId, error: Exception) -> OutzoomError:
    """What went wrong, in the user's terms."""
    errors, repo = hub.errors, hub_id.repo
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return UserError(f"'{hub_id}' is no hub id: {error}", hint="a hub id is owner/name or owner/name@revision")
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"the model '{repo}' is gated: its owner asks to agree to conditions",
            hint=f"agree at {hub.constants.ENDPOINT}/{repo}, then log in: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"the model '{repo}' has no revision '{hub_id.revision}'", hint=f"try '{repo}' alone")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        gone = f" ('{DELETED}' was deleted)" if repo == DELETED else ""
        return UserError(
            f"there is no '{hub_id}': neither a file or directory here nor a public model on the hub{gone}",
            hint=f"check the spelling, or try {SUGGESTION}; for a private model log in: hf auth login",
        )
    if status == 403:
        return UserError(f"the hub refuses access to '{repo}' ({status})", hint="log in: hf auth login")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(hub_id, "it is full")
    if isinstance(error, PermissionError | NotADirectoryError):
        return UserError(f"the cache of the hub can't be written: {error}", hint="set HF_HOME to another folder")
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return UserError(
            f"'{hub_id}' is not in the cache, or not all of it, and HF_HUB_OFFLINE forbids to download it",
            hint="unset HF_HUB_OFFLINE, or give a diffusers directory",
        )
    what = f"the hub answers {status}" if status else f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return OutzoomError(
        f"'{hub_id}' can't be downloaded from {hub.constants.ENDPOINT}: {what}",
        hint="is the network there? what was downloaded stays, so try again; or give a diffusers directory",
    )


def _no_space(hub_id: HubId, problem: str) -> OutzoomError:
    cache = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return OutzoomError(
        f"there is no room for '{hub_id}' in the cache of the hub: {problem}",
        hint=f"set HF_HOME (now {cache}) to a folder on a larger disk, or free some",
    )
