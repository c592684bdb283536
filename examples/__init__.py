"""Reference stacks, trained on synthetic rows."""
