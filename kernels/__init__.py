"""Block-sparse attention kernels and the block statistics that methods plan with."""

from vidsparse._source_tree import hand_over

hand_over(__name__)
