"""What `build_tiny.py` makes the bundled miniature from: an invented world, tasks in it, models, and a check."""
