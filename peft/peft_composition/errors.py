"""The errors a user of this package can meet. All are `ValueError`s: something given to the package was wrong."""

from __future__ import annotations


class CompositionError(ValueError):
    """A call that cannot be served: weights of the wrong shape, an unknown mode, rows that do not match."""


class AdapterMemoryError(CompositionError):
    """A batch whose adapters do not fit into the memory that adapters were given. Smaller batches may."""


class AdapterError(CompositionError):
    """An adapter that cannot be composed, with its name, the module concerned (if one is) and the reason."""

    def __init__(self, adapter: str, reason: str, module: str | None = None) -> None:
        super().__init__(adapter, reason, module)
        self.adapter = adapter
        self.reason = reason
        self.module = module

    def __str__(self) -> str:
        where = f"adapter '{self.adapter}'" + (f", module '{self.module}'" if self.module else "")
        return f"{where}: {self.reason}"
