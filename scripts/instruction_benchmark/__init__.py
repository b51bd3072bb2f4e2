"""What `build_instructions.py` makes the instruction benchmark from: the plan, the two sources, wording, the split."""
