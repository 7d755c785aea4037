"""Model families: where attention happens in a diffusers transformer, and how to attach."""

from vidsparse._source_tree import hand_over

hand_over(__name__)
