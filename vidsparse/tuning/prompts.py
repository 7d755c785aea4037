"""Scenes to tune on and scenes to validate on, never the same."""

from pathlib import Path

from vidsparse.clips import Scene
from vidsparse.errors import UsageError
from vidsparse.loading import is_bundled
from vidsparse.prompts import read_prompts

# Motion by scene, for models that know the world: still, people, fast, camera, crowd, texture.
GENERAL = (
    "A cat walks slowly on the grass in warm morning light, realistic style",
    "A woman in a red coat turns her head and smiles, close-up, shallow focus",
    "Waves break against black rocks under a stormy sky, slow motion",
    "A racing car drifts around a wet corner, spray flying, tracking shot",
    "Aerial view of a city at night, the camera flies forward over traffic",
    "Children chase a kite along a beach, hand-held camera",
    "A potter shapes a clay bowl on a spinning wheel, static camera",
    "A flock of birds rises from a field of sunflowers, wide shot",
    "Steam curls from a cup of tea on a wooden table, macro",
    "A dancer spins under coloured stage lights, full body",
    "A train crosses a stone bridge in autumn woods, the camera pans left",
    "Snow falls on a quiet street with parked cars and street lamps",
)


# Of the built-in prompts, the first that presets are tuned on.
_TUNED_ON = 2
# Built-in prompts that a preset is measured on.
_MEASURED_ON = 4


def scenes_for(
    model: str, file: Path | None, *, tuning: int, held_out: int, seed: int = 0
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Return scenes to tune on and held-out scenes; prompts and seeds all differ.

    Args:
        model: as ``load_pipeline`` takes it; bundled ones have prompts of their own.
        file: one prompt a line, # starts a comment; None takes built-in ones.
        tuning: scenes to tune on.
        held_out: scenes to validate on.
        seed: of the first scene.

    Raises:
        UsageError: a number is below 1, or the file is unreadable or has too few prompts.
    """
    if tuning < 1 or held_out < 1:
        raise UsageError(
            f"{tuning} clips to tune on and {held_out} held out: give at least 1 of each"
        )
    wanted = tuning + held_out
    prompts = _prompts(model, file, wanted)
    if len(prompts) < wanted:
        where = "the built-in list" if file is None else str(file)
        raise UsageError(
            f"{where} has {len(prompts)} different prompts, but {tuning} to tune on and "
            f"{held_out} held out need {wanted}; give more, or lower --clips or --held-out"
        )
    scenes = tuple(Scene(prompt, seed + i) for i, prompt in enumerate(prompts[:wanted]))
    return scenes[:tuning], scenes[tuning:]


def scenes_to_measure(
    model: str, file: Path | None, *, clips: int | None = None, seed: int = 0
) -> tuple[Scene, ...]:
    """Return scenes to measure finished settings on; prompts and seeds all differ.

    Args:
        model: as ``load_pipeline`` takes it; bundled ones have prompts of their own.
        file: one prompt a line, # starts a comment; None takes built-in ones that nothing is tuned
            on by default.
        clips: how many; None takes all of the file, or 4 built-in ones.
        seed: the seeds begin here.

    Raises:
        UsageError: the number is below 1, or the file is unreadable or has too few prompts.
    """
    if clips is not None and clips < 1:
        raise UsageError(f"--clips {clips} must be at least 1")
    if file is None:
        # Two seeds more than needed: clips stay those of a tuning with the same seed.
        count = _MEASURED_ON if clips is None else clips
        prompts = _prompts(model, None, _TUNED_ON + count)
        first = _TUNED_ON
    else:
        prompts, first = read_prompts(file), 0
        count = len(prompts) if clips is None else clips
    if len(prompts) < first + count:
        where = "the built-in list" if file is None else str(file)
        raise UsageError(
            f"{where} has {len(prompts) - first} different prompts to measure on, but --clips "
            f"{count} needs one for each; lower --clips or give more with --prompts"
        )
    chosen = enumerate(prompts[first : first + count], start=first)
    return tuple(Scene(prompt, seed + i) for i, prompt in chosen)


def _prompts(model: str, file: Path | None, count: int) -> list[str]:
    if file is not None:
        return read_prompts(file)
    if is_bundled(model):
        from vidsparse.profiling.sweep import grammar_prompts

        # Some sentences repeat: draw until enough differ.
        return list(dict.fromkeys(grammar_prompts(2 * count)))
    return list(GENERAL)
