"""Presets in Hugging Face Hub repositories: fetch one, publish one."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError, first_line
from vidsparse.preset_files import check_preset_name

DEFAULT_FILE = "vidsparse.toml"


def pull(repo: str, out: Path, *, file: str = DEFAULT_FILE, revision: str | None = None) -> Path:
    """Fetch a preset from a repository, check it, and write it.

    Args:
        repo: owner/name.
        out: file to write; ends in .toml or .json.
        file: path in the repository.
        revision: branch, tag or commit.

    Raises:
        UsageError: ``out`` cannot be written, the Hub cannot be reached, there is no such
            repository or file, or it holds no preset.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    check_preset_name(out)
    _hush()
    try:
        found = hf_hub_download(repo, file, revision=revision)
    except HFValidationError as error:
        raise UsageError(first_line(error)) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"there is no repository {repo!r} on the Hub, or it is private: run hf auth login"
        ) from None
    except LocalEntryNotFoundError as error:
        raise _offline(repo, error) from None
    except EntryNotFoundError:
        raise UsageError(
            f"repository {repo!r} has no file {file!r}; name one with --file"
        ) from None
    except _network_errors() as error:
        raise _offline(repo, error) from None
    SparseConfig.load(found).save(out)
    return out


def push(preset: str | Path, repo: str, *, file: str = DEFAULT_FILE) -> str:
    """Publish a preset; the repository is made when there is none.

    Args:
        preset: name or path.
        repo: owner/name.
        file: path in the repository; ends in .toml or .json.

    Returns:
        The address of the commit.

    Raises:
        UsageError: it is no preset, the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    content = _content(SparseConfig.load(preset), file)
    api: Any = HfApi()
    _hush()
    try:
        api.create_repo(repo, exist_ok=True)
        done = api.upload_file(path_or_fileobj=content, path_in_repo=file, repo_id=repo)
    except HFValidationError as error:
        raise UsageError(first_line(error)) from None
    except HfHubHTTPError as error:
        raise UsageError(
            f"the Hub refused {repo!r}: {first_line(error)}; run hf auth login"
        ) from None
    except _network_errors() as error:
        raise _offline(repo, error) from None
    return str(done)


def _content(config: SparseConfig, file: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / Path(file).name
        config.save(path)
        return path.read_bytes()


def _hush() -> None:
    """Keep the Hub's remarks on each of its retries off the terminal: one error follows them."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # Its parents are those of the HTTP library, which changes between versions of the Hub's.
    return (OSError, *HfHubHTTPError.__bases__)


def _offline(repo: str, error: Exception) -> UsageError:
    reason = first_line(error)[:120].rstrip(" .")
    return UsageError(
        f"cannot reach the Hugging Face Hub for {repo!r} ({reason}); check the network, or copy "
        "the file and give its path"
    )
