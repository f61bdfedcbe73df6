"""Tasks made of other tasks: augmentations, gradient modifiers, families."""
