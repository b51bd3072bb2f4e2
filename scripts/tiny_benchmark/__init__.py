"""The parts from which `build_tiny.py` makes the bundled miniature: an invented world, tasks in it, models, and a
check."""
