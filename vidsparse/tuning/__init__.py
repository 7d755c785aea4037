"""From a quality target to a preset: search settings for the least measured time."""
