"""Which clips to generate: prompts, given or from a file, times seeds."""

from pathlib import Path

from vidsparse.clips import Scene
from vidsparse.errors import UsageError


def read_scenes(prompts: list[str], file: Path | None, seed: int, seeds: int) -> list[Scene]:
    """Return every prompt with every seed, the seeds of a prompt together.

    Args:
        prompts: given one by one; they come first.
        file: more of them, one a line; # starts a comment.
        seed: the first one.
        seeds: per prompt.

    Raises:
        UsageError: there are no seeds, a prompt is no text, or the file cannot be read or holds
            no prompt.
    """
    if seeds < 1:
        raise UsageError(f"{seeds} seeds or clips a prompt are none; give at least 1")
    for prompt in prompts:
        check_prompt(prompt)
    unique = dict.fromkeys([*prompts, *([] if file is None else read_prompts(file))])
    return [Scene(prompt, seed + i) for prompt in unique for i in range(seeds)]


def check_prompt(prompt: str) -> None:
    """Refuse what a terminal of another encoding may pass for a prompt.

    Raises:
        UsageError: it is no text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError(f"prompt {prompt!r} is no UTF-8 text; type it in UTF-8") from None


def read_prompts(file: Path) -> list[str]:
    """Return the different prompts of a file in their order, one a line; # starts a comment.

    Raises:
        UsageError: the file cannot be read or holds no prompt.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {file}: {error}") from error
    found = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise UsageError(f"{file} holds no prompt; write one a line")
    return list(found)
