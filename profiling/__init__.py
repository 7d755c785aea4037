"""Timing, recording and benchmarks."""

from vidsparse._source_tree import hand_over

hand_over(__name__)
