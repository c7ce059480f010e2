"""What decides which tokens a sample may still draw: the contract between grammars, budgets and the step loop."""

from __future__ import annotations

from typing import Protocol


class TokenConstraint(Protocol):
    """The state of one sample's constraint. Every token the sample draws is told to it, in order."""

    @property
    def failure(self) -> str | None:
        """Why nothing more can be said of the sample; it must end with this as an error, never unconstrained."""

    @property
    def is_complete(self) -> bool:
        """Whether the output satisfies the constraint and nothing could be added to it."""

    @property
    def num_free(self) -> int:
        """How many further tokens may be any, whatever they are; 0 where each depends on the one before it.

        So many may be drawn without a mask, and before those in flight are known.
        """

    @property
    def is_over(self) -> bool:
        """Whether everything is allowed from here on, so that the constraint may be forgotten."""

    def fill(self, address: int, num_bytes: int) -> None:
        """Write which tokens may come next to memory: bit i of 32-bit little-endian word w stands for token 32w + i.

        `num_bytes` is a multiple of 4 and may cover more tokens than there are; their bits become 0.
        """

    def accept(self, token_id: int) -> None:
        """Take in the token that was drawn; one that was not allowed makes `failure` true."""

    def fork(self) -> TokenConstraint:
        """Another sample's constraint in the same state."""
