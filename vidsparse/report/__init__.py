"""Turn a comparison into a table, a JSON document, pictures and a page."""

from vidsparse.report.page import write_report
from vidsparse.report.pictures import write_pictures
from vidsparse.report.results import Results, clips_in, document, maps_file, write_results
from vidsparse.report.tables import HEADERS, cells, notes, table, write_json

__all__ = [
    "HEADERS",
    "Results",
    "cells",
    "clips_in",
    "document",
    "maps_file",
    "notes",
    "table",
    "write_json",
    "write_pictures",
    "write_report",
    "write_results",
]
