"""Attacks measure a mark after its adapter is composed, changed or trained further, or under other prompts.

Each file of this folder is one group of attacks. A group's `attacks(scene)` gives its attacks: a name, and a function
that measures. `matrix` runs the groups, keeps the results on disk, and makes the table.
"""
