"""What happens to a mark when its adapter is composed, changed, trained further, or asked with other prompts.

Each file of this folder is one group of attacks. A group's `attacks(scene)` gives its attacks: a name, and a function
that measures. `matrix` runs the groups, keeps what is measured on disk, and makes the table.
"""
