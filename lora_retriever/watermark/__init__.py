"""An owner's mark in an adapter. The files, in the order of the data:

- `words`, `key`: the public words; the secret key with its triggers and targets
- `factors`, `embedding`: an adapter's tensors; the training of the mark
- `suspects`, `local`, `served`: the suspects of a key: a composition in this process, or a server
- `statistics`: the p-values
- `attacks`: measures a mark after compositions, changes, further training and other prompts
"""
