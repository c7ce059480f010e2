"""What an operator's own module needs to look into requests and answers; docs/hooks.md has the contract.

These names are stable: code written against them keeps working as more is added.
"""

from quire.server.hooks.contract import AnswerFilter, Hook, HookRequest, Part, Reject, Stop

__all__ = ["AnswerFilter", "Hook", "HookRequest", "Part", "Reject", "Stop"]
