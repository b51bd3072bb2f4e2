"""The parts from which `build_instructions.py` makes the instruction benchmark: the plan, the two sources, wording, the
split."""
