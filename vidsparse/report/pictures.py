"""Files of the first clip that need no page: a video side by side and a contact sheet."""

from pathlib import Path

from vidsparse.pictures import contact_sheet, side_by_side, write_png
from vidsparse.report.results import Results
from vidsparse.video import write_frames


def write_pictures(results: Results) -> list[Path]:
    """Write ``side-by-side.mp4`` and ``contact-sheet.png`` into the results folder."""
    folder, clips = results.folder, results.first_clips()
    video, sheet = folder / "side-by-side.mp4", folder / "contact-sheet.png"
    write_frames(video, side_by_side(clips), fps=results.fps)
    write_png(sheet, contact_sheet(clips))
    return [video, sheet]
